"""The table of the benchmark, from results written by hand: what a row says follows from what was recorded."""

import numpy as np
import pytest

from experiments.collapse import drift, table

GO, REPAIR, BACK = (
    ["go", "", "go", ""],
    ["repair", "too alike", "go", ""],
    ["warn", "z", "roll back", "bits rose"],
)


def guarded(kind, said, tail, guard=True):
    key = {"part": "guard", "kind": kind, "guarded": guard, "seed": 0}
    return {"key": key, "detected": 1, "tail": tail, "fell": tail[0] - min(tail), "said": said}


def trigram(policy, m, seed, bpb):
    return {"key": {"part": "trigram", "policy": policy, "m": m, "seed": seed}, "bpb": bpb}


def test_a_guards_row_tells_a_repair_from_a_roll_back_and_from_nothing():
    for said, act in (([GO, GO], "never"), ([GO, REPAIR], "generation 2, repair before training (too alike)"),
                      ([BACK, REPAIR], "generation 1, roll back after training (bits rose)")):  # fmt: skip
        assert table.first_act(said) == act
    rows = [guarded("none", [BACK], [0.5, 0.5]), guarded("blind", [REPAIR], [0.5, 0.48])]
    none, blind = table.guards([*rows, guarded("blind", [REPAIR], [0.5, 0.3], False)])
    assert none[1] == "never" and none[2].startswith("generation 1, roll back")
    assert blind[2].endswith(
        "(too alike); 0.020 at worst, 0.500 → 0.480; 1 seeds; unguarded → 0.300"
    )


def test_the_laws_row_holds_the_forecast_against_means_over_seeds():
    g, gain = np.arange(11), 0.8
    seen = drift.excess_loss(0.1, 0.3, g, gain)
    runs = [trigram("anchored", 0.3, s, list(2 + seen * (1 + (-1) ** s * 0.5))) for s in (0, 1)]
    replaced = trigram("replace", 0.0, 0, list(1 + drift.excess_loss(0.1, 0.0, g[:6], gain)))
    law = list(table.law([replaced, *runs]))
    assert [bar[0] for bar in law] == [
        "the law's forecast, trigram, m = 0.3, 10 generations: largest error"
    ]
    assert law[0][2] == "0%, mean 0%; 2 seeds, gain 0.80 (without: 19%, 14%)" and not list(
        table.law(runs)
    )


def test_shares_of_replaces_excess_are_paired_by_seed():
    rows = [trigram("replace", 0.0, s, [1, 0, 0, 0, 0, 1 + x]) for s, x in ((0, 1.0), (1, 2.0))]
    rows += [trigram("accumulate", 0.0, s, [1, 0, 0, 0, 0, 1 + x]) for s, x in ((1, 1.0), (0, 0.5))]
    assert list(table.first_tiers(rows))[1][2] == "0.500 ± 0.000"


def test_the_claim_is_paired_and_the_page_holds_every_part():
    def arm(name, seed, novel):
        score = dict.fromkeys(table.SHOWN, novel)
        return {
            "key": {"part": "claim", "arm": name, "seed": seed},
            "curve": [score, score],
            **score,
        }

    rows = [arm(name, s, x + s) for name, x in (("real", 0.2), ("guarded", 0.3)) for s in (0, 1)]
    gain, _ = table.claim([*rows, arm("guarded", 2, 9.0)])
    assert (
        gain[0].endswith("(real)") and gain[2] == "0.100 ± 0.000 over 2 seeds, 95% [+0.100, +0.100]"
    )
    assert "| guarded |" in table.report(rows) and table.report([]).count("\n") == 2
    html = "".join(table.sections([*rows, guarded("ten <b>", [REPAIR], [0.5, 0.5])]))
    assert "ten &lt;b&gt;" in html and "<svg" in html
    assert table.interval([1.0, 2.0, 3.0]) == pytest.approx((1.0, 3.0), abs=0.4)
