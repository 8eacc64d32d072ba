"""Conversations: how they become tokens, how they are packed into rows, and what reads them.

A conversation is a list of `{"role", "content"}`. As tokens it is `<|bos|>` and, for each turn, the
token of the role, the content and `<|end|>`. The content of an assistant's turn and the `<|end|>`
that closes it have loss weight 1, all else 0. An imported model that brings a chat template is
spoken to in that form instead: the text that the template makes, cut at its special tokens. A
conversation that is too long for a row is cut after its last assistant turn that fits, or left out
where none does: packing never waits for room that will not come, and every row has something to
learn.
"""

import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.text import corpus, sources
from ramp.text.corpus import Bad, Part, Tally
from ramp.text.demo_chats import DEMO_PACKAGES, Messages
from ramp.text.rows import ArrayRows
from ramp.text.template import GUARD, render_template
from ramp.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")

# (tokenizer, content of an assistant's turn) -> its ids and their loss weights.
EncodeContent = Callable[[Tokenizer, str], tuple[list[int], list[int]]]


# --- conversations to tokens


def encode_plain(tokenizer: Tokenizer, content: str) -> tuple[list[int], list[int]]:
    """(ids, loss weights) of a content in which every token has weight 1."""
    ids = tokenizer.encode(content)
    return ids, [1] * len(ids)


def render(
    tokenizer: Tokenizer,
    messages: Messages,
    max_tokens: int,
    encode_content: EncodeContent = encode_plain,
) -> tuple[list[int], list[int], bool] | None:
    """(ids, loss weights, whether it was cut) of at most `max_tokens`.

    `weights[i]` belongs to ids[i] as a target. Turns after the last whole assistant turn that fits
    are left out. None when not one assistant turn fits.

    Args:
      encode_content: encodes what an assistant says; `tasks.tool` has one that knows calls of the
        calculator.
    """
    ids: list[int] = []
    weights: list[int] = []
    fitting = fitting_turns = 0  # tokens and turns up to the last assistant turn that fits
    pieces = _render_with_template if tokenizer.template else _render_own
    for turn, piece, piece_weights in pieces(tokenizer, messages, encode_content):
        ids += piece
        # Turns come whole or not at all: half an answer would teach to break off.
        if len(ids) > max_tokens:
            break
        weights += piece_weights
        if any(piece_weights):
            fitting, fitting_turns = len(ids), turn
    if not fitting:
        return None
    return ids[:fitting], weights[:fitting], fitting_turns < len(messages)


def render_all(
    tokenizer: Tokenizer,
    conversations: Iterable[tuple[str, Messages]],
    max_tokens: int,
    counts: Counter,
    encode_content: EncodeContent = encode_plain,
) -> Iterator[tuple[list[int], list[int]]]:
    """`render` each; adds to `counts`: rendered, cut, too_long, tokens, loss_tokens."""
    for _, messages in conversations:
        rendered = render(tokenizer, messages, max_tokens, encode_content)
        if rendered is None:
            counts["too_long"] += 1
            continue
        ids, weights, cut = rendered
        counts.update(rendered=1, cut=int(cut), tokens=len(ids), loss_tokens=sum(weights))
        yield ids, weights


def _render_own(tokenizer, messages, encode_content):
    """(turns so far, ids, loss weights) of the beginning and of each turn."""
    yield 0, [tokenizer.bos], [0]
    for turn, message in enumerate(messages, 1):
        is_assistant = message["role"] == "assistant"
        encode = encode_content if is_assistant else encode_plain
        content, weights = encode(tokenizer, message["content"])
        # `<|end|>` is the assistant's to say.
        weights = [weight * is_assistant for weight in (0, *weights, 1)]
        yield turn, [tokenizer.special(message["role"]), *content, tokenizer.end], weights


def _render_with_template(tokenizer, messages, encode_content):
    """The same in two pieces for each assistant's turn: what leads to it, and what is said."""
    text = render_template(tokenizer, messages, add_generation_prompt=False)
    end = tokenizer.name_of(tokenizer.end)
    done = 0
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_template(tokenizer, messages[:turn], add_generation_prompt=True)
        # Some templates write an earlier turn in another way than it was asked for.
        if len(before) < done or not text.startswith(before):
            continue
        # Names of special tokens in a content are guarded, so the first one closes the turn.
        said, closing, _ = text[len(before) :].partition(end)
        ids = encode_rendered(tokenizer, text[done : len(before)])
        yield turn, ids, [0] * len(ids)
        yield turn + 1, *_encode_said(tokenizer, said + closing, encode_content)
        done = len(before) + len(said + closing)
    if not done:
        raise UserError(
            "the model's chat template writes an answer in another way than it asks for one, "
            "so ramp cannot train on conversations in that form"
        )


def _encode_said(tokenizer, text, encode_content):
    ids, weights = [], []
    for name, part in split_specials(tokenizer, text):
        own, own_weights = encode_content(tokenizer, part) if part else ([], [])
        special = [tokenizer.id_of(name)] if name else []
        ids += special + own
        weights += [1] * len(special) + own_weights
    return ids, weights


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    encode_content: EncodeContent = encode_plain,
    **options: Any,
) -> list[int]:
    """The conversation so far, ending in the token after which the assistant speaks.

    encode_content: as in `render`; a chat template writes what was said as plain text.
    options: what a chat template reads, such as `tools`. UserError where there is no template, or
    it does not know one of them.
    """
    if tokenizer.template:
        text = render_template(tokenizer, messages, add_generation_prompt=True, **options)
        return encode_rendered(tokenizer, text)
    if options:
        raise UserError(
            f"this model has no chat template, so {', '.join(options)} would have no effect"
        )
    ids = [i for _, turn, _ in _render_own(tokenizer, messages, encode_content) for i in turn]
    return [*ids, tokenizer.special("assistant")]


