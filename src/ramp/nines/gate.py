"""May it ship? A verdict from the trials of the last checkpoint that holds however often one asks.

Valid after every trial, with items added at any time, whatever the order of the file. Assumed is
that units (families of items where they are named, else items) are independent draws of what the
system will meet, and that results did not decide how many items of a family were tried.
"""

import math
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from ramp.errors import UserError
from ramp.nines.audit import choose_unit, last_checkpoint, unit_evidence
from ramp.nines.intervals import Interval
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


@dataclass(frozen=True)
class Verdict:
    """What a gate says, and what it rests on."""

    code: int  # PASS, FAIL or UNDECIDED
    nines: float
    rate: float  # the bar
    confidence: float
    items: int
    failures: int
    unit: str  # what is independent: "item" or "family"
    units: int
    bounds: Interval  # of the success rate, each at `confidence`, at all times at once
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
        text = (
            f"{self.name.upper()}: {describe_nines(self.nines)} ({self.rate:.6g}) at "
            f"{self.confidence:.6g} confidence; {self.failures} of {self.items} items failed; "
            f"success is {say_bounds(*self.bounds)}"
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
    the baseline. Each is wrong with probability 1 - confidence at most.
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
    passed = log_capital_above(evidence, rate) >= enough
    against = log_capital_below(evidence, rate)
    regression = None
    notes = last.notes
    if baseline is not None:
        old = last_checkpoint(baseline)
        loss, regression = _measure_loss(last, old, unit, enough)
        notes += tuple(f"baseline: {note}" for note in old.notes)
        # Half of the capital is bet on each reason to fail.
        against = np.logaddexp(against, loss) - math.log(2)
    code = FAIL if against >= enough else PASS if passed else UNDECIDED
    return Verdict(
        code=code,
        nines=nines,
        rate=rate,
        confidence=confidence,
        items=last.items,
        failures=last.failures,
        unit=unit,
        units=int(evidence.count.sum()),
        bounds=confidence_sequence(evidence, confidence),
        more=count_clean_units(evidence, rate, confidence),
        regression=regression,
        notes=notes,
    )


def _measure_loss(last, old, unit, enough):
    """Log capital of bets that the system is worse than the old one, and the change itself."""
    names = (np.char.add(np.char.add(c.task, "/"), c.item) for c in (last, old))
    _, ours, theirs = np.intersect1d(*names, return_indices=True)
    if not len(ours):
        raise UserError("the baseline tried none of these items; give a log of the same suite")
    difference = last.passed[ours].astype(float) - old.passed[theirs]
    evidence = unit_evidence(difference, last.family[ours], unit)
    loss = log_capital_of_loss(evidence)
    shown = bool(loss >= enough + math.log(2))
    return loss, Regression(len(ours), float(difference.mean()), shown)


def junit(v: Verdict) -> str:
    """The verdict as a JUnit report: undecided is an error, since the test could not end."""
    suite = ElementTree.Element(
        "testsuite",
        name="ramp nines gate",
        tests="1",
        failures=str(int(v.code == FAIL)),
        errors=str(int(v.code == UNDECIDED)),
    )
    case = ElementTree.SubElement(
        suite, "testcase", classname="ramp.nines", name=describe_nines(v.nines)
    )
    if v.code != PASS:
        kind = "failure" if v.code == FAIL else "error"
        ElementTree.SubElement(case, kind, message=v.sentence)
    ElementTree.SubElement(case, "system-out").text = v.sentence
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
