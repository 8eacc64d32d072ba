"""What the trials at hand prove without a forecast: the ladder of levels, and how much a demo flatters.

An item that failed once fails again, so repeats prove little: certification counts distinct items, each by its worst
first try.
"""

import hashlib

import numpy as np
from scipy.special import logit

from ramp.errors import UserError
from ramp.nines import growth, intervals, trials


def ladder(t: trials.Table, nines: float = 2) -> list[tuple[str, bool, str]]:
    """(level, reached, why) from "demo" up, by the trials of the last checkpoint; a level needs all those below it."""
    wins, tries, slices, first = last_cells(t)
    rates = {s: float((wins[slices == s] / tries[slices == s]).mean()) for s in np.unique(slices)}
    base = "base" if "base" in rates else str(slices[0])
    worst, mine = min(rates.values()), slices == base

    k = int(min(8, tries[mine].min()))
    shown = intervals.pass_at_k(k, wins[mine], tries[mine])
    found = [("demo", shown >= 0.9, f"pass@{k} {shown:.3f} on {base} (at least .9)")]

    k, low, drop = (
        int(min(4, tries.min())),
        intervals.jeffreys(first.sum(), len(first), 0.8)[0],
        rates[base] - worst,
    )
    every = intervals.pass_hat_k(k, wins, tries)
    short = "" if k == 4 else f"; four tries an item are needed, there are {k}"
    why = f"lower bound {low:.3f} (.9), pass^{k} {every:.3f} (.8), worst slice {drop:.3f} below base (.1){short}"
    found.append(("pilot", low >= 0.9 and every >= 0.8 and drop <= 0.1 and k == 4, why))

    failures = int(len(first) - first.sum())
    need = intervals.trials_to_demonstrate(1 - 10.0**-nines, failures)
    why = f"{len(first)} distinct items with {failures} failures; {need:,} are needed so; worst slice {worst:.3f}"
    found.append(
        (f"production-{nines:g}", len(first) >= need and worst >= 1 - 10.0 ** -(nines - 1), why)
    )

    found.append(("sustained", *_sustained(t)))
    return [
        (name, all(ok for _, ok, _ in found[: i + 1]), why)
        for i, (name, _, why) in enumerate(found)
    ]


def _sustained(t: trials.Table) -> tuple[bool, str]:
    """Whether failures thin out over the checkpoints as rounds of repair: one try an item and round, the failures of a
    round spread evenly over it."""
    x = trials.checkpoint(t)
    mine = t["run"] == t["run"][x.argmax()]
    failures, tried = [], 0
    for at in np.unique(x[mine]):
        first = last_cells(trials.select(t, mine & (x == at)))[3]
        failed = int(len(first) - first.sum())
        failures += [tried + len(first) * (j + 0.5) / failed for j in range(failed)]
        tried += len(first)
    try:
        r = growth.repair(np.array(failures), tried)
    except UserError as error:
        return False, str(error)
    left = "no end in sight" if r.remaining is None else f"{r.remaining:.3g} left"
    ahead = f"in as many trials again {r.next_failures[0]:.3g} failures, by Goel-Okumoto {r.next_failures[1]:.3g}, {left}"
    span = f"{r.beta:.2f} [{r.interval[0]:.2f} .. {r.interval[1]:.2f}]"
    return r.interval[
        1
    ] < 1, f"failures thin out where Crow-AMSAA's exponent is below 1: {span}; {ahead}"


def last_cells(t: trials.Table) -> tuple[np.ndarray, ...]:
    """Of the last checkpoint: wins, tries and slice by (task, item, slice), and [I] the first try at each distinct item,
    over all slices the worst of them, so that a repeat never counts as evidence of its own.

    Raises UserError where a trial has no item, or the last checkpoint is of several runs.
    """
    if (t["item"] == "").any():
        raise UserError(
            "certification needs the item of every trial; repeats of unnamed items prove nothing"
        )
    x = trials.checkpoint(t)
    t = trials.select(t, x == x.max())
    if len(np.unique(t["run"])) > 1:
        what = "the last checkpoint is of several runs; choose one with --where run=NAME"
        raise UserError(f"{what} ({t['run'][0]}, ...)")
    at, of = trials.groups(t["task"], t["item"], t["slice"])
    item = trials.groups(t["task"], t["item"])[1]
    passed = (t["success"] >= 1 - 1e-9).astype(float)
    first = np.ones(item.max() + 1)
    np.minimum.at(first, item[at], passed[at])
    return np.bincount(of, passed), np.bincount(of).astype(float), t["slice"][at], first


