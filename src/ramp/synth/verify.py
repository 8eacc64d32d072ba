"""Verifiers: what they say of texts, and what can be said of them before they are trusted.

A verifier is a user's function from a text to true or false, or to a score from 0 to 1. Real
documents are right, so one that refuses them is wrong there: a kind of text that a verifier is
blind to dies out. The same documents cut in half and shuffled are wrong, and tell what it takes for
right. No jax.
"""

import hashlib
import numbers
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import numpy as np
from numpy import ndarray
from scipy.stats import hypergeom

from ramp.config import Synthesize, Thresholds
from ramp.errors import UserError
from ramp.nines.intervals import clopper_pearson
from ramp.synth.docs import Docs
from ramp.synth.guard import SURE
from ramp.user_code import call, is_user_code, load_object

OWN = ("clean", "typical")  # verifiers that come with ramp

MIN_DOCUMENTS = 8  # of a cell that is judged
MAX_SHOWN = 3  # cells that are named

# Chance of calling a verifier blind that refuses at random.
BLIND_LEVEL = 0.001

# A verifier that accepts so much of damaged text, of what it accepts of real text, does not see the
# damage.
UNSEEN = 0.9

Judge = Callable[[Sequence[ndarray]], list[str]]  # why documents are refused, empty where accepted


@dataclass(frozen=True)
class VerifierReport:
    """What a verifier does to real documents, whole and damaged."""

    name: str
    real: float  # fraction that is accepted
    cut: float  # of the first halves
    shuffled: float  # of the same tokens in another order
    milliseconds: float  # for a text
    faults: tuple[str, ...]  # in words; with one of them, what it accepts must not teach
    refusal: str  # why a real document was refused, empty where none was

    def __str__(self) -> str:
        text = (
            f"verifier {self.name} accepts {self.real:.0%} of real documents, {self.cut:.0%} of "
            f"their first halves and {self.shuffled:.0%} of the same shuffled"
        )
        # What is accepted whatever was done to it is not looked at.
        for fraction, damage in ((self.cut, "the end of a text"), (self.shuffled, "order")):
            if fraction >= UNSEEN * self.real > 0:
                text += f"; it is blind to {damage}"
        return "; ".join([text, *self.faults])


# What a user's function says


MAX_HUNG = 2  # texts on which a verifier may not return


def is_clean(text: str) -> bool:
    """Whether there is something to read, in whole characters.

    A cut at the end may halve the last character.
    """
    return bool(text.strip()) and "\ufffd" not in text.rstrip("\ufffd")


def load_function(name: str, setting: str) -> Callable[[str], object]:
    """A function from a text, `clean` or PATH.py:FUNCTION of a setting; `UserError` for others."""
    if name == "clean":
        return is_clean
    if not is_user_code(name):
        raise UserError(f"{setting}: {name!r} is neither {', '.join(OWN)} nor PATH.py:FUNCTION")
    function = load_object(name, setting, FunctionType)
    if not callable(function):
        raise UserError(f"{setting}: {name} is no function; name one that takes a text")
    return function


def list_refusals(
    name: str, function: Callable[[str], object], texts: Sequence[str], t: Synthesize
) -> list[str]:
    """Why each text is refused, empty where it is accepted.

    True is accepted, and so is a score from `min_score` to 1. Anything else, and a function that
    raises, refuses: a string that says "no" is true to Python. So does one that does not return in
    time; `UserError` where that happens with more than `MAX_HUNG` texts.
    """
    hung: list[str] = []

    def ask(text):
        # A verifier may stumble over what a model writes, and goes on with the next text.
        try:
            return function(text)
        except (Exception, SystemExit) as error:
            return error

    def explain(text):
        try:
            said = call(ask, text, seconds=t.verifier_seconds, what=f"the verifier {name}")
        except UserError as error:
            hung.append(text)
            # What never returns goes on in its thread, so few of them are borne.
            if len(hung) > MAX_HUNG:
                raise UserError(
                    f"{error}; the first of {len(hung)} texts: {hung[0][:80]!r}"
                ) from None
            return f"{name} has not returned after {t.verifier_seconds:g} seconds"
        if isinstance(said, BaseException):
            return f"{name} raised {type(said).__name__}: {said}"[:200]
        if isinstance(said, bool | np.bool_):
            return "" if said else f"{name} says no"
        if isinstance(said, numbers.Real) and 0 <= float(said) <= 1:
            score = float(said)
            return "" if score >= t.min_score else f"{name} gives {score:.2f} of {t.min_score:g}"
        return f"{name} returned {said!r}, neither true or false nor a score from 0 to 1"[:200]

    return [explain(text) for text in texts]


