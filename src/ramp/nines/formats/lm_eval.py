"""Logs of lm-evaluation-harness, 0.3 to 0.4: samples, one measured in several ways, and results."""

import json
import re
from dataclasses import dataclass

from ramp.nines.formats.log import Format, has_keys, is_list_with, is_number

# What a row of samples holds beside its metrics.
NO_METRICS = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
    "truth",
    "prompt_0",
    "logit_0",
}
FILE_NAME = re.compile(r"samples_(.*?)(?:_(\d{4}-\d\d-\d\dT.*))?\.jsonl?$")


@dataclass(frozen=True)
class _RunInfo:
    """What results say of the run they are of."""

    run: str
    step: str | None  # of a checkpoint that is a revision of a model on a hub
    date: float | None  # seconds since 1970


def _read_samples(log):
    match = FILE_NAME.match(log.path.name)
    # 0.3 wrote TASK_write_out_info.json.
    task = match[1] if match else log.path.stem.removesuffix("_write_out_info")
    about = vars(_describe_run(_read_results_beside(log, match and match[2]), log))
    no_numbers = set()
    for row in log.data:
        item = {"item": row["doc_id"], "task": task, "filter": row.get("filter", "none")} | about
        # Newer versions say which of the keys are metrics.
        named = row.get("metrics") or [k for k in row if not _is_known(k)]
        for metric in named:
            value = _parse(row[metric])
            if is_number(value):
                yield item | {"metric": metric, "success": value}
            else:
                no_numbers.add(metric)
    if no_numbers:
        log.note("dropped", f"metrics that are no number a sample: {', '.join(sorted(no_numbers))}")


def _is_known(key):
    return key in NO_METRICS or re.match(r"(prompt|logit)_\d+$", key)


def _parse(value):
    # 0.3 wrote numbers as text.
    if not isinstance(value, str):
        return value
    if value in ("True", "False"):
        return float(value == "True")
    try:
        return float(value)
    except ValueError:
        return value


def _read_results_beside(log, date):
    """The results that were written with these samples; {}: there are none."""
    path = log.path.parent / f"results_{date}.json"
    return json.loads(path.read_text("utf-8")) if date and path.is_file() else {}


def _describe_run(results, log):
    """The run is the name of the folder where the results tell no model."""
    config = results.get("config") or {}
    arguments = config.get("model_args") or ""
    # A text up to 0.4.9, a mapping after.
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    pretrained = re.search(r"(?:pretrained|model|path)=([^,]+)", arguments)
    model = results.get("model_name") or (pretrained and pretrained[1]) or config.get("model")
    revision = re.search(r"revision=[^,]*?(\d+)(?=,|$)", arguments)
    if revision:
        log.note("guess", f"the step is {revision[1]}, by its revision")
    date = results.get("date")
    return _RunInfo(
        run=model or log.path.parent.name or "run",
        step=revision and revision[1],
        date=date if is_number(date) else None,
    )


def _read_results(log):
    about = vars(_describe_run(log.data, log))
    # A group is a mean of tasks that are there themselves.
    groups = {name for name, parts in (log.data.get("group_subtasks") or {}).items() if parts}
    groups |= set(log.data.get("groups") or {})
    left_out = groups & set(log.data["results"])
    if left_out:
        log.note("dropped", f"groups of tasks that are there too: {', '.join(sorted(left_out))}")
    for task, numbers in log.data["results"].items():
        if task in left_out:
            continue
        for key, value in numbers.items():
            # "acc,none": since 0.4 a metric goes with a filter.
            metric, _, name = key.partition(",")
            if not is_number(value) or metric.endswith("_stderr") or metric in ("alias", "samples"):
                continue
            stderr = numbers.get(f"{metric}_stderr,{name}" if name else f"{metric}_stderr")
            row = about | {"task": task, "metric": metric, "filter": name or "none"}
            # "N/A" where it was not worked out.
            stderr = stderr if is_number(stderr) else None
            yield row | {"success": value, "stderr": stderr}


def _is_samples(document):
    return has_keys(document, "doc_id") or is_list_with(document, "doc_id")


def _is_results(document):
    known = has_keys(document, "results") and isinstance(document["results"], dict)
    return known and (has_keys(document, "versions") or has_keys(document, "config", "n-shot"))


FORMATS = (
    Format("samples of lm-evaluation-harness", (".jsonl", ".json"), _is_samples, _read_samples),
    Format("results of lm-evaluation-harness", (".json",), _is_results, _read_results),
)
