"""Logs of benchmarks of agents: tau-bench, tau2, SWE-bench, Terminal-Bench, runs of METR."""

import json
import math

from ramp.nines.columns import Column, Table, constant, count_rows, with_column
from ramp.nines.formats.log import Format, has_keys, is_list_with, say_error
from ramp.nines.notes import Note, Reading

WHOLE_REWARD = 1 - 1e-6  # a trial counts where all was earned: pass^k of Yao et al. 2024


# --- tau-bench and tau2


def _read_tau(log):
    for trial in log.data:
        row = {
            "run": log.path.stem,
            "task": "tau",
            "item": trial["task_id"],
            "seed": trial.get("trial", ""),
        }
        # tau-bench gives a trial that raised an exception the reward 0.
        info = trial.get("info") or {}
        # The text of some exceptions, such as a time-out, is empty.
        if info.get("error") is not None:
            yield row | {"error": say_error(info["error"])}
        else:
            yield row | {"success": float(trial["reward"] >= WHOLE_REWARD)}


def _read_tau2(log):
    info = log.data.get("info") or {}
    model = (info.get("agent_info") or {}).get("llm") or log.path.stem
    task = (info.get("environment_info") or {}).get("domain_name") or "tau"
    simulations = log.data.get("simulations") or []
    folder = log.path.parent / "simulations"
    if not simulations and folder.is_dir():
        simulations = [json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("*.json"))]
    # Without the simulations themselves, what the leaderboard keeps of them.
    simulations = simulations or log.data.get("simulation_index") or []
    for simulation in simulations:
        yield from _read_simulation(simulation, model, task)
    planned = (info.get("num_trials") or 0) * len(log.data.get("tasks") or [])
    if len(simulations) < planned:
        missing = planned - len(simulations)
        log.note("partial", f"{missing} of {planned} simulations are missing", missing)


def _read_simulation(simulation, model, task):
    row = {
        "run": model,
        "task": task,
        "item": simulation["task_id"],
        "seed": simulation.get("trial", ""),
        "date": simulation.get("start_time"),
        "seconds": simulation.get("duration"),
        "cost": simulation.get("agent_cost"),
    }
    reason = str(simulation.get("termination_reason"))
    # tau2 leaves those out of its own figures.
    if reason == "infrastructure_error":
        yield row | {"error": reason}
        return
    reward = (simulation.get("reward_info") or {}).get("reward", simulation.get("reward"))
    is_early = reason not in ("None", "user_stop", "agent_stop")
    if reward is not None:
        yield row | {"success": float(reward >= WHOLE_REWARD)}
    elif is_early:
        # A simulation that ended too early has no reward, and counts as one that earned none.
        yield row | {"success": 0.0}
    else:
        yield row | {"error": "no reward"}


# --- SWE-bench, Terminal-Bench, Harbor


def _read_swe(log):
    # MODEL.RUN.json
    run = log.path.name.removesuffix(".json")
    resolved = set(log.data.get("resolved_ids") or log.data.get("resolved") or [])
    errors = set(log.data.get("error_ids") or [])
    # Of older reports, those of the experiments' leaderboard.
    tried = set(log.data.get("submitted_ids") or log.data.get("generated") or [])
    for key in ("completed_ids", "unresolved_ids", "empty_patch_ids", "no_generation"):
        tried |= set(log.data.get(key) or [])
    tried |= resolved | errors
    for item in sorted(tried):
        row = {"run": run, "task": "SWE-bench", "item": item}
        yield row | ({"error": "error"} if item in errors else {"success": item in resolved})
    missing = len(set(log.data.get("incomplete_ids") or []) - tried)
    if missing:
        log.note("partial", f"{missing} instances were not submitted, and are left out", missing)


def _read_swe_instances(log):
    for item, report in log.data.items():
        # .../RUN/MODEL/INSTANCE/report.json
        run = log.path.parent.parent.name or "run"
        yield {"run": run, "task": "SWE-bench", "item": item, "success": report["resolved"]}


# Terminal-Bench counts a trial that took too long or was too long as a failure of the agent.
OWN_FAILURES = ("none", "unset", "agent_timeout", "test_timeout", "context_length_exceeded")


