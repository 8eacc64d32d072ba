"""The calculator inside an answer: the model writes `<|tool|>` 12*7 `<|tool|>`, and ` 84 <|tool|>` is put behind it.

In data a call is written as GSM8K writes it, `<<12*7=84>>`. Training, evaluation and serving share `reply`: what is put
in at run time is what the model saw in training, where it bears no loss, since it is not the model's to say. A special
token opens and closes a call, so nothing that a user types is one.
"""

import re
from collections.abc import Callable, Sequence

from ramp.tasks.calculator import LONGEST, NotArithmetic, calculate
from ramp.text.tokenizer import Tokenizer

CALL = re.compile(r"<<([^<>=]+)=[^<>]*>>")


def call_result(expression: str) -> str:
    """The value as people write it, or `?`."""
    try:
        value = calculate(expression)
    except NotArithmetic:
        return "?"
    return str(value) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0").rstrip(".")


def reply(tokenizer: Tokenizer, said: Sequence[int]) -> list[int]:
    """What to put behind the tokens of an answer so far: a result where they have just closed a call, else nothing."""
    mark = tokenizer.special("tool")
    if not said or said[-1] != mark or said.count(mark) % 3 != 2:
        return []
    opened = len(said) - 2 - list(reversed(said[:-1])).index(mark)
    text = tokenizer.decode_bytes(said[opened + 1 : -1]).decode("utf-8", "replace")
    return [*tokenizer.encode(call_result(text) if len(text) <= LONGEST else "?"), mark]


def encode_with_calls(tokenizer: Tokenizer, content: str) -> tuple[list[int], list[int]]:
    """(ids, weights) of an assistant's words with the calls among them; results are put in and bear no loss."""
    ids: list[int] = []
    weights: list[int] = []
    mark = tokenizer.special("tool")
    for i, part in enumerate(CALL.split(content)):
        said = [mark, *tokenizer.encode(part), mark] if i % 2 else tokenizer.encode(part)
        put = reply(tokenizer, said) if i % 2 else []
        ids += [*said, *put]
        weights += [1] * len(said) + [0] * len(put)
    return ids, weights


def generate_with_tool(
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    draw: Callable[[list[list[int]]], list[list[int]]],
    limit: int,
    context: int,
) -> list[list[int]]:
    """Answers of at most `limit` tokens to each prompt, their calls done. `draw` continues each of some rows to its end;
    a row that called the calculator goes on behind the result, while prompt and answer fit the context."""
    said: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    while going:
        called = []
        for i, more in zip(going, draw([[*prompts[i], *said[i]] for i in going]), strict=True):
            for token in more:
                said[i].append(token)
                if put := reply(tokenizer, said[i]):
                    said[i] += put
                    called.append(i)
                    break
        going = [
            i for i in called if len(said[i]) < limit and len(prompts[i]) + len(said[i]) < context
        ]
    return [ids[:limit] for ids in said]
