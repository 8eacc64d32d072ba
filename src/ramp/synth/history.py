"""What a run of generations did: one record for each, in synth/history.json."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ramp.errors import UserError
from ramp.files import quote_path, read_kept, replace_nonfinite, to_json, write_kept
from ramp.synth.decide import SampleFigures
from ramp.synth.guard import CollapseGuard
from ramp.synth.ledger import LedgerRow

# Names that fields have in records, where they are not their own.
JSON_NAMES = {
    "real_fraction": "m",
    "rare_fraction": "rare",
    "good_generation": "good",
    "rollbacks": "rolled",
}


NUM_REASONS = 8  # kinds of reason that the page lists
NUM_SHOWN = 4  # kept samples, and as many dropped ones, that the page shows
MAX_SHOWN = 400  # characters of each


@dataclass(frozen=True)
class ShownSample:
    """A sample for the page."""

    id: str
    text: str
    reason: str  # why it was dropped, empty where it was kept


@dataclass(frozen=True)
class GenerationResult:
    """All that is known of a generation, and the guard as it leaves it."""

    generation: int
    parent: int  # the generation whose weights it started from
    bpb: float  # bits per byte of held-out documents
    first_bpb: float  # the same, of the first model
    control_bpb: float | None  # of real text alone for as many steps; None: no control
    rare_bits: float | None  # bits per rare token; None where there is no rare token
    first_rare_bits: float | None
    hard_bits: float  # bits per token of the documents that the first model found hardest
    real_fraction: float  # of its training tokens
    kept: int
    sampled: int
    before: str  # what the guard decided before training, and why
    decision: str  # what it decided after training
    reasons: list[str]
    refusals: dict[str, int]  # dropped samples by kind of reason
    shown: list[ShownSample]
    figures: SampleFigures
    guard: CollapseGuard

    @property
    def after(self) -> str:
        """The decision after training, with its reasons."""
        return f"{self.decision} {'; '.join(self.reasons)}".strip()

    def __str__(self) -> str:
        control = ""
        if self.control_bpb is not None:
            control = f", {self.control_bpb:.4f} by real text alone"
        return (
            f"generation {self.generation}: {self.bpb:.4f} bits per byte "
            f"({self.first_bpb:.4f} at first{control}), kept {self.kept} of {self.sampled}, "
            f"real fraction {self.real_fraction:.2f}; {self.before}; then {self.after}"
        )


def to_record(result: Any) -> dict[str, Any]:
    """The record of a dataclass in history.json and in ledgers; what is not finite becomes None."""

    def name_values(pairs):
        record = {JSON_NAMES.get(name, name): value for name, value in pairs}
        # A figure that is not measured on real text has no such fields.
        return {k: v for k, v in record.items() if v is not None or k not in ("real", "z_real")}

    return replace_nonfinite(asdict(result, dict_factory=name_values))


def from_record(kind: Any, record: Any) -> Any:
    """A value of the type `kind`, such as a dataclass, from its record."""
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return {name: from_record(arguments[1], item) for name, item in record.items()}
    if get_origin(kind) is list:
        return [from_record(arguments[0], item) for item in record]
    if arguments:  # X | None
        kind = arguments[0]
    if not record or not is_dataclass(kind):
        return record
    values = {}
    for name, hint in get_type_hints(kind).items():
        key = JSON_NAMES.get(name, name)
        if key in record:
            values[name] = from_record(hint, record[key])
    return kind(**values)


def read_history(directory: Path) -> list[GenerationResult]:
    """The generations that are done; UserError for a damaged file."""
    path = directory / "history.json"
    try:
        records = json.loads(read_kept(path))
        return [from_record(GenerationResult, record) for record in records]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); "
            f"`ramp synthesize {quote_path(directory.parent)} --force` begins the generations again"
        ) from None


def write_history(directory: Path, history: Sequence[GenerationResult]) -> None:
    """Replace the file by these generations."""
    records = [to_record(result) for result in history]
    write_kept(directory / "history.json", to_json(records, indent=1) + "\n")


def count_refusals(rows: Sequence[LedgerRow]) -> dict[str, int]:
    """How many samples were dropped for each kind of reason, the most frequent first."""
    # The figures in a reason differ from sample to sample, its kind does not.
    # The digits of a name, such as v2.py, are part of it.
    figure = r"(?<![\w.])[-+]?\d*\.?\d+"
    kinds = Counter(re.sub(figure, "N", row.reason) for row in rows if row.decision == "dropped")
    return dict(kinds.most_common(NUM_REASONS))


def choose_shown(rows: Sequence[LedgerRow]) -> list[ShownSample]:
    """Samples for the page: the first that were kept, and the first that were dropped."""
    shown = []
    for decision in ("kept", "dropped"):
        chosen = [row for row in rows if row.decision == decision][:NUM_SHOWN]
        # What was kept may have a reason for its weight, which is no refusal.
        is_dropped = decision == "dropped"
        shown += [
            ShownSample(row.id, row.text[:MAX_SHOWN], row.reason if is_dropped else "")
            for row in chosen
        ]
    return shown