def hash_files(names: Sequence[str]) -> str:
    """A fingerprint of the users' files behind these names, so that an edit is noticed."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        if is_user_code(name):
            path = Path(name.rpartition(":")[0]).expanduser()
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Before they are trusted


def examine(
    name: str,
    judge: Judge,
    docs: Sequence[ndarray],
    cells: Docs,
    word: Callable[[int], str],
    limits: Thresholds,
) -> tuple[VerifierReport, ndarray]:
    """Try a verifier on real documents, on their first halves, and on them shuffled.

    cells: of each document, such as its tokens. word: what a cell is called. Returns the report,
    and [3, N] whether each document was accepted whole, cut and shuffled. `UserError` for one that
    fails on every real document: that is its author's mistake.
    """
    halves = [doc[: max(1, len(doc) // 2)] for doc in docs]
    shuffled = [np.random.default_rng(i).permutation(doc) for i, doc in enumerate(docs)]
    began = time.perf_counter()
    refusals = judge(docs)
    milliseconds = 1000 * (time.perf_counter() - began) / max(len(docs), 1)
    if all(" raised " in reason or " returned " in reason for reason in refusals):
        raise UserError(f"{name} fails on every real document, first: {refusals[0]}; mend it")
    accepted = np.array([refusals, judge(halves), judge(shuffled)]) == ""
    faults = find_faults(name, cells, accepted[0], word, limits)
    refusal = next((reason for reason in refusals if reason), "")
    rates = accepted.mean(axis=1).tolist()
    return VerifierReport(name, *rates, milliseconds, faults, refusal), accepted


def find_faults(
    name: str, docs: Docs, accepted: ndarray, word: Callable[[int], str], limits: Thresholds
) -> tuple[str, ...]:
    """What is wrong with a verifier, from real documents and whether it accepted each.

    word: what a token is called. The faults in words, empty where there is none.
    """
    faults = []
    right, n = int(accepted.sum()), len(accepted)
    _, most = clopper_pearson(right, n, SURE)
    if most < limits.min_real_pass:
        faults.append(
            f"{name} refuses {n - right} of {n} real documents: it would teach the rest alone"
        )
    for token, has, passed in find_blind_cells(docs, accepted, limits.max_imbalance)[:MAX_SHOWN]:
        others = (right - passed) / max(n - has, 1)
        faults.append(
            f"{name} is blind to real documents with {word(token)!r}: "
            f"it accepts {passed} of {has}, and {others:.0%} of the others"
        )
    return tuple(faults)


def find_blind_cells(
    docs: Docs, accepted: ndarray, max_imbalance: float
) -> list[tuple[int, int, int]]:
    """(token, documents with it, those accepted) of tokens whose documents are hardly accepted.

    Every token is a cell that nobody had to declare. Reported are those accepted `max_imbalance`
    times less often than other documents, where chance alone would not do that to any token
    (hypergeometric, Bonferroni); the least likely by chance first.
    """
    n, right = len(docs), int(accepted.sum())
    pairs = np.unique(np.stack([docs.owner, docs.flat]), axis=1)
    token, column = np.unique(pairs[1], return_inverse=True)
    has = np.bincount(column)
    passed = np.bincount(column, accepted[pairs[0]]).astype(int)
    judged = (has >= MIN_DOCUMENTS) & (has < n)
    chance = hypergeom.cdf(passed, n, right, has)
    others = (right - passed) / np.maximum(n - has, 1)
    is_low = passed / has * max_imbalance < others
    blind = np.flatnonzero(judged & is_low & (chance * judged.sum() < BLIND_LEVEL))
    order = blind[np.argsort(chance[blind], kind="stable")]
    return [(int(token[i]), int(has[i]), int(passed[i])) for i in order]


def precision_bound(accepted: float, tp: int, fp: int, n: int) -> float:
    """Upper 95% bound of the precision of what is accepted, from an audit of the verifiers.

    accepted: their acceptance rate. tp of n right texts passed, and fp of n wrong ones. The
    fraction pi of right samples follows from accepted = pi TPR + (1-pi) FPR. The bound takes the
    lower bound of the FPR: a verifier that refuses much is not to blame for what is not known of
    it. One that takes wrong texts as often as right ones has precision 0: it tells nothing.
    """
    tpr = tp / max(n, 1)
    if tp <= fp:
        return 0.0
    fpr, _ = clopper_pearson(fp, n, 0.9)
    right = np.clip((accepted - fpr) / (tpr - fpr), 0, 1)
    passed = right * tpr + (1 - right) * fpr
    return float(right * tpr / passed) if passed else 0.0
