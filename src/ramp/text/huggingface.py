"""A tokenizer.json of a Hugging Face model as ramp's own tokenizer: the same cuts, other ids.

Byte-level BPE only, as the models of today have. Their ids are replaced by ramp's (bytes,
merges, eight special tokens), so a text becomes the same pieces in the same order.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ramp.errors import UserError
from ramp.text.tokenizer import FORMAT, Tokenizer, number_tokens

# Split patterns that files name, or imply, and do not spell out.
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Digits are cut one by one.
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen35": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
# What people call the kinds of model that a tokenizer.json can hold.
KINDS = {"WordPiece": "WordPiece (as BERT's)", "Unigram": "Unigram (SentencePiece, as T5's)"}


@dataclass(frozen=True)
class ForeignBpe:
    """A byte-level BPE as its file spells it, in GPT-2's letters."""

    ids: dict[str, int]  # token: its number there, special tokens included
    merges: list[tuple[str, str]]
    pattern: str
    added: dict[str, bool]  # tokens beside the merges, in order: whether they are special
    ignore_merges: bool = False
    normalizer: str = ""
    lost: tuple[str, ...] = ()  # what ramp's tokenizer leaves out, each in a few words


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file: one that ramp wrote, or the tokenizer.json of another model.

    UserError: the file is missing, damaged, or of a kind that ramp does not have.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if read_object(path).get("format") == FORMAT:
        return Tokenizer.load(path)
    try:
        bpe = read_bpe(path)
        merges = number_merges(path, bpe.merges)
        tokenizer = Tokenizer(merges, bpe.pattern, bpe.ignore_merges, bpe.normalizer)
        # The regular expression comes from the file.
        tokenizer.encode("a pattern that does not compile fails here")
    except UserError:
        raise
    except Exception as error:  # fields of other types than the format says, or that pattern
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"{path} is not laid out as a tokenizer.json is ({reason}): take that of another model."
        ) from None
    return tokenizer


def read_bpe(path: Path) -> ForeignBpe:
    """The parts of a tokenizer.json; UserError unless it is byte-level BPE as ramp's is."""
    data = read_object(path)
    model = data.get("model") or {}
    splitter = data.get("pre_tokenizer") or {}
    normalizer = (data.get("normalizer") or {}).get("type") or ""
    # A sequence of pre-tokenizers, or a single one.
    parts = splitter.get("pretokenizers", [splitter])
    kinds = [part.get("type") for part in parts]
    is_plain = (
        model.get("type") == "BPE"
        and not model.get("byte_fallback")
        and kinds[-1:] == ["ByteLevel"]
        and not parts[-1].get("add_prefix_space")
        and normalizer in ("", "NFC")
    )
    if not is_plain:
        kind = KINDS.get(model.get("type"), f"{model.get('type')}, {normalizer}, {kinds}")
        raise UserError(
            f"{path} is not plain byte-level BPE ({kind}); ramp imports no other: "
            "take that of another model, or text.tokenizer = 'bpe'."
        )
    pattern = _split_pattern(kinds, parts)
    if pattern is None:
        raise UserError(
            f"{path} splits its text by {kinds} in a way that ramp's tokenizer does not"
        )
    ids = dict(model.get("vocab") or {})
    added = sorted(data.get("added_tokens") or [], key=lambda token: token["id"])
    # Such a token swallows blanks, and ramp's texts keep every byte.
    stripped = [t["content"] for t in added if t.get("lstrip") or t.get("rstrip")]
    lost = [f"that {name!r} takes the blanks beside it" for name in stripped]
    return ForeignBpe(
        ids | {token["content"]: token["id"] for token in added},
        parse_merges(path, model.get("merges") or []),
        pattern,
        {token["content"]: bool(token.get("special")) for token in added},
        bool(model.get("ignore_merges")),
        normalizer,
        tuple(lost),
    )


def _split_pattern(kinds, parts):
    """The regular expression that a chain of pre-tokenizers amounts to; None: not known."""
    first = parts[0]
    if kinds == ["Split", "ByteLevel"] and not parts[-1].get("use_regex", True):
        is_regex = "Regex" in first["pattern"] and first["behavior"] == "Isolated"
        return first["pattern"]["Regex"] if is_regex and not first.get("invert") else None
    if not parts[-1].get("use_regex", True):
        return None
    if kinds == ["ByteLevel"]:
        return PATTERNS["gpt-2"]
    if kinds == ["Digits", "ByteLevel"] and first.get("individual_digits"):
        return PATTERNS["smollm"]
    return None


def parse_merges(path: Path, merges: list) -> list[tuple[str, str]]:
    """Merges as pairs of tokens; UserError where one is none."""
    # Older files write "a b", newer ones ["a", "b"].
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: a merge is not a pair of tokens")
    return pairs


def number_merges(path: Path, merges: list[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """The merges in ramp's numbering; UserError where one uses what none has made."""
    try:
        return number_tokens(merges)
    except KeyError as error:
        raise UserError(
            f"{path} merges {error} before it is made; this is not byte-level BPE"
        ) from None


def read_object(path: Path) -> dict:
    """The object in a JSON file of a model."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); "
            "a model's folder has config.json, tokenizer.json, *.safetensors"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is JSON, but not an object")
    return data
