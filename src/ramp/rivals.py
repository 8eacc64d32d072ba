"""Rivals: a stage of a run done in another way beside it, from the same weights.

    rivals = ["outcome: reinforce --reinforce.method rloo --reinforce.reward verified"]

does `reinforce` twice: in the run, and with these flags in its folder rivals/outcome, a run of its
own that every command can open. So what a method is worth stands beside the best that could be done
without it, with the same model, problems, steps and seeds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from ramp import config, schema
from ramp.config import Config
from ramp.errors import UserError
from ramp.rundir import Request, RunDir
from ramp.stages import STAGES


@dataclass(frozen=True)
class Rival:
    """One entry of `rivals` in a configuration."""

    name: str
    stage: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Its run, inside the directory of the run that it stands beside."""
        return Path("rivals") / self.name

    def request(self, directory: Path, c: Config) -> Request:
        """The weights that the stage began from in the run in `directory`.

        Raises `UserError` where they are not there.
        """
        start = STAGES[self.stage].needs
        if self.stage == "synthesize":
            start = c.synthesize.start_stage
        elif self.stage == "reinforce" and c.reinforce.sft_steps:
            start = "sft"
        run = RunDir(directory)
        if not run.checkpoints(start).exists():
            start = run.origin_weights.name  # the run itself began from another
        if not run.checkpoints(start).exists():
            raise UserError(
                f"{directory} has not the weights that {self.stage} began from: it went on with "
                f"the whole state of another run, or its checkpoints of {start} were deleted; "
                "leave its rivals out with --rivals []"
            )
        return Request(directory, None, start, weights_only=True)

    def configure(self, c: Config) -> Config:
        """The configuration of the rival of a run that has `c`."""
        # It begins behind the fine-tuning on solved problems, which is done once.
        c = replace(c, rivals=(), stages=(self.stage,))
        c = replace(c, reinforce=replace(c.reinforce, sft_steps=0))
        keys = config.list_keys((self.stage,))
        return config.load_flags(self.flags, keys, c, f"the flags of the rival {self.name}")


def parse_rival(line: str) -> Rival:
    """Read "NAME: STAGE FLAGS". Raises `UserError` for what is none."""
    name, colon, words = line.partition(":")
    stage, *flags = schema.split_words(words, "rivals") or [""]
    speaking = [s for s in STAGES.values() if s.speaks]
    # Those that go on from another stage's weights.
    learning = [s.name for s in speaking if STAGES[s.needs] in speaking]
    if not colon or not name.isidentifier() or stage not in learning:
        raise UserError(
            f"rivals holds {line!r}; write NAME: STAGE FLAGS, such as outcome: reinforce "
            f"--reinforce.method rloo, with a stage of {', '.join(learning)}"
        )
    return Rival(name, stage, tuple(flags))


def list_rivals(c: Config, stages: tuple[str, ...]) -> list[Rival]:
    """The rivals of the stages that a run does. Raises `UserError` where one makes no sense."""
    rivals = [parse_rival(line) for line in c.rivals]
    names = [rival.name for rival in rivals]
    if len(set(names)) < len(names):
        raise UserError(f"rivals has one name twice: {', '.join(names)}")
    for rival in rivals:
        rival.configure(c)
    return [rival for rival in rivals if rival.stage in stages]