def list_texts(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], **options: Any
) -> list[str]:
    """The texts of a conversation that `render_prompt` reads.

    A chat template adds some, and may leave out others: white space, or what was thought before.
    """
    if not tokenizer.template:
        return [message["content"] for message in messages]
    text = render_template(tokenizer, messages, add_generation_prompt=True, **options)
    return [part for _, part in split_specials(tokenizer, text)]


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of what a template made: each name of a special token is that token."""
    ids = []
    for name, part in split_specials(tokenizer, text):
        ids += [tokenizer.id_of(name)] if name else []
        ids += tokenizer.encode(part)
    return ids


def split_specials(tokenizer: Tokenizer, text: str) -> Iterator[tuple[str, str]]:
    """(name of a special token, the text after it); the first name is empty."""
    # The longest first: one name may begin with another.
    pattern = "|".join(map(re.escape, tokenizer.special_names))
    parts = re.split(f"({pattern})", text)
    for name, part in zip(["", *parts[1::2]], parts[::2], strict=True):
        yield name, part.replace(GUARD, "")


# --- tokens to rows


def pack(
    rendered: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, pad_id: int
) -> ArrayRows:
    """Whole conversations into rows of `length`, best fit, longest first.

    n tokens take n - 1 places: inputs ids[:-1], targets ids[1:], so no target crosses into another
    conversation. Render with `max_tokens = length + 1`. ValueError: a conversation longer than
    that, or without loss weight.
    """
    pairs = list(rendered)
    # What `render` gives always passes: this finds a mistake in the caller.
    for ids, weights in pairs:
        if len(ids) > length + 1 or not any(weights[1:]):
            raise ValueError(
                f"a conversation of {len(ids)} tokens, {sum(weights[1:])} with loss weight, "
                f"for rows of {length}"
            )
    # As many rows as the plan has bins, and no token of a conversation left out.
    plan = best_fit([len(ids) - 1 for ids, _ in pairs], length)
    tokens = np.full((len(plan), length), pad_id, np.int32)
    targets = tokens.copy()
    segments = np.full_like(tokens, -1)  # -1: padding
    weights_nt = np.zeros(tokens.shape, np.float32)
    for row, members in enumerate(plan):
        start = 0
        for segment, member in enumerate(members):
            ids, weights = pairs[member]
            place = slice(start, start + len(ids) - 1)
            tokens[row, place] = ids[:-1]
            targets[row, place] = ids[1:]
            weights_nt[row, place] = weights[1:]
            segments[row, place] = segment
            start = place.stop
    return ArrayRows(tokens, targets, weights_nt, segments)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of item numbers: the largest item first, each into the fullest bin that has room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), sorted
    # Sorting is stable: the same conversations give the same rows on every machine.
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        # The first bin, in order of space left, that has enough.
        fits = bisect_left(room, (sizes[item],))
        if fits < len(room):
            space, chosen = room.pop(fits)
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        insort(room, (space - sizes[item], chosen))
    return bins


# --- where conversations come from


def conversations(
    source: str, counts: Counter, seed: int = 0, max_bad: float = 0.01
) -> Iterator[tuple[str, Messages]]:
    """(id, messages) of a source: one of `DEMO_PACKAGES`, or `file:` JSONL in the OpenAI shape.

    In a file every line is an object with `messages`. Adds to `counts`: conversations, turns, and
    what was left out by kind. An id is a hash of the content; that of a conversation made from a
    document is the document's, so `split_of` sends both to the same split. `seed` chooses the
    wording of questions of the demo packages.
    """
    read_part = read_messages
    if source.startswith("pip:"):
        name, _ = sources.parse_requirement(re.split("[/#]", source.removeprefix("pip:"))[0])
        if name not in DEMO_PACKAGES:
            raise UserError(
                f"The source {source} holds no conversations: "
                f"ramp knows {', '.join(DEMO_PACKAGES)} and file:GLOB."
            )
        read_part = DEMO_PACKAGES[name]
    # A wrong file would give no conversations at all: too many bad lines are refused.
    for part, tally in corpus.tally_parts(source, counts, max_bad):
        for doc_id, messages in read_part(part, tally, seed):
            tally.good += 1
            counts.update(conversations=1, turns=len(messages))
            yield doc_id, messages


def read_messages(part: Part, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """(id, messages) of each good line of a part; nothing here depends on the seed."""
    for _, messages in corpus.parse_records(part, tally, check_messages):
        yield corpus.content_id(messages), messages


def check_messages(record: Any) -> Messages:
    """The messages of one JSON record, or `Bad` with what is wrong."""
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Bad("no_messages")
    # OpenAI's newer name of the same role.
    roles = ["system" if m.get("role") == "developer" else m.get("role") for m in messages]
    if not all(role in ROLES for role in roles):
        raise Bad("unknown_role")
    # Parts of another kind, such as pictures, cannot become tokens.
    contents = [m.get("content") for m in messages]
    if not all(isinstance(content, str) for content in contents):
        raise Bad("content_not_text")
    if "assistant" not in roles:
        raise Bad("no_assistant_turn")
    pairs = zip(roles, contents, strict=True)
    return [{"role": role, "content": content} for role, content in pairs]
