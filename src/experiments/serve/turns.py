"""Seconds to the first token of each turn of a talk: `python -m experiments.serve.turns URL NAME`.

Five talks of ten turns with as many new words in each. The last figure is the bar's: the median of
turn 10 over that of turn 1. Then the tokens per second of an answer beside a free one and beside
one that obeys a schema.
"""

import random
import statistics
import sys
import threading
import time

import openai

URL, NAME = sys.argv[1], sys.argv[2]
WORDS = [
    "river",
    "stone",
    "cloud",
    "market",
    "lamp",
    "window",
    "garden",
    "paper",
    "engine",
    "bridge",
    "silver",
    "forest",
]
SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 50}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def ask(client: openai.OpenAI, messages: list, tokens: int, **more) -> tuple[float, float, str]:
    """Seconds to the first text, tokens per second after it, and the text."""
    start = first = time.perf_counter()
    text, count = "", 0
    stream = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=tokens, temperature=0.7, stream=True,
        stream_options={"include_usage": True}, **more,
    )  # fmt: skip
    for piece in stream:
        if piece.choices and piece.choices[0].delta.content:
            if not text:
                first = time.perf_counter()
            text += piece.choices[0].delta.content
        count = piece.usage.completion_tokens if piece.usage else count
    return first - start, count / (time.perf_counter() - first), text


def main() -> None:
    """Print both comparisons."""
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)
    seconds = [[] for _ in range(10)]
    for seed in range(5):
        r = random.Random(seed)
        talk = []
        for turn in seconds:
            words = " ".join(r.choices(WORDS, k=40))
            talk.append({"role": "user", "content": f"{seed}: {words}?"})
            first, _, text = ask(client, talk, 24)
            turn.append(first)
            talk.append({"role": "assistant", "content": text})
    medians = [statistics.median(turn) for turn in seconds]
    shown = ", ".join(f"{median:.2f}" for median in medians)
    print(f"seconds to the first token by turn: {shown}; {medians[9] / medians[0]:.2f} times")
    speeds = {"free": [], "schema": []}
    question = [{"role": "user", "content": "Tell me about rivers."}]
    for _ in range(4):
        for kind, more in (("free", {}), ("schema", {"response_format": FORM})):
            other = threading.Thread(target=ask, args=(client, question, 90), kwargs=more)
            other.start()
            speeds[kind].append(ask(client, question, 50)[1])
            other.join()
    shown = {kind: round(statistics.median(rates), 2) for kind, rates in speeds.items()}
    print(f"tokens per second beside another answer: {shown}")


if __name__ == "__main__":
    main()
