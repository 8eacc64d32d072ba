"""The calculator in an answer: the model writes `<|tool|>12*7<|tool|>`, and `84<|tool|>` follows.

In data a call is written as in GSM8K, `<<12*7=84>>`. Training, evaluation and serving share
`reply`: what is inserted at run time is what the model saw in training, where it has loss
weight 0, since it is not for the model to say. A special token opens and closes a call, so nothing
that a user types is one.
"""

import re
from collections.abc import Callable, Sequence

from ramp.tasks.calculator import MAX_LENGTH, NotArithmetic, calculate
from ramp.text.tokenizer import Tokenizer

CALL = re.compile(r"<<([^<>=]+)=[^<>]*>>")


def call_result(expression: str) -> str:
    """The value as people write it, or `?`."""
    try:
        value = calculate(expression)
    except NotArithmetic:
        return "?"
    return str(value) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0").rstrip(".")


def reply(tokenizer: Tokenizer, answer: Sequence[int]) -> list[int]:
    """What follows an answer so far: the result if its last token closes a call, else nothing."""
    mark = tokenizer.special("tool")
    # Three marks a call: one opens it, one closes it, one ends the result.
    if not answer or answer[-1] != mark or answer.count(mark) % 3 != 2:
        return []
    opened = max(i for i, token in enumerate(answer[:-1]) if token == mark)
    # Bytes, since `decode` would spell out a special token between the marks.
    expression = tokenizer.decode_bytes(answer[opened + 1 : -1]).decode("utf-8", "replace")
    result = call_result(expression) if len(expression) <= MAX_LENGTH else "?"
    return [*tokenizer.encode(result), mark]


def encode_with_calls(tokenizer: Tokenizer, content: str) -> tuple[list[int], list[int]]:
    """(ids, loss weights) of an assistant's words and calls; results get weight 0."""
    ids, weights = [], []
    mark = tokenizer.special("tool")
    # The pattern has a group: every second part is the expression of a call.
    for i, part in enumerate(CALL.split(content)):
        own, result = tokenizer.encode(part), []
        if i % 2:
            own = [mark, *own, mark]
            result = reply(tokenizer, own)
        ids += [*own, *result]
        weights += [1] * len(own) + [0] * len(result)
    return ids, weights


def write_calls(tokenizer: Tokenizer, answer: Sequence[int]) -> str:
    """An answer's text with its calls as in data, so that `encode_with_calls` gives it back."""
    marks = ("<<", "=", ">>")
    parts = []
    num_marks = 0
    for i in answer:
        if i == tokenizer.special("tool"):
            parts.append(marks[num_marks % 3].encode())
            num_marks += 1
        else:
            parts.append(tokenizer.display_pieces[i])
    return b"".join(parts).decode("utf-8", "replace")


def generate_with_tool(
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    generate: Callable[[list[list[int]]], list[list[int]]],
    max_tokens: int,
    context_len: int,
) -> list[list[int]]:
    """Answers of at most `max_tokens` tokens to each prompt, with the results of their calls.

    Args:
      generate: continues each of some rows to its end. A row that called the calculator is given to
        it again with the result behind it, while prompt and answer fit `context_len`.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rooms = [min(max_tokens, context_len - len(prompt)) for prompt in prompts]
    active = list(range(len(prompts)))
    while active:
        rows = [[*prompts[i], *answers[i]] for i in active]
        called = []
        for i, continuation in zip(active, generate(rows), strict=True):
            # A row without a call has come to its end.
            is_call = _extend_to_call(tokenizer, answers[i], continuation)
            if is_call and len(answers[i]) < rooms[i]:
                called.append(i)
        active = called
    # A result may have gone beyond the limit.
    return [ids[:max_tokens] for ids in answers]


def _extend_to_call(tokenizer, answer: list[int], continuation: list[int]):
    """Append tokens until one closes a call, then its result; whether there was a call."""
    for token in continuation:
        answer.append(token)
        result = reply(tokenizer, answer)
        if result:
            answer += result  # what the model wrote behind the call it wrote without the result
            return True
    return False
