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

FAIL, PASS = 0.25, 0.9  # of the way from chance to the ceiling: at most for the rung below, at least for this one


@dataclass(frozen=True)
class Rung:
    number: int
    name: str
    motive: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # that differ from the rung below
    probe: str = ""  # of `probes.PROBES`; judged by FAIL and PASS
    measure: str = ""  # judged by `margin` instead; a key of `run.MEASURES`
    margin: float = 0.0  # this rung's measure must be lower than the other's by this share
    main: bool = True  # later rungs keep it; every rung stands on the last such one before it


BARE = {
    "depth": 0, "heads": 1, "norm": False, "residual": False, "rope": False, "qk_norm": False, "mlp": "none",
    "optimizer": "adamw",
}  # fmt: skip
RUNGS = (
    Rung(0, "unigram", "Some bytes are commoner than others: a table of 256 counts knows that much, and no more."),
    Rung(1, "bigram, counted",
         "What comes next depends on what came last: a table of 256 x 256 counts, read off the text in one pass.",
         measure="bits per byte", margin=0.05),
    Rung(2, "bigram, learned",
         "The same table, but found by gradient descent: from here on nothing is counted, everything is learned.",
         {**BARE, "width": 256}, measure="bits per byte", margin=-0.0028),
    Rung(3, "a fixed window",
         "A bigram forgets. Eight places, a matrix each, and a layer on top (Bengio et al. 2003) remember seven bytes more.",
         {"depth": 1, "width": 0, "mix": "window", "heads": 8, "mlp": "relu2"}, "distance"),
    Rung(4, "the mean of the past",
         "A window has an edge; the average of all before has none. (The layer on top goes; rung 8 brings it back.)",
         {"mix": "mean", "heads": 1, "mlp": "none"}, "occurred"),
    Rung(5, "an attention head",
         "A mean gives every token the same say. Scores of what is asked against what is there pick the one that answers.",
         {"mix": "attention"}, "recall"),
    Rung(6, "positions",
         "Attention sees a bag: 'dog bites man' is 'man bites dog'. Turned by their place (RoPE), scores know distance.",
         {"rope": True}, "order"),
    Rung(7, "several heads",
         "One head makes one average. Asked for several things at once, it blurs them and forgets which is which.",
         {"heads": 4}, "look-ups"),
    Rung(8, "feed-forward",
         "Heads add up what they fetch. A function of two fetched things that is no sum needs a layer that bends.",
         {"mlp": "relu2"}, "modular sum"),
    Rung(9, "residual stream and depth",
         "To look up what was looked up takes a second layer, and a stream that carries what the first one found.",
         {"depth": 4, "residual": True}, "two hops"),
    Rung(10, "normalisation",
         "Twelve layers that add to one stream, driven hard, blow it up. Dividing by its size before each part keeps it sane.",
         {"norm": True}, "deep"),
    Rung(11, "QK-norm",
         "Nothing bounds the scores of attention; driven hard, they grow until one token takes all and learning stops.",
         {"qk_norm": True}, "deep", measure="attention score", margin=0.5),
    Rung(12, "SwiGLU",
         "A feed-forward layer that can switch its own units off and on (a gate), at the same number of weights.",
         {"mlp": "swiglu"}, measure="tokens to the loss below", margin=0.05),
    Rung(13, "grouped queries",
         "While it writes, a model reads the keys and values of all its heads again at every token. Let four heads share one.",
         {"kv_heads": 1}, measure="cache bytes a token", margin=0.5, main=False),
    Rung(14, "Muon",
         "Adam scales each weight alone. A matrix has directions: make every one of them move (Jordan et al. 2024).",
         {"optimizer": "muon"}, measure="tokens to the loss below", margin=0.05),
    Rung(15, "value embeddings",
         "What a token offers to others need not squeeze through the stream: a table of values per layer, gated.",
         {"value_embeds": True}, measure="tokens to the loss below", margin=0.05, main=False),
    Rung(16, "x0 and residual scalars",
         "Deep layers lose sight of the token itself: two learned numbers a layer mix the embedding back in.",
         {"x0_scalars": True}, measure="tokens to the loss below", margin=0.05, main=False),
    Rung(17, "sliding windows",
         "Most of what a token needs is near: three layers of four look at a quarter of the context and cost less.",
         {"window": "SSSL"}, measure="FLOPs a token", margin=0.01, main=False),
)  # fmt: skip


def numbered(number: int) -> Rung:
    for rung in RUNGS:
        if rung.number == number:
            return rung
    raise UserError(f"there is no rung {number}; the ladder has 0 to {RUNGS[-1].number}")


def below(rung: Rung) -> Rung | None:
    """The rung that this one must beat."""
    return next((r for r in reversed(RUNGS) if r.main and r.number < rung.number), None)


def settings(rung: Rung) -> dict[str, Any]:
    """All settings of a rung: those of the rungs it stands on, then its own. Empty for a table of counts."""
    under = below(rung)
    return (settings(under) if under else {}) | dict(rung.settings)
