"""Logs of tools that check an application: promptfoo, deepeval, pytest and other JUnit XML."""

import hashlib
import json
from collections import Counter
from contextlib import suppress

from ramp.nines.formats.log import Format, has_keys, say_error

NOT_RUN = ("notrun", "disabled", "skipped")  # statuses of GoogleTest and CTest
# Of Maven's Surefire, beside the test that passed when it was run again.
FAILED_AT_FIRST = ("flakyFailure", "flakyError", "rerunFailure", "rerunError")
PROMPTFOO_ERROR = 2  # its failureReason where no answer came; 1 is a check that failed


def _read_promptfoo(log):
    results = log.data["results"]
    # Version 2 of the file wraps the rows once more.
    rows = results["results"] if isinstance(results, dict) else results
    yield from _read_promptfoo_rows(rows)


def _read_promptfoo_lines(log):
    yield from _read_promptfoo_rows(log.data)


def _read_promptfoo_rows(rows):
    # promptfoo numbers a case that it repeats anew: what is asked and checked tells cases apart.
    numbers: dict[str, int] = {}
    tries: Counter[tuple] = Counter()
    for row in rows:
        provider = row["provider"]
        if isinstance(provider, dict):
            provider = provider.get("label") or provider.get("id")
        prompt = row.get("prompt") or {}
        # Rows of older versions name a case by its variables only.
        about = {key: row[key] for key in ("vars", "testCase") if row.get(key)}
        index = row.get("testIdx")
        case = _hash(about) if about or index is None else str(index)
        if index is not None:
            case = numbers.setdefault(case, index)
        # Several prompts try one case: they are ways to ask it.
        way = row.get("promptId") or _hash(prompt.get("raw"))
        seed = tries[provider, case, way]
        tries[provider, case, way] += 1
        trial = {
            "run": provider,
            "task": str(row.get("description") or "promptfoo"),
            "item": case,
            "slice": way,
            "seed": seed,
            "cost": row.get("cost"),
        }
        if row.get("latencyMs") is not None:
            trial["seconds"] = row["latencyMs"] / 1e3
        # An answer that a check turned down is a failure; no answer is none.
        is_broken = row.get("failureReason") == PROMPTFOO_ERROR
        is_broken |= bool(row.get("error")) and not row.get("gradingResult")
        if is_broken:
            yield trial | {"error": say_error(row.get("error"))}
        else:
            yield trial | {"success": bool(row["success"])}


def _hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _read_deepeval(log):
    # The file that is kept of the latest run wraps it.
    run = log.data.get("testRunData") or log.data
    cases = [*(run.get("testCases") or []), *(run.get("conversationalTestCases") or [])]
    for case in cases:
        trial = {
            "run": str(run.get("identifier") or log.path.parent.name or "run"),
            "task": str(run.get("testFile") or "deepeval"),
            "item": case["name"],
            "seconds": case.get("runDuration"),
            "cost": case.get("evaluationCost"),
        }
        # "all": what deepeval calls the success of a case.
        measured = {"all": case} | {m["name"]: m for m in case.get("metricsData") or []}
        if len(measured) == 2:
            measured.pop("all")
        for name, result in measured.items():
            row = trial | {"metric": name}
            # A case fails in deepeval where a metric broke, which is no failure of the system.
            parts = [result, *measured.values()] if name == "all" else [result]
            error = next(filter(None, (part.get("error") for part in parts)), None)
            if error or result.get("success") is None:
                yield row | {"error": say_error(error, "no verdict")}
            else:
                yield row | {"success": bool(result["success"])}


def _read_junit(log):
    skipped = again = flaky = 0
    for suite in log.data.iter("testsuite"):
        cases = suite.findall("testcase")
        with suppress(TypeError, ValueError):
            # pytest-rerunfailures writes a test that it runs again several times, as it ended.
            again += max(0, len(cases) - int(suite.get("tests")))
        for case in cases:
            parts = [case.get("classname") or case.get("file"), case.get("name")]
            row = {
                "run": log.path.stem,
                "task": suite.get("name") or "tests",
                "item": "::".join(part for part in parts if part),
                "date": suite.get("timestamp"),
                # Maven writes 1,234.5.
                "seconds": (case.get("time") or "").replace(",", "") or None,
            }
            # What went wrong around a test, such as in a fixture; a failure is the test's own.
            problem = case.find("error")
            # Nothing was tried there.
            if case.find("skipped") is not None or case.get("status") in NOT_RUN:
                skipped += 1
            elif problem is not None:
                yield row | {"error": say_error(problem.get("message"))}
            else:
                is_flaky = any(case.find(name) is not None for name in FAILED_AT_FIRST)
                flaky += is_flaky
                yield row | {"success": case.find("failure") is None and not is_flaky}
    if skipped:
        log.note("dropped", "tests that were skipped", skipped)
    if flaky:
        log.note("choice", "tests that failed at first count as failed, passed again or not", flaky)
    if again:
        text = "more tests than the suite counts: those run again may have failed at first"
        log.note("guess", text, again)


def _is_promptfoo(document):
    return has_keys(document, "results") and (
        has_keys(document, "evalId") or has_keys(document["results"], "results")
    )


FORMATS = (
    Format("promptfoo", (".json",), _is_promptfoo, _read_promptfoo),
    Format(
        "promptfoo lines",
        (".jsonl",),
        lambda row: has_keys(row, "provider", "success", "prompt"),
        _read_promptfoo_lines,
    ),
    Format(
        "deepeval",
        (".json",),
        lambda d: has_keys(d, "testCases") or has_keys(d, "testRunData"),
        _read_deepeval,
    ),
    Format(
        "JUnit XML",
        (".xml",),
        lambda root: root.tag in ("testsuite", "testsuites"),
        _read_junit,
    ),
)
