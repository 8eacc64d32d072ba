"""From tokens to what a client sees: whole characters, no stop strings, figures of each token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ramp.serve.jobs import Token
from ramp.text.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """One answer as it grows; what `push` returns, joined, does not depend on how tokens arrive.

    Text that could be the beginning of a stop string is held back until it is known not to be. A
    character that was never finished is left out. Of the special tokens that a model may draw,
    `<|step|>` is a line end, a call of the calculator is shown as `12*7=84`, and the rest is
    silent.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""  # all that was decoded, up to a stop string
        self.stopped = False
        self._num_sent = self._num_tool_tokens = 0
        self._num_echoed = 0  # characters of a prompt, in which no stop string is looked for
        self._held = []  # tokens not yet sent, each with the end of its text
        self._decoder = StreamDecoder(tokenizer)

    def echo(self, tokens: Sequence[Token]) -> None:
        """Put the tokens of a prompt in front of the answer."""
        for token in tokens:
            start = len(self.text)
            self.text += self._decode(token.id)
            self._held.append((replace(token, start=start), len(self.text)))
        self._num_echoed = len(self.text)

    def push(self, tokens: Sequence[Token], ended: bool = False) -> tuple[str, list[Token]]:
        """What can be sent now: text, and the tokens that wrote it. ended: no more tokens come."""
        longest = max(map(len, self.stop), default=0)
        for token in tokens:
            if self.stopped:
                break
            start = len(self.text)
            self.text += self._decode(token.id)
            self._held.append((replace(token, start=start), len(self.text)))
            # A stop string may have begun in text that came earlier.
            first = max(self._num_echoed, start - longest)
            found = [self.text.find(stop, first) for stop in self.stop]
            found = [at for at in found if at >= 0]
            if found:
                self.text = self.text[: min(found)]
                self.stopped = True
        end = len(self.text)
        if not (ended or self.stopped):
            end -= self._num_unsure()
        text = self.text[self._num_sent : end]
        self._num_sent = end
        sent = [token for token, token_end in self._held if token_end <= end]
        self._held = self._held[len(sent) :]
        return text, sent

    def _decode(self, id):
        if id == self.tokenizer.step:
            return "\n"
        if id == self.tokenizer.special("tool"):  # of three, the second is before the result
            self._num_tool_tokens += 1
            return "=" if self._num_tool_tokens % 3 == 2 else ""
        # The other special tokens have no text.
        if not self.tokenizer.text_pieces[id]:
            return ""
        return self._decoder.push(id)

    def _num_unsure(self):
        """Length of the longest unsent end of the text with which a stop string begins."""
        # All beginnings of stop strings that the text ends with; none of them has been sent.
        answer = self.text[self._num_echoed :]
        lengths = [
            n for stop in self.stop for n in range(1, len(stop)) if answer.endswith(stop[:n])
        ]
        return max(lengths, default=0)


def decode_token(tokenizer: Tokenizer, id: int) -> tuple[str, list[int]]:
    """A token as text and as bytes, for `logprobs`; no two tokens have the same text."""
    raw = tokenizer.decode_bytes([id])
    # A special token has no bytes, only a name.
    if not raw:
        return tokenizer.decode([id]), []
    try:
        return raw.decode(), list(raw)
    except UnicodeDecodeError:
        # OpenAI's way to write a token that holds a part of a character.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


def clamp(logp: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for a token of no probability."""
    return max(-9999.0, logp)


@dataclass(frozen=True)
class TokenLogprob:
    """An entry of chat's `top_logprobs`."""

    token: str
    bytes: list[int]
    logprob: float


@dataclass(frozen=True)
class ChatLogprob(TokenLogprob):
    """An entry of chat's `logprobs.content`; `entropy`, in nats, is ramp's own field."""

    top_logprobs: list[TokenLogprob]
    entropy: float


def make_chat_logprob(tokenizer: Tokenizer, token: Token) -> ChatLogprob:
    """The figures of one token of a chat answer."""
    top = [TokenLogprob(*decode_token(tokenizer, id), clamp(logp)) for id, logp in token.top]
    name = decode_token(tokenizer, token.id)
    return ChatLogprob(*name, clamp(token.logp or 0.0), top, round(token.entropy, 4))


@dataclass(frozen=True)
class CompletionLogprobs:
    """The `logprobs` of a text completion: lists with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # characters before each token's text


def make_completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> CompletionLogprobs:
    """The figures of some tokens."""

    def describe_top(token):
        # Nothing predicts the first token of a prompt.
        if token.logp is None:
            return None
        return {decode_token(tokenizer, id)[0]: clamp(logp) for id, logp in token.top}

    return CompletionLogprobs(
        [decode_token(tokenizer, token.id)[0] for token in tokens],
        [None if token.logp is None else clamp(token.logp) for token in tokens],
        [describe_top(token) for token in tokens],
        [token.start for token in tokens],
    )