def _read_terminal(log):
    for trial in log.data["results"]:
        row = {
            "run": log.path.parent.name or "run",
            "task": "terminal-bench",
            "item": trial["task_id"],
            "seed": trial.get("trial_name", ""),
            "date": trial.get("trial_started_at"),
        }
        mode = str(trial.get("failure_mode") or "none")
        # A trial that was resolved is, whatever went wrong after.
        if trial.get("is_resolved") or mode in OWN_FAILURES or "output_length" in mode:
            yield row | {"success": bool(trial.get("is_resolved"))}
        else:
            yield row | {"error": mode}


def _read_harbor(log):
    trial = log.data
    agent = ((trial.get("config") or {}).get("agent") or {}).get("model_name")
    info = (trial.get("agent_info") or {}).get("name")
    row = {
        "run": agent or info or log.path.parent.parent.name,
        "task": str(trial.get("source") or "terminal-bench"),
        "item": trial["task_name"],
        "seed": trial.get("trial_name") or log.path.parent.name,
        "date": trial.get("started_at"),
        "cost": (trial.get("agent_result") or {}).get("cost_usd"),
    }
    rewards = (trial.get("verifier_result") or {}).get("rewards") or {}
    exception = (trial.get("exception_info") or {}).get("exception_type")
    # An agent that took too long has failed; anything else that was raised is no verdict.
    if "AgentTimeout" in str(exception):
        exception = None
        rewards = rewards or {"reward": 0.0}
    if exception or not rewards:
        yield row | {"error": exception or "no reward"}
        return
    for metric, reward in rewards.items():
        yield row | {"metric": metric, "success": reward}


# --- tables whose columns are known


def rename_known(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """A table of METR's runs with ramp's columns; any other table as it is."""
    if not {"task_id", "score_binarized"} <= set(table):
        return table
    metric = reading.metric[0] if reading.metric else "score_binarized"
    scores = [key for key in ("score_binarized", "score_cont") if key in table]
    if metric not in scores:
        metric = "score_binarized"
    if len(scores) > 1:
        other = next(key for key in scores if key != metric)
        text = f"success is {metric}; --metric {other} takes the other score of the same runs"
        notes.append(Note("choice", text))
    names = {
        "alias" if "alias" in table else "model": "run",
        "task_family": "family",
        "task_id": "item",
        "run_id": "seed",
        metric: "success",
        "started_at": "date",
        "generation_cost": "cost",
    }
    known = {name: table[key] for key, name in names.items() if key in table}
    if "human_minutes" in table:
        minutes = table["human_minutes"]
        # METR's curves run over the logarithm of how long a human takes.
        difficulty = Column([_log2(value) for value in minutes.values], minutes.codes)
        known = with_column(known, "difficulty", difficulty)
        notes.append(Note("guess", "difficulty is log2 of human_minutes"))
    known = with_column(known, "metric", constant(metric, count_rows(table)))
    left = [key for key in table if key not in names and key not in ("human_minutes", *scores)]
    if left:
        notes.append(Note("dropped", f"columns that ramp does not use: {', '.join(left[:12])}"))
    return known


def _log2(minutes):
    try:
        return math.log2(float(minutes))
    except (TypeError, ValueError):
        return None


def _is_tau2(document):
    return has_keys(document, "simulations") or has_keys(document, "simulation_index")


def _is_terminal(document):
    return has_keys(document, "results") and is_list_with(document["results"], "is_resolved")


def _is_swe(document):
    return has_keys(document, "resolved_ids") or has_keys(document, "resolved", "generated")


def _is_swe_instances(document):
    is_map = isinstance(document, dict) and bool(document)
    return is_map and all(has_keys(report, "resolved") for report in document.values())


FORMATS = (
    Format("tau-bench", (".json",), lambda d: is_list_with(d, "task_id", "reward"), _read_tau),
    Format("tau2", (".json",), _is_tau2, _read_tau2),
    Format("Terminal-Bench", (".json",), _is_terminal, _read_terminal),
    Format("SWE-bench", (".json",), _is_swe, _read_swe),
    Format("instances of SWE-bench", (".json",), _is_swe_instances, _read_swe_instances),
    Format(
        "Harbor",
        (".json",),
        lambda d: has_keys(d, "task_name", "verifier_result"),
        _read_harbor,
    ),
)
