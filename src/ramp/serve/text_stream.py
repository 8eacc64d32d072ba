"""From tokens to what a client sees: whole characters, nothing past a stop string, and each token's own figures."""

import math
from collections.abc import Sequence
from typing import Any

from ramp.serve.engine import Token
from ramp.text.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """One answer as it grows. What `push` returns, joined, does not depend on how the tokens came in pieces.

    Text that could be the beginning of a stop string is held back until it is known not to be. A character that was
    never finished is left out. Of the special tokens a model may say, `<|step|>` is a line end, a call of the calculator is
    shown as `12*7=84`, and the rest is silent.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.text = ""  # all that was decoded, up to a stop string
        self.stopped = False
        self._sent = self._marks = 0
        self._held: list[tuple[Token, int]] = []  # tokens not yet shown, with where their text ends
        self._decoder = StreamDecoder(tokenizer)

    def push(self, tokens: Sequence[Token], ended: bool = False) -> tuple[str, list[Token]]:
        """What can be shown now: text, and the tokens that wrote it. `ended`: no more tokens come."""
        for token in tokens:
            if self.stopped:
                break
            searched = max(0, len(self.text) - max(map(len, self.stops), default=0))
            self.text += self._spoken(token.id)
            self._held.append((token, len(self.text)))
            found = [
                at for at in (self.text.find(stop, searched) for stop in self.stops) if at >= 0
            ]
            if found:
                self.text, self.stopped = self.text[: min(found)], True
        safe = len(self.text) - (0 if ended or self.stopped else self._unsure())
        text, self._sent = self.text[self._sent : safe], max(safe, self._sent)
        done = [token for token, end in self._held if end <= safe]
        self._held = [(token, end) for token, end in self._held if end > safe]
        return text, done

    def _spoken(self, id: int) -> str:
        if id == self.tokenizer.step:
            return "\n"
        if id == self.tokenizer.special("tool"):  # expression = result
            self._marks += 1
            return "=" if self._marks % 3 == 2 else ""
        return self._decoder.push(id) if id < len(self.tokenizer.pieces) else ""

    def _unsure(self) -> int:
        """Length of the longest unsent end of the text with which a stop string begins."""
        begun = [
            n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])
        ]
        return min(max(begun, default=0), len(self.text) - self._sent)


def token_text(tokenizer: Tokenizer, id: int) -> tuple[str, list[int]]:
    """A token as text and as bytes, for `logprobs`."""
    raw = tokenizer.decode_bytes([id])
    return (raw.decode("utf-8", "replace") if raw else tokenizer.decode([id])), list(raw)


def logprob(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    """An entry of chat's `logprobs.content`; `entropy` (nats) is ramp's own and other clients pass it over."""

    def entry(id: int, logp: float) -> dict[str, Any]:
        text, raw = token_text(tokenizer, id)
        return {
            "token": text,
            "logprob": max(logp, -9999.0) if math.isfinite(logp) else -9999.0,
            "bytes": raw,
        }

    top = [entry(id, logp) for id, logp in token.top]
    return entry(token.id, token.logp) | {"top_logprobs": top, "entropy": round(token.entropy, 4)}


def old_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """The `logprobs` of a text completion."""
    names, offsets = [], []
    for token in tokens:
        names.append(token_text(tokenizer, token.id)[0])
        offsets.append(offset)
        offset += len(names[-1])
    tops = [{token_text(tokenizer, id)[0]: logp for id, logp in token.top} for token in tokens]
    return {
        "tokens": names,
        "token_logprobs": [token.logp for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
