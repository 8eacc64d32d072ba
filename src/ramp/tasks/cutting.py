"""Where the steps of a solution end: at the reserved token, a line, a sentence, or as you say.

A model that ramp did not teach never writes the reserved token, but it writes lines. Boundaries lie
between tokens, whatever the tokenizer: a token that ends one step and begins the next belongs to
the one that it ends.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from ramp.errors import UserError
from ramp.tasks.protocol import Parsed, Task, parse, solution_ids
from ramp.text.tokenizer import Tokenizer

# What ends a step; a full stop after these is none.
ABBREVIATIONS = "".join(rf"(?<!\b{name}\.)" for name in ("Mr", "Ms", "Mrs", "Dr", "St", "vs", "No"))
LINE = r"\s*\n\s*"
CUTS = {
    "newline": LINE,
    # Chinese and Japanese have full stops of their own, and no spaces behind them.
    "sentence": rf"{LINE}|(?<=[.!?]){ABBREVIATIONS}\s+|(?<=[\u3002\uff01\uff1f])",
}
REGEX = "regex:"
PROBE = "word"  # that no pattern should cut everywhere


@lru_cache(maxsize=16)
def open_cut(steps: str) -> re.Pattern[str] | None:
    """What ends a step by a task's `steps`; None: the reserved token. Raises `UserError`."""
    if steps == "token":
        return None
    if steps in CUTS:
        return re.compile(CUTS[steps])
    if not steps.startswith(REGEX):
        raise UserError(
            f"reinforce.steps is {steps!r}; it can be token, {', '.join(CUTS)} or regex:PATTERN"
        )
    try:
        pattern = re.compile(steps.removeprefix(REGEX))
    except re.error as error:
        raise UserError(
            f"reinforce.steps {steps!r} is no regular expression ({error}); mend it, such as "
            "--reinforce.steps 'regex:;\\s*'"
        ) from None
    # Between all letters of a word it would cut it up.
    if len(pattern.sub("", PROBE)) == len(PROBE) and len(pattern.findall(PROBE)) >= len(PROBE):
        raise UserError(
            f"reinforce.steps {steps!r} matches where there is nothing, so that every token would "
            "be a step; let it match what stands between two steps, such as 'regex:;\\s*'"
        )
    return pattern


def cut_solution(tokenizer: Tokenizer, task: Task, ids: Sequence[int]) -> Parsed:
    """Steps and answer of sampled tokens, as the task has them.

    The last piece is the answer's. What the answer is says `task.find_answer`, or that piece.
    """
    pattern = open_cut(task.steps)
    parsed = parse(tokenizer, ids)
    num_own = next((i for i, s in enumerate(parsed.step_of_token) if s < 0), len(ids))
    has_end = num_own > 0 and ids[num_own - 1] == tokenizer.end
    if pattern is not None:
        parsed = _cut_text(tokenizer, pattern, ids[: num_own - has_end])
        # The end belongs to the answer, and what is behind it to nothing.
        last = len(parsed.steps) if has_end else (parsed.step_of_token or (0,))[-1]
        rest = (last,) * has_end + (-1,) * (len(ids) - num_own)
        parsed = replace(parsed, step_of_token=parsed.step_of_token + rest)
    if not has_end:
        return replace(parsed, answer=None)
    if task.find_answer is None:
        return parsed
    # Pieces are lines to whoever looks for the answer. Ids below 256 are bytes.
    own = [ord("\n") if i == tokenizer.step else i for i in ids[: num_own - 1]]
    text = _decode(tokenizer, own)
    return replace(parsed, answer=task.find_answer(text))


def _cut_text(tokenizer: Tokenizer, pattern: re.Pattern[str], ids: Sequence[int]) -> Parsed:
    """Cut where the pattern matches; the answer is the text of the last piece."""
    pieces = [tokenizer.display_pieces[i] if i < tokenizer.vocab_size else b"\xff" for i in ids]
    starts, total = [], 0  # the first byte of each token
    for piece in pieces:
        starts.append(total)
        total += len(piece)
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    firsts = set()  # the tokens that begin a step
    for match in pattern.finditer(text):
        before, after = text[: match.end()], text[match.end() :]
        # A blank line ends nothing, nor does the end of the text.
        if before.strip() and after.strip():
            place = len(before.encode("utf-8", "surrogateescape"))
            firsts.add(bisect_left(starts, place))
    bounds = [0, *sorted(firsts - {0, len(ids)}), len(ids)]
    parts = [_decode(tokenizer, ids[a:b]) for a, b in pairwise(bounds)]
    step_of_token = [k for k, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]
    return Parsed(tuple(parts[:-1]), parts[-1], tuple(step_of_token))


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids; what the tokenizer has no name for is no character."""
    return tokenizer.decode([i if i < tokenizer.vocab_size else 255 for i in ids]).strip()


def write_solution(
    tokenizer: Tokenizer, task: Task, steps: Sequence[str], answer: str
) -> list[int]:
    """The assistant's turn that gives these steps and this answer, cut as the task cuts them."""
    if open_cut(task.steps) is None:
        return solution_ids(tokenizer, steps, answer)
    # A line ends a sentence too.
    return [*tokenizer.encode("\n".join([*steps, answer])), tokenizer.end]
