"""Two sizes of a configuration: the whole, and a small one for machines that would take too long.

    small = ["--model.width 128", "--pretrain.steps 200"]

are flags between the file and the command line. The size is chosen once, when a run is begun.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ramp import config, schema
from ramp.config import Config
from ramp.errors import UserError
from ramp.files import warn_once
from ramp.host import lacks_bfloat16


def choose_size(
    path: Path, flags: Sequence[str], keys: Sequence[schema.Key], begun: Config | None
) -> Config:
    """The configuration of a file, in the size that is asked for or that suits this machine.

    begun: what the run, or the one that it begins from, was begun with: it keeps that size, on
    whatever machine it goes on.
    """
    # Both on every machine: a wrong flag in the file is not found by those of slow machines alone.
    whole, small = load_sizes(path, flags, keys)
    size = whole.size
    if small == whole:
        # Of a file that a run has saved the flags are applied already.
        if size == "small" and schema.parse_flags(flags, keys).get("size"):
            raise UserError(f"{path} has no smaller size; leave out --size, or say `small` in it")
        return whole
    if size == "auto" and begun:
        size = begun.size
    elif size == "auto" and lacks_bfloat16():
        size = "small"
        changed = [key.name for key in schema.list_keys(small)]
        changed = [name for name in changed if config.get(small, name) != config.get(whole, name)]
        said = [f"{name} {config.get(small, name)}" for name in changed if name != "size"]
        warn_once(
            f"this CPU does not multiply bfloat16, so {path} takes its small size "
            f"({', '.join(said)}); --size whole takes the other"
        )
    return small if size == "small" else replace(whole, size="whole")


def refuse_size(flags: Sequence[str], keys: Sequence[schema.Key]) -> None:
    """Refuse to change the size of what has one."""
    given = schema.parse_flags(flags, keys).keys() & {"size", "small"}
    if given:
        raise UserError(
            f"--{min(given)} goes with a configuration that has a small size, such as "
            "`ramp run cpu --size whole --run NEW`; a run keeps the size that it was begun with"
        )


def load_sizes(
    path: Path, flags: Sequence[str] = (), keys: Sequence[schema.Key] | None = None
) -> tuple[Config, Config]:
    """What `load` gives, and the same in the small size: the flags `small` under those given.

    Where the file has no small size, they are the same.
    """
    path = config.find_config(path)
    # Read once: it may be a pipe.
    of_file = config.read(path)
    whole = config.put_over(of_file, path, flags, keys)
    words = schema.split_words(" ".join(whole.small), f"{path}: 'small'")
    try:
        small = config.load_flags(words, None, of_file)
    except UserError as error:
        message = str(error).removeprefix("command line: ")
        raise UserError(f"{path}: 'small': {message}") from None
    small = replace(config.put_over(small, path, flags, keys), size=whole.size, small=())
    whole = replace(whole, small=())
    return whole, replace(small, size="small") if words else whole
