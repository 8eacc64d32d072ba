"""Logs of inspect: .eval, a ZIP of one JSON document a sample, and .json, all in one document."""

import json
import struct

import pyarrow as pa

from ramp.nines.formats.log import Format, has_keys, say_error

# inspect writes C, P, I, N for correct, partial, incorrect, no answer; some scorers write words.
GRADES = {"C": 1, "P": 0.5, "I": 0, "N": 0, "yes": 1, "true": 1, "no": 0, "false": 0}
ZSTD = 93  # a method of compression that Python's zipfile learns in 3.14


def _read_eval(log):
    names = log.data.namelist()
    # What an evaluation was begun with is there before its header, which is written at the end.
    name = "header.json" if "header.json" in names else "_journal/start.json"
    header = _read_member(log.data, name)
    sample_names = [name for name in names if name.startswith("samples/")]
    summaries = _read_member(log.data, "summaries.json") if "summaries.json" in names else []
    # Summaries hold all that is asked for here, and no transcripts.
    is_whole = len(summaries) == len(sample_names)
    samples = summaries if is_whole else (_read_member(log.data, name) for name in sample_names)
    status = header.get("status", "started")
    yield from _read_samples(log, header["eval"], status, samples)


def _read_member(archive, name):
    info = archive.getinfo(name)
    if info.compress_type != ZSTD:
        return json.loads(archive.read(name))
    # The bytes of a member follow its local header, whose last numbers are lengths of two texts.
    archive.fp.seek(info.header_offset)
    name_length, extra_length = struct.unpack("<26xHH", archive.fp.read(30))
    archive.fp.seek(name_length + extra_length, 1)
    packed = pa.BufferReader(archive.fp.read(info.compress_size))
    return json.loads(pa.CompressedInputStream(packed, "zstd").read())


def _read_json(log):
    header = log.data.get("eval", {})
    yield from _read_samples(log, header, log.data.get("status"), log.data.get("samples") or [])


def _read_samples(log, header, status, samples):
    model = header.get("model", "run")
    task = header.get("task", "task")
    count = 0
    trials = []
    measures: dict[tuple, None] = {}
    for sample in samples:
        count += 1
        trial = {
            "run": model,
            "task": task,
            "item": sample["id"],
            "seed": sample.get("epoch", 1),
            "date": sample.get("started_at") or header.get("created"),
            "seconds": sample.get("total_time"),
        }
        if limit := sample.get("limit"):
            kind = limit.get("type") if isinstance(limit, dict) else limit
            log.note("partial", f"a sample was cut short by its {kind} limit", 1)
        scores = _list_scores(sample)
        measures |= dict.fromkeys(scores)
        trials.append((trial, scores, sample.get("error")))
    for trial, scores, error in trials:
        yield from _read_scores(trial, scores, error, measures)
    _describe_status(log, header, status, count)


def _list_scores(sample):
    """The value of each scorer and name: a scorer may give several values by name."""
    found = {}
    for scorer, score in (sample.get("scores") or {}).items():
        value = score["value"] if isinstance(score, dict) else score
        values = value if isinstance(value, dict) else {None: value}
        found |= {(scorer, metric): part for metric, part in values.items()}
    return found


def _read_scores(trial, scores, error, measures):
    if error or not scores:
        # Of an error inspect keeps the message, or a document with it.
        text = error.get("message") if isinstance(error, dict) else error
        yield trial | {"error": say_error(text, "error" if error else "no score")}
        return
    # What a scorer left out of this sample is missing from its figure.
    for scorer, metric in measures:
        row = trial | {"scorer": scorer, "metric": metric}
        part = scores.get((scorer, metric))
        if part is None or part != part:
            yield row | {"error": "no score"}
        else:
            key = part.lower() if isinstance(part, str) and len(part) > 1 else part
            yield row | {"success": GRADES.get(key, part) if isinstance(part, str) else part}


def _describe_status(log, header, status, count):
    epochs = (header.get("config") or {}).get("epochs") or 1
    planned = (header.get("dataset") or {}).get("samples")
    expected = planned * epochs if planned else count
    is_short = count < expected
    if status not in (None, "success") or is_short:
        log.note(
            "partial",
            f"the evaluation has status {status or 'unknown'}, and {count} of {expected} samples "
            "are there" + (": what is missing may differ from what is not" if is_short else ""),
            expected - count,
        )


def _is_json(document):
    return has_keys(document, "samples") or has_keys(document, "eval", "status")


FORMATS = (
    Format("inspect .eval", (".eval",), lambda archive: True, _read_eval),
    Format("inspect JSON", (".json",), _is_json, _read_json),
)
