"""What a run of generations did: one record for each, in synth/history.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.files import replace_nonfinite, to_json, write_atomic
from ramp.synth.decide import SampleFigures
from ramp.synth.guard import CollapseGuard


@dataclass(frozen=True)
class BitAccounts:
    """Bits that a generation brought in, and bits that it lost."""

    verifier: float  # in: what the verifiers told by refusing samples
    real: float  # in: what held-out text got cheaper by, over the tokens that taught
    lost: float  # what it got dearer by

    @property
    def bits_in(self) -> float:
        """From both sources."""
        return self.verifier + self.real


@dataclass(frozen=True)
class GenerationResult:
    """All that is known of a generation, and the guard as it leaves it."""

    generation: int
    parent: int  # the generation whose weights it started from
    bpb: float  # bits per byte of held-out documents
    first_bpb: float  # the same, of the first model
    rare_bits: float | None  # bits per rare token; None where there is no rare token
    first_rare_bits: float | None
    hard_bits: float  # bits per token of the documents that the first model found hardest
    real_fraction: float  # of its training tokens
    kept: int
    sampled: int
    before: str  # what the guard decided before training, and why
    decision: str  # what it decided after training
    reasons: list[str]
    accounts: BitAccounts
    figures: SampleFigures
    guard: CollapseGuard

    @property
    def after(self) -> str:
        """The decision after training, with its reasons."""
        return f"{self.decision} {'; '.join(self.reasons)}"

    def __str__(self) -> str:
        return (
            f"generation {self.generation}: {self.bpb:.4f} bits per byte "
            f"({self.first_bpb:.4f} at first), kept {self.kept} of {self.sampled}, "
            f"real fraction {self.real_fraction:.2f}; {self.before}; then {self.after}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its record in history.json and in the run's report."""
        names = {"real_fraction": "m"}
        record = {names.get(name, name): value for name, value in vars(self).items()}
        record["accounts"] = asdict(self.accounts)
        record["figures"] = self.figures.to_json()
        record["guard"] = self.guard.to_json()
        return replace_nonfinite(record)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "GenerationResult":
        """The inverse of `to_json`."""
        values = dict(record)
        values["real_fraction"] = values.pop("m")
        values["accounts"] = BitAccounts(**values["accounts"])
        values["figures"] = SampleFigures.from_json(values["figures"])
        values["guard"] = CollapseGuard.from_json(values["guard"])
        return cls(**values)


def read_history(directory: Path) -> list[GenerationResult]:
    """The generations that are done; UserError for a damaged file."""
    path = directory / "history.json"
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); delete {directory} to begin the generations again"
        ) from None
    return [GenerationResult.from_json(record) for record in records]


def write_history(directory: Path, history: Sequence[GenerationResult]) -> None:
    """Replace the file by these generations."""
    records = [result.to_json() for result in history]
    write_atomic(directory / "history.json", to_json(records, indent=1) + "\n")
