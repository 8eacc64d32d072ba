"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user asked for.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2. Faults of ramp itself, of the disk or of the network
    stay ordinary exceptions, so that their traceback is seen.
    """
