"""One flipped byte in any file of a run: what every reader of the run makes of it.

`Flips` holds a run that is whole and what each command prints for it. `try_flip` damages one byte,
runs the commands that may read the file, and returns what is wrong: a traceback, an output that
differs without a word about the file, or a remedy that does not help.
"""

import contextlib
import io
import logging
import random
import re
import shlex
import shutil
import subprocess
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from ramp import cli, files
from ramp.reporting.report import update_report
from ramp.stages import STAGES
from ramp.synth.history import read_history, write_history

# How often a folder is chosen; "" is the run's own files, and others are chosen once.
SHARES = {"": 5, "checkpoints": 5, "data": 3, "synth": 3}


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, what it printed, what it warned of, what it wrote."""

    code: int
    printed: str
    said: str
    written: dict[str, bytes]


@dataclass
class Flips:
    """A whole run, and what the commands make of it."""

    run: Path
    seed: int
    retrain: float = 0.2  # how often a command that trains again is tried, beside one that reads
    only: str = ""  # a pattern of the files to damage
    commands: int = 2  # tried with each flip
    whole: Path = field(init=False)
    expected: dict[str, Outcome] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.whole = self.run.with_name("whole")
        shutil.copytree(self.run, self.whole)

    # Commands

    def list_commands(self, file: Path) -> list[str]:
        """The commands that read a file, those that train again behind a `+`."""
        run, parts = self.run, file.relative_to(self.run).parts
        chat = f"chat {run} --ask Hello --tokens 4"
        first, name = parts[0], parts[-1].lstrip(".")
        if first == "checkpoints":
            stage = parts[1]
            if stage == "sft":
                return [f"run {run}", f"+reinforce {run}"]
            commands = [f"{chat} --stage {stage}", f"export {run} --stage {stage} --out {run}.out"]
            # What resumes from its own steps, and what begins from its best one.
            resumes = {"pretrain": ["pretrain", "finetune"], "finetune": ["finetune", "dpo"]}
            resumes = resumes.get(stage, [stage.split("-")[0]])
            return commands + [f"+{again} {run}" for again in resumes]
        if first == "data" and parts[1].lstrip(".").startswith(("train", "val")):
            return [f"eval {run}", f"+pretrain {run}"]
        if first == "data" and name.startswith("tokenizer"):
            return [chat, f"sample {run} --prompt The --stage pretrain", f"+dpo {run}"]
        if first == "synth":
            return [f"synth why {run} g1-00003", f"run {run}", f"+synthesize {run}"]
        if first in ("trials.jsonl", "forecasts.jsonl"):
            return [f"nines forecast {run}/trials.jsonl", f"+finetune {run}"]
        if first.lstrip(".").startswith(("config", "report.json")):
            return [f"run {run}", chat, f"report {run}", f"+dpo {run}"]
        if first in ("metrics.jsonl", "samples.jsonl"):
            return [f"report {run}", f"+dpo {run}"]
        # Pages are written anew by what makes them. Of the rest nothing is read, such as
        # TensorBoard's curves, which have checksums of their own.
        return [f"report {run}" if "provenance" in first or "report" in first else f"run {run}"]

    def execute(self, command: str) -> Outcome:
        """One command in this process, or a shell's where it is not ramp's."""
        out, err = io.StringIO(), io.StringIO()
        files.warn_once.cache_clear()
        handler = logging.StreamHandler(err)
        logging.getLogger().addHandler(handler)
        shutil.rmtree(Path(f"{self.run}.out"), ignore_errors=True)
        words = shlex.split(command)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                if words[0] in ("sed", "rm"):
                    code = subprocess.run(words, check=False).returncode
                else:
                    code = cli.main(words)
        except BaseException:
            err.write(traceback.format_exc())
            code = -1
        finally:
            logging.getLogger().removeHandler(handler)
        return Outcome(code, self.mask(out.getvalue()), err.getvalue(), self.read_written())

    def mask(self, text: str) -> str:
        """What was printed, without times."""
        return re.sub(r"[\d,.]+( tokens/s| s\b)", "#", text)

    def read_written(self) -> dict[str, bytes]:
        """What commands write for people: the page, and an exported folder."""
        out = Path(f"{self.run}.out")
        paths = [self.run / "report.html", *(p for p in out.rglob("*") if p.is_file())]
        return {str(p): p.read_bytes() for p in paths if p.exists()}

    def prepare(self, command: str) -> str:
        """Make the run whole again, or half a run for a command that is to go on; its words."""
        shutil.rmtree(self.run)
        shutil.copytree(self.whole, self.run)
        if not command.startswith("+"):
            return command
        stage = command[1:].split()[0]
        with contextlib.redirect_stdout(io.StringIO()):
            update_report(self.run, stage, {"done": False})
        folder = "synthesize-2" if stage == "synthesize" else stage
        steps = sorted((self.run / "checkpoints" / folder).iterdir())
        shutil.rmtree(steps[-1])
        if stage == "synthesize":
            write_history(self.run / "synth", read_history(self.run / "synth")[:1])
        return command[1:]

    def expect(self, command: str) -> Outcome:
        """What the command does where nothing is damaged."""
        if command not in self.expected:
            self.expected[command] = self.execute(self.prepare(command))
            assert self.expected[command].code == 0, (command, self.expected[command].said[-3000:])
        return self.expected[command]

    # Flips

    def list_files(self) -> list[Path]:
        """Every file of the run."""
        return sorted(path for path in self.run.rglob("*") if path.is_file())

    def choose_file(self) -> Path:
        """A folder at random, a kind of its files, and one of that kind.

        So a small file is as likely as a big one, and one of few kinds as one of many.
        """
        folders: dict[str, dict[str, list[Path]]] = {}
        for path in sorted(self.whole.rglob("*")):
            name = str(path.relative_to(self.whole))
            if path.is_file() and path.stat().st_size and re.search(self.only, name):
                # Steps, generations and hashes in names tell no kinds apart.
                kind = re.sub(r"[0-9a-f]{16,}|\d+", "#", name)
                folder = "" if path.parent == self.whole else name.split("/")[0]
                folders.setdefault(folder, {}).setdefault(kind, []).append(path)
        weights = [SHARES.get(folder, 1) for folder in sorted(folders)]
        kinds = folders[self.draw.choices(sorted(folders), weights)[0]]
        chosen = self.draw.choice(kinds[self.draw.choice(sorted(kinds))])
        return self.run / chosen.relative_to(self.whole)

    def try_flip(self, file: Path | None = None) -> tuple[str, list[str]]:
        """Flip a bit of a byte before each of two commands that read the file.

        Returns what was done, and what is wrong with what followed, [] where nothing is.
        """
        file = file or self.choose_file()
        size = (self.whole / file.relative_to(self.run)).stat().st_size
        at, bit = self.draw.randrange(size), self.draw.randrange(8)
        commands, wrong = self.list_commands(file), []
        # Training again takes ten times as long as reading, so it is tried less often.
        weights = [self.retrain if command.startswith("+") else 1 for command in commands]
        for command in dict.fromkeys(self.draw.choices(commands, weights, k=self.commands)):
            want = self.expect(command)
            words = self.prepare(command)
            # Half a run may lack the file.
            if not file.exists() or file.stat().st_size <= at:
                continue
            data = bytearray(file.read_bytes())
            data[at] ^= 1 << bit
            file.write_bytes(bytes(data))
            wrong += [f"`{command}`: {fault}" for fault in self.judge(words, want, file)]
        return f"{file.relative_to(self.run)} byte {at} bit {bit}", wrong

    def judge(self, command: str, want: Outcome, file: Path) -> list[str]:
        """What is wrong with what a command does beside a damaged file."""
        got = self.execute(command)
        if got.code not in (0, 2):
            return [f"exit {got.code}: {got.said[-1500:]}"]
        if got.code == 0:
            # The page of a stage that was done again shows the time that it took.
            trained = "done before" not in got.printed and command.split()[0] in STAGES
            same = got.printed == want.printed and (trained or got.written == want.written)
            return [] if same or self.names(got.said, file) else ["silently different"]
        sentence = got.said.strip().splitlines()[-1]
        remedies = re.findall(r"`(?:ramp )?([^`]+)`", sentence)
        if not remedies:
            return [f"no remedy: {sentence}"]
        for remedy in remedies:
            done = self.execute(remedy)
            if done.code:
                return [f"remedy `{remedy}` exit {done.code}: {done.said[-800:]}"]
        after = self.execute(command)
        if after.code:
            return [f"after {remedies}: exit {after.code}: {after.said[-800:]}"]
        # A stage that a remedy has done again is done, and a line that it leaves out is missing.
        is_told = "done before" in after.printed or remedies[0].startswith("sed")
        if after.printed != want.printed and not is_told and not self.names(after.said, file):
            return [f"after {remedies}: silently different"]
        return []

    def names(self, said: str, file: Path) -> bool:
        """Whether a message names the file, its copy's file, or the step that it is in."""
        parts = file.relative_to(self.run).parts
        if parts[0] == "checkpoints":
            step = self.run.joinpath(*parts[:3])
            return f"step {step.name} of {step.parent}" in said or f"{step} is put aside" in said
        name = file.name
        if name.endswith(".copy"):
            name = name[1 : -len(".copy")]
        return str(file.with_name(name)) in said
