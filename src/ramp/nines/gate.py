"""May it ship? A verdict from the trials of the last checkpoint that holds however often one asks.

Valid after every item, with items added at any time, whatever the order of the file. Assumed is
that units (families of items where any is named, else items) are independent draws of what the
system will meet. A family counts with the mean of its items, whatever their number: so it is valid
after every family that was tried as a whole, and where size tells nothing of success.
"""

import math
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from ramp.errors import UserError
from ramp.nines.audit import choose_unit, last_checkpoint, unit_evidence
from ramp.nines.intervals import Interval, all_of_k
from ramp.nines.sequential import (
    confidence_sequence,
    count_clean_units,
    log_capital_above,
    log_capital_below,
    log_capital_of_loss,
)
from ramp.nines.trials import Trials
from ramp.nines.words import describe_nines, plural, say_bounds

# Exit codes. A mistake in the arguments or the log is none of them.
PASS, FAIL, UNDECIDED = range(3)
NAMES = ("pass", "fail", "undecided")
# What XML 1.0 forbids, and no parser reads.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
NAMED = 100  # items that failed and are named in a report


@dataclass(frozen=True)
class Verdict:
    """What a gate says, and what it rests on."""

    code: int  # PASS, FAIL or UNDECIDED
    nines: float
    rate: float  # the bar
    confidence: float
    items: int
    failures: int
    failing: tuple[str, ...]  # the first of them by name, at most NAMED
    unit: str  # what is independent: "item" or "family"
    units: int
    bounds: Interval  # of the success rate, as sure as the verdict, at all times at once
    more: int  # further units without a failure that would demonstrate the bar
    regression: "Regression | None"  # from the baseline, where there is one
    notes: tuple[str, ...]  # what was decided about the trials

    @property
    def name(self) -> str:
        """ "pass", "fail" or "undecided"."""
        return NAMES[self.code]

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        by_family = ", by family" if self.unit == "family" else ""
        text = (
            f"{self.name.upper()}: {describe_nines(self.nines)} ({self.rate:.6g}) at "
            f"{self.confidence:.6g} confidence; {self.failures} of {self.items} items failed; "
            f"items that pass{by_family}: {say_bounds(*self.bounds)}"
        )
        if self.regression:
            text += f"; {self.regression.sentence}"
        if self.code == UNDECIDED and self.more:
            text += f"; {self.more:,} further clean {plural(self.unit, self.more)} would pass"
        return text


@dataclass(frozen=True)
class Regression:
    """The change from the baseline, over the items that both tried."""

    items: int
    difference: float  # of the success rates; negative: worse
    shown: bool  # whether it is shown to be worse

    @property
    def sentence(self) -> str:
        """The change in words."""
        worse = "worse than the baseline" if self.shown else "not shown to be worse"
        return f"{self.difference:+.4f} on {self.items} items of the baseline, {worse}"


def judge(
    t: Trials,
    nines: float = 2,
    confidence: float = 0.95,
    unit: str = "auto",
    baseline: Trials | None = None,
) -> Verdict:
    """Judge the last checkpoint: PASS, FAIL or UNDECIDED.

    PASS where the bar is demonstrated, FAIL where the system is shown to be below it or worse than
    the baseline. Each is wrong with probability 1 - confidence at most; with a baseline the two
    reasons to fail have half of it each.
    unit: "item", "family", or "auto", see `choose_unit`. Raises UserError as
    `last_checkpoint` does, and for a family that no item has.
    """
    if not 0 < nines <= 9 or not 0.5 < confidence < 1:
        raise UserError("--nines must be above 0 and at most 9, --confidence above .5 and below 1")
    last = last_checkpoint(t)
    unit = choose_unit(last.family, unit)
    evidence = last.evidence(unit)
    rate = 1 - 10.0**-nines
    enough = -math.log(1 - confidence)
    notes = last.notes
    # What families prove says little where the large ones fail most.
    is_met = last.failures <= last.items * (1 - rate) + 1e-9
    passed = log_capital_above(evidence, rate) >= enough
    if passed and not is_met:
        notes += ("by item it is below the bar: the larger families fail more often",)
    regression = None
    to_fail = enough
    if baseline is not None:
        old = last_checkpoint(baseline)
        to_fail = enough + math.log(2)
        regression = _measure_loss(last, old, unit, to_fail)
        notes += tuple(f"baseline: {note}" for note in old.notes)
    is_worse = regression is not None and regression.shown
    failed = is_worse or log_capital_below(evidence, rate) >= to_fail
    low = confidence_sequence(evidence, confidence)[0]
    high = confidence_sequence(evidence, 1 - math.exp(-to_fail))[1]
    units = int(evidence.count.sum())
    if unit == "family" and units < last.items:
        notes += (
            f"{last.items} items are {units} independent {plural('family', units)}, each tried as "
            "a whole; --unit item if its items are independent of each other",
        )
    return Verdict(
        code=FAIL if failed else PASS if passed and is_met else UNDECIDED,
        nines=nines,
        rate=rate,
        confidence=confidence,
        items=last.items,
        failures=last.failures,
        failing=tuple(last.name_failing(NAMED)),
        unit=unit,
        units=units,
        bounds=(low, high),
        more=count_clean_units(evidence, rate, confidence),
        regression=regression,
        notes=notes,
    )


def _measure_loss(last, old, unit, enough):
    """The change from an old checkpoint, over the items and slices that both tried."""
    cells = (
        np.char.add(np.char.add(c.task[c.of_item], "/"), c.item[c.of_item]) for c in (last, old)
    )
    names = [
        np.char.add(np.char.add(c.slices, "/"), cell)
        for c, cell in zip((last, old), cells, strict=True)
    ]
    _, ours, theirs = np.intersect1d(*names, return_indices=True)
    if not len(ours):
        raise UserError("the baseline tried none of these items; give a log of the same suite")
    is_ordered = last.is_ordered and old.is_ordered
    # The worst of many tries is worse than that of few, so as many count of each.
    k = np.minimum(last.tries[ours], old.tries[theirs])
    sides = []
    for c, cell in ((last, ours), (old, theirs)):
        value = c.first[cell].astype(float)
        if not is_ordered:
            value = all_of_k(k, c.successes[cell], c.tries[cell])
        sides.append(value)
    # An item succeeds where all of its slices do.
    row, item = np.unique(last.of_item[ours], return_index=True, return_inverse=True)[1:]
    new, before = (np.ones(len(row)) for _ in sides)
    np.multiply.at(new, item, sides[0])
    np.multiply.at(before, item, sides[1])
    difference = new - before
    evidence = unit_evidence(difference, last.family[last.of_item[ours[row]]], unit)
    shown = bool(log_capital_of_loss(evidence) >= enough)
    return Regression(len(row), float(difference.mean()), shown)


def junit(v: Verdict) -> str:
    """The verdict as a JUnit report: what does not pass is a failure, as its exit code is.

    Undecided is one of a type of its own. An error would be the infrastructure's, and what is
    skipped lets a pipeline go on that reads no exit code.
    """
    suite = ElementTree.Element(
        "testsuite",
        name="ramp nines gate",
        tests="1",
        failures=str(int(v.code != PASS)),
        errors="0",
    )
    case = ElementTree.SubElement(
        suite, "testcase", classname="ramp.nines", name=describe_nines(v.nines)
    )
    if v.code != PASS:
        ElementTree.SubElement(case, "failure", type=v.name, message=v.sentence)
    named = [f"failed: {', '.join(v.failing)}"] if v.failing else []
    ElementTree.SubElement(case, "system-out").text = "\n".join([v.sentence, *v.notes, *named])
    text = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
    return NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