# ---- the audit of a demo --------------------------------------------------------------------------------------------


def permutation(hardness: np.ndarray, shown: np.ndarray, draws: int = 4000, seed: int = 0) -> float:
    """P-value that as many items drawn at random are as easy as those shown. hardness: [I], from other systems."""
    rng = np.random.default_rng(seed)
    observed = hardness[shown].mean()
    means = np.array(
        [hardness[rng.permutation(len(hardness))[: len(shown)]].mean() for _ in range(draws)]
    )
    return float((1 + (means <= observed + 1e-12).sum()) / (1 + draws))


def split_halves(k: int, rerun: float) -> float:
    """Takes after which a clean run of k items is likelier than not, each passing with probability `rerun`."""
    clean = rerun**k
    return (
        float(np.log(0.5) / np.log1p(-clean))
        if 0 < clean < 0.5
        else (1.0 if clean > 0 else float("inf"))
    )


def seal(names: list[str]) -> str:
    """A hash of item ids, to be published before a demo is run: what was not sealed can have been chosen."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def audit(t: trials.Table, run: str, shown: list[str], sealed: str | None = None) -> dict:
    """How much a demo of `run` on the items `shown` flatters it, from trials of it and of others on the same suite.

    Raises UserError where the run or an item of the demo has no trials, or nothing was left out of the demo.
    """
    mine, others = t["run"] == run, t["run"] != run
    suite, of = np.unique(t["item"], return_inverse=True)
    missing = [i for i in shown if i not in suite]
    if not mine.any() or missing or not shown:
        what = f"the demo item {(missing or ['?'])[0]!r}" if mine.any() else f"the run {run!r}"
        raise UserError(
            f"{what} has no trials; an audit needs the demo's items among the trials of the suite"
        )
    if len(set(shown)) >= len(suite):
        raise UserError(
            "the demo shows the whole suite; nothing was left out that could have been picked from"
        )

    wins, tries = np.bincount(of, t["success"] * mine), np.bincount(of, mine)
    easy = logit((np.bincount(of, t["success"] * others) + 0.5) / (np.bincount(of, others) + 1))
    place = np.flatnonzero(np.isin(suite, shown))
    out: dict = {"items": len(place), "suite": len(suite), "seal": seal(shown)}
    out["sealed"] = None if sealed is None else sealed == out["seal"]
    out["p_value"] = permutation(-easy, place) if others.any() else None
    demo = mine & np.isin(t["item"], shown)
    out["rerun"], out["suite_mean"] = (
        float(t["success"][demo].mean()),
        float(t["success"][mine].mean()),
    )
    out["takes"] = split_halves(len(place), out["rerun"])
    k = int(min(8, tries.min()))
    if k >= 2:
        out |= {
            "k": k,
            "pass_at_k": intervals.pass_at_k(k, wins, tries),
            "pass_hat_k": intervals.pass_hat_k(k, wins, tries),
        }
    elif (rho := _expected_icc(t, run)) is not None:
        out |= {"k": 8, "pass_hat_k": intervals.beta_binomial_pass_hat_k(8, out["suite_mean"], rho)}
    out["slices"] = {
        str(s): float(t["success"][mine & (t["slice"] == s)].mean())
        for s in np.unique(t["slice"][mine])
    }
    return out


def _expected_icc(t: trials.Table, run: str) -> float | None:
    """The correlation of tries to expect of a run that tried no item twice, from those that did; None: too few did."""
    at, of = trials.groups(t["run"], t["task"])
    rate, rho, mine = np.bincount(of, t["success"]) / np.bincount(of), [], t["run"][at] == run
    for g in range(len(at)):
        c = trials.select(t, of == g)
        item = np.unique(c["item"], return_inverse=True)[1]
        rho.append(
            intervals.intraclass_correlation(np.bincount(item, c["success"]), np.bincount(item))
        )
    known = np.isfinite(rho) & ~mine
    if known.sum() < 3:
        return None
    others = rate[known], np.array(rho)[known], t["task"][at][known]
    return float(
        np.mean(
            [
                intervals.predict_correlation(*others, rate[g], t["task"][at[g]])
                for g in np.flatnonzero(mine)
            ]
        )
    )
