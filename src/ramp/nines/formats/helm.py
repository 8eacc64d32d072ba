"""Logs of HELM: statistics of every instance, and of a run. A folder holds one run."""

import json
import re

from ramp.nines.formats.log import Format, is_list_with

# Statistics that count tokens, time and the like.
NO_METRICS = re.compile(
    r"num_|finish_reason|inference_|training_|batch_size|prompt_truncated|logprob|max_prob|"
    r"predicted_index|estimated_|perplexity|bits_per_byte|logits_"
)


def _name_run(log):
    """The model and the scenario of a run."""
    path = log.path.parent / "run_spec.json"
    spec = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    # "mmlu:subject=anatomy,model=openai_gpt2"
    name = spec.get("name") or log.path.parent.name
    model = (spec.get("adapter_spec") or {}).get("model")
    model = model or (found[1] if (found := re.search(r"model=([^,]+)", name)) else "run")
    task = re.sub(r"[,:]?model(_deployment)?=[^,]+", "", name)
    return model, task


def _read_instances(log):
    run, task = _name_run(log)
    # HELM's own figure is of the test alone, where there is one.
    splits = {_split(stat) for record in log.data for stat in record["stats"]}
    other = splits - {"test"} if "test" in splits else set()
    left_out = 0
    for record in log.data:
        if any(_split(stat) in other for stat in record["stats"]):
            left_out += 1
            continue
        trial = {
            "run": run,
            "task": task,
            "item": record["instance_id"],
            "seed": record.get("train_trial_index", 0),
            "slice": _slice(record.get("perturbation")),
        }
        for stat in record["stats"]:
            # Each metric is a row of its own, of which the user names one.
            yield from _read_stat(stat, trial, {})
    if left_out:
        log.note("dropped", f"instances of {', '.join(sorted(other))} beside test", left_out)


def _split(stat):
    return stat["name"].get("split") or "test"


def _read_run(log):
    run, task = _name_run(log)
    for stat in log.data:
        name = stat["name"]
        # HELM repeats every number for each kind of instance; those of the test are asked for.
        if name.get("split", "test") != "test" or name.get("sub_split"):
            continue
        perturbation = name.get("perturbation")
        # "worst" and the like are taken over several ways to perturb.
        if perturbation and perturbation.get("computed_on"):
            continue
        # The variance is over instances, as far as HELM tells it.
        count = stat.get("count") or 0
        spread = {"stderr": (stat.get("variance", 0) / count) ** 0.5} if count > 1 else {}
        row = {"run": run, "task": task, "slice": _slice(perturbation)}
        yield from _read_stat(stat, row, spread)


def _read_stat(stat, row, more):
    metric = stat["name"]["name"]
    if NO_METRICS.match(metric) or not stat.get("count"):
        return
    yield row | {"metric": metric, "success": stat["sum"] / stat["count"]} | more


def _slice(perturbation):
    return (perturbation or {}).get("name", "base")


FORMATS = (
    Format(
        "instances of HELM",
        (".json",),
        lambda document: is_list_with(document, "instance_id", "stats"),
        _read_instances,
    ),
    Format(
        "statistics of HELM",
        (".json",),
        lambda document: is_list_with(document, "name", "count", "sum"),
        _read_run,
    ),
)
