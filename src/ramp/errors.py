"""The exception that means: the user can mend this."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user asked for.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2. Faults of ramp itself, of the disk or of the network
    stay ordinary exceptions, so that their traceback is seen.
    """


class NothingToLearn(UserError):
    """A stage whose data tell it nothing: `ramp run` does the others, and then fails with this."""


def require_name(key: str, name: str, known: Iterable[str]) -> None:
    """Raise `UserError` where a name is not known, with the nearest one, or all of them.

    key: whose value it is; it begins the sentence.
    """
    known = list(known)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"it can be {', '.join(known) or 'none'}"
    raise UserError(f"{key}: there is no '{name}'; {hint}")
