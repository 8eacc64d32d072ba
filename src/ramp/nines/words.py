"""Counts and rates in words, with the digits that matter and no more."""

import math


def plural(word: str, count: int) -> str:
    """ "item" or "items", "family" or "families"."""
    if count == 1:
        return word
    return f"{word}s" if not word.endswith("y") else f"{word[:-1]}ies"


def describe_nines(nines: float) -> str:
    """ "1 nine" or "2.5 nines"."""
    return f"{nines:g} {'nine' if nines == 1 else 'nines'}"


def count_decimals(rate: float) -> int:
    """Decimals that show two digits of a rate, or of what is missing to 1."""
    rest = min(rate, 1 - rate)
    # The mean of many ones may miss 1 by its last bit.
    return 2 if rest < 1e-12 else min(9, 1 - math.floor(math.log10(rest)))


def say_rate(rate: float) -> str:
    """A rate in percent: "80%", "98.7%", "99.95%"."""
    return f"{rate:.{count_decimals(rate) - 2}%}"


def say_bounds(low: float, high: float) -> str:
    """ "at least 0.9812, at most 0.99996", neither of them rounded towards the truth."""
    down, up = 10 ** count_decimals(low), 10 ** count_decimals(high)
    # A hair, so that .9 is not cut to .89 by its last bit.
    low, high = math.floor(low * down + 1e-6) / down, math.ceil(high * up - 1e-6) / up
    return f"at least {low:.10g}, at most {high:.10g}"
