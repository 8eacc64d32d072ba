"""The program `ramp`: signals wait from its first moment until the command knows what they mean."""

import sys

from ramp import interrupts


def main() -> int:
    """Run the command line; returns the exit code."""
    interrupts.block()
    # Only now: a signal during these imports, a fifth of a second, is no different from a later.
    from ramp import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
