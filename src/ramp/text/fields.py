"""Which field of a record is its text, and that text.

A field of a nested record is named with dots, `page.body`; through lists the dots reach every item.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ramp.text.encodings import Bad

# What people call it, the surest first.
NAMES = (
    *("text", "content", "body", "raw_content", "document", "article", "passage", "story"),
    *("markdown", "plain_text", "page_content", "contents", "abstract", "code", "message"),
)
TEXT_FIELDS = frozenset(NAMES)
# Records by which a field is found, or fewer of so many characters.
SAMPLE_RECORDS = 100
SAMPLE_CHARACTERS = 4_000_000
MAX_DEPTH = 6  # of fields that are looked at


def find_field(records: Iterable[Any]) -> str:
    """The field of a sample of records that holds their text; empty: none does.

    One of `NAMES` that most records have, else the field with most characters in values of several
    words: neither an id nor a picture is text.
    """
    sizes: defaultdict[str, float] = defaultdict(float)
    filled: Counter = Counter()
    present: Counter = Counter()
    num_records = total = 0
    # A tar may hold nothing but texts: it is not read as a whole to see that.
    for record in islice(records, 10 * SAMPLE_RECORDS):
        if not isinstance(record, dict):
            continue
        texts = list(_list_texts(record, "", 0))
        num_records += 1
        for name, text in texts:
            sizes[name] += len(text) if " " in text.strip() else 0
            # So that a field of single words is found too, where there is no other.
            sizes[name] += 1e-6 * len(text)
        present.update({name for name, _ in texts})
        filled.update({name for name, text in texts if text.strip()})
        total += sum(len(text) for _, text in texts)
        if num_records == SAMPLE_RECORDS or total > SAMPLE_CHARACTERS:
            break
    # Names decide between equals: the order in a record may differ.
    largest = max(sorted(sizes), key=lambda name: sizes[name]) if any(sizes.values()) else ""
    # The first records of a corpus may all be empty.
    return _known_name(filled, num_records) or largest or _known_name(present, num_records)


def _known_name(counts, num_records) -> str:
    """The first of `NAMES` that more than half of the records have; empty: none."""
    for name in NAMES:
        # `a.text` too, where there is no `text`: the least nested one.
        found = [field for field in counts if field.split(".")[-1].lower() == name]
        found = [field for field in found if counts[field] > num_records / 2]
        if found:
            return min(found, key=lambda field: (field.count("."), field))
    return ""


def _list_texts(value, name, depth) -> Iterator[tuple[str, str]]:
    """(name with dots, text) of every text in a record."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict) and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from _list_texts(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list) and depth < MAX_DEPTH:
        for inner in value:
            yield from _list_texts(inner, name, depth + 1)


def text_of(record: Any, field: str) -> str:
    """The text of a record, empty where it is null; the texts of a list are its lines.

    `Bad`: no_text where there is no such field or no text in it, bad_utf8 where there is half a
    character.
    """
    value = _pick(record, field) if isinstance(record, dict) else record
    if value is None:
        return ""
    if isinstance(value, list):
        value = "\n".join(_flatten(value))
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise Bad("no_text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a JSON escape such as "\ud800" gives half a character
        raise Bad("bad_utf8") from None
    return value


def _pick(value, path):
    """The value at a path of fields. `Bad`: there is none."""
    if isinstance(value, list):
        return [_pick(item, path) for item in value]
    if not isinstance(value, dict):
        if value is None:
            return None
        raise Bad("no_text")
    # A name may hold a dot itself.
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    if not dot or first not in value:
        raise Bad("no_text")
    return _pick(value[first], rest)


def _flatten(values) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _flatten(value)
        elif isinstance(value, str):
            yield value
        elif value is not None:
            raise Bad("no_text")


def _decode(data):
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Bad("bad_utf8") from None
