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

DERIVED = (".html", ".npz")  # written anew by the stage or command that makes them, and never read


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
    whole: Path = field(init=False)
    expected: dict[str, Outcome] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.whole = self.run.with_name("whole")
        shutil.copytree(self.run, self.whole)

    # Commands

    def list_commands(self, file: Path) -> list[str]:
        """The commands that read a file, by the folder that it is in."""
        run, parts = self.run, file.relative_to(self.run).parts
        out = self.run.with_name("out")
        readers = [f"report {run}", f"chat {run} --ask Hello --tokens 4", f"run {run}"]
        if parts[0] == "checkpoints":
            stage = parts[1]
            if stage in ("sft", "reinforce"):
                return [f"credit {run}"] if stage == "reinforce" else [f"run {run}"]
            return [
                f"chat {run} --stage {stage} --ask Hello --tokens 4",
                f"export {run} --stage {stage} --out {out}",
            ]
        if parts[0] == "data" and parts[1].lstrip(".").startswith(("train", "val")):
            return [f"eval {run}"]
        if parts[0] == "synth":
            return [f"synth why {run} g1-00003", f"report {run}", f"run {run}"]
        if parts[0] in ("trials.jsonl", "forecasts.jsonl"):
            return [f"nines forecast {run}/trials.jsonl", *readers[:1]]
        return [*readers, f"sample {run} --prompt The --stage pretrain"]

    def execute(self, command: str) -> Outcome:
        """One command in this process, or a shell's where it is not ramp's."""
        out, err = io.StringIO(), io.StringIO()
        files.warn_once.cache_clear()
        handler = logging.StreamHandler(err)
        logging.getLogger().addHandler(handler)
        shutil.rmtree(self.run.with_name("out"), ignore_errors=True)
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
        out = self.run.with_name("out")
        paths = [self.run / "report.html", *(p for p in out.rglob("*") if p.is_file())]
        return {str(p): p.read_bytes() for p in paths if p.exists()}

    def expect(self, command: str) -> Outcome:
        """What the command does where nothing is damaged."""
        if command not in self.expected:
            self.restore()
            self.expected[command] = self.execute(command)
            assert self.expected[command].code == 0, (command, self.expected[command])
        return self.expected[command]

    def restore(self) -> None:
        """Make the run whole again."""
        shutil.rmtree(self.run)
        shutil.copytree(self.whole, self.run)

    # Flips

    def list_files(self) -> list[Path]:
        """Every file of the run."""
        return sorted(path for path in self.run.rglob("*") if path.is_file())

    def kind(self, file: Path) -> str:
        """Files of one kind are damaged alike: figures and digits do not tell them apart."""
        return re.sub(r"\d+", "#", str(file.relative_to(self.run)))

    def choose_file(self) -> Path:
        """A kind of file at random, and one of that kind: small files are as likely as big ones."""
        kinds: dict[str, list[Path]] = {}
        for path in self.list_files():
            if path.stat().st_size:
                kinds.setdefault(self.kind(path), []).append(path)
        return self.draw.choice(kinds[self.draw.choice(sorted(kinds))])

    def try_flip(self, file: Path | None = None) -> list[str]:
        """Flip a bit of a byte; returns what is wrong with what followed, [] where nothing is."""
        self.restore()
        file = file or self.choose_file()
        data = bytearray(file.read_bytes())
        at, bit = self.draw.randrange(len(data)), self.draw.randrange(8)
        data[at] ^= 1 << bit
        damaged, wrong = bytes(data), []
        commands = self.list_commands(file)
        for command in commands:
            self.expect(command)
        for command in commands:
            self.restore()
            file.write_bytes(damaged)
            where = f"{file.relative_to(self.run)} byte {at} bit {bit}: `ramp {command}`"
            wrong += [f"{where}: {fault}" for fault in self.judge(command, file)]
        return wrong

    def judge(self, command: str, file: Path) -> list[str]:
        """What is wrong with what a command does beside a damaged file."""
        got, want = self.execute(command), self.expect_quietly(command)
        if got.code not in (0, 2):
            return [f"exit {got.code}: {got.said[-1500:]}"]
        if got.code == 0:
            same = (got.printed, got.written) == (want.printed, want.written)
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
            return [f"after the remedy {remedies}: exit {after.code}: {after.said[-800:]}"]
        if after.printed != want.printed and not self.names(after.said, file):
            return [f"after the remedy {remedies}: silently different"]
        return []

    def expect_quietly(self, command: str) -> Outcome:
        return self.expected[command]

    def names(self, said: str, file: Path) -> bool:
        """Whether a message names the file, its copy's file, or the step that it is in."""
        parts = file.relative_to(self.run).parts
        if parts[0] == "checkpoints":
            step = self.run.joinpath(*parts[:3])
            return f"step {step.name} of {step.parent}" in said or f"{step} is damaged" in said
        name = file.name
        if name.endswith(".copy"):
            name = name[1 : -len(".copy")]
        return str(file.with_name(name)) in said
