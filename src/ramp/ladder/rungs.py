"""The rungs, from a count to the model that `ramp run` trains: a list of data.

A rung names the settings of `config.Model` (and `optimizer`, of `config.Train`) that differ from the rung below, why, and
how it is judged. The main line is what every later rung keeps; a branch is tried on top of a rung and then left.

To add one, append a `Rung`: `uv run ramp ladder --only N` then trains it and the rung below on its probe and on the corpus.
If no probe of `ladder/probes.py` isolates what it is for, write one there: a function that makes rows, and its chance level.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ramp.errors import UserError

FAIL, PASS = (
    0.25,
    0.9,
)  # of the way from chance to the ceiling: at most for the rung below, at least for this one


@dataclass(frozen=True)
class Rung:
    number: int
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # that differ from the rung below
    probe: str = ""  # of `probes.PROBES`; judged by FAIL and PASS
    measure: str = ""  # judged by `margin` instead; a key of `run.MEASURES`
    margin: float = 0.0  # this rung's measure must be lower than the other's by this share
    main: bool = True  # later rungs keep it; every rung stands on the last such one before it
    motive: str = ""
    train: Mapping[str, Any] = field(
        default_factory=dict
    )  # of `config.Train`, on the corpus, for this rung alone


BARE = {
    "depth": 0,
    "num_heads": 1,
    "norm": False,
    "residual": False,
    "rope": False,
    "qk_norm": False,
    "mlp": "none",
}
RUNGS = (
    Rung(0, "unigram", motive="Some bytes are commoner than others: a table of 256 counts knows that much, and no more."),
    Rung(1, "bigram, counted", measure="bits per byte", margin=0.05,
         motive="What comes next depends on what came last: a table of 256 x 256 counts, read off the text in one pass."),
    Rung(2, "bigram, learned", {**BARE, "optimizer": "adamw", "width": 256}, measure="bits per byte", margin=-0.0028,
         train={"lr_scale": 3.0, "beta2": 0.99, "decay": 0.8},  # slower and smoother: it is to be as good as exact counts
         motive="The same table, found by gradient descent: from here on nothing is counted, everything is learned."),
    Rung(3, "a fixed window", {"depth": 1, "width": 0, "token_mixer": "window_pattern", "num_heads": 8, "mlp": "relu2"}, "distance",
         motive="A bigram forgets. Eight places, a matrix each, and a layer on top (Bengio et al. 2003) remember seven more."),
    Rung(4, "the mean of the past", {"token_mixer": "mean", "num_heads": 1, "mlp": "none"}, "occurred",
         motive="A window has an edge; the average of all before has none. (The layer on top goes; rung 8 brings it back.)"),
    Rung(5, "an attention head", {"token_mixer": "attention"}, "recall",
         motive="A mean gives every token the same say. Scores of what is asked against what is there pick the answer."),
    Rung(6, "positions", {"rope": True}, "order",
         motive="Attention sees a bag: 'dog bites man' is 'man bites dog'. Turned by place (RoPE), scores know distance."),
    Rung(7, "several heads", {"num_heads": 4}, "look-ups",
         motive="One head makes one average. Asked for several things at once, it blurs them and forgets which is which."),
    Rung(8, "feed-forward", {"mlp": "relu2"}, "digits",
         motive="Heads add up what they fetch. A function of fetched things that is no sum needs a layer that bends."),
    Rung(9, "residual stream and depth", {"depth": 4, "residual": True}, "two hops",
         motive="To look up what was looked up takes a second layer, and a stream that carries what the first one found."),
    Rung(10, "normalisation", {"norm": True}, "deep",
         motive="Twelve layers that add to one stream, driven hard, blow it up. Dividing by its size before each part tames it."),
    Rung(11, "QK-norm", {"qk_norm": True}, "deep", measure="attention score", margin=0.5,
         motive="Nothing bounds the scores of attention; driven hard, they grow until one token takes all and learning stops."),
    Rung(12, "SwiGLU", {"mlp": "swiglu"}, measure="tokens to the loss below", margin=0.05,
         motive="A feed-forward layer that can switch its own units off and on (a gate), at the same number of weights."),
    Rung(13, "grouped queries", {"num_kv_heads": 1}, measure="cache bytes a token", margin=0.5, main=False,
         motive="Writing, a model reads the keys and values of all heads again at every token. Let four heads share one."),
    Rung(14, "Muon", {"optimizer": "muon"}, measure="tokens to the loss below", margin=0.05,
         motive="Adam scales each weight alone. A matrix has directions: make every one of them move (Jordan et al. 2024)."),
    Rung(15, "value embeddings", {"value_embeds": True}, measure="tokens to the loss below", margin=0.05, main=False,
         motive="What a token offers to others need not squeeze through the stream: a table of values per layer, gated."),
    Rung(16, "x0 and residual scalars", {"x0_scalars": True}, measure="tokens to the loss below", margin=0.05, main=False,
         motive="Deep layers lose sight of the token itself: two learned numbers a layer mix the embedding back in."),
    Rung(17, "sliding windows", {"window_pattern": "SSSL"}, measure="FLOPs a token", margin=0.01, main=False,
         motive="Most of what a token needs is near: three layers of four look at a quarter of the context and cost less."),
)  # fmt: skip


def select_rungs(number: int) -> Rung:
    for rung in RUNGS:
        if rung.number == number:
            return rung
    raise UserError(f"there is no rung {number}; the ladder has 0 to {RUNGS[-1].number}")


def rung_below(rung: Rung) -> Rung | None:
    """The rung that this one must beat."""
    return next((r for r in reversed(RUNGS) if r.main and r.number < rung.number), None)


def settings(rung: Rung) -> dict[str, Any]:
    """All settings of a rung: those of the rungs it stands on, then its own. Empty for a table of counts."""
    under = rung_below(rung)
    return (settings(under) if under else {}) | dict(rung.settings)
