"""Many clients at once compared with one at a time; the wait of a newcomer; how late `/health` is.

    ramp serve RUN --port 8000 &
    python -m experiments.serve.speed http://127.0.0.1:8000 NAME [TOKENS]

The client is the `openai` package. Texts of a seed that was used more than once must be equal,
alone or in company. `/health` is asked by a process of its own: in the clients' process it would
wait for them to parse what they were sent.
"""

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise

import httpx
import openai

URL, MODEL, TOKENS = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 96
ASKED, LONG = "Tell me about the history of the world.", "and the history of the world " * 25
CLIENTS, TURNS, LONG_ANSWERS = 16, 3, 8
texts_of: dict[tuple, set[str]] = defaultdict(set)
pauses: list[float] = []  # seconds between two pieces of a text


async def ask(
    client: openai.AsyncOpenAI, seed: int, tokens: int = TOKENS, prompt: str = ASKED
) -> tuple[int, float]:
    """Tokens of one streamed answer, and the seconds to its first text."""
    start, heard, count, text = time.perf_counter(), [], 0, ""
    messages, more = (
        [{"role": "user", "content": prompt}],
        {"stream": True, "stream_options": {"include_usage": True}},
    )
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=tokens, seed=seed, **more
    )
    async for event in stream:
        if piece := (event.choices[0].delta.content or "") if event.choices else "":
            heard.append(time.perf_counter())
        text, count = text + piece, event.usage.completion_tokens if event.usage else count
    texts_of[seed, tokens, prompt].add(text)
    pauses.extend(after - before for before, after in pairwise(heard))
    return count, heard[0] - start if heard else 0.0


async def ask_in_turn(client: openai.AsyncOpenAI, seeds: range) -> int:
    """Tokens of answers that are asked for one after the other."""
    return sum([(await ask(client, seed))[0] for seed in seeds])


def check_health(url: str, stop, results) -> None:
    """Ask for `/health` fifty times a second until told to stop: seconds of each answer."""
    seconds: list[float] = []
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            start = time.perf_counter()
            assert client.get("/health").status_code == 200
            seconds.append(time.perf_counter() - start)
            time.sleep(0.02)
    results.put(sorted(seconds))


async def main() -> None:
    """Print the three comparisons."""
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)
    spawn = multiprocessing.get_context("spawn")
    stop, results = spawn.Event(), spawn.Queue()
    checker = spawn.Process(target=check_health, args=(URL, stop, results))
    checker.start()
    one, many = [], []
    for turn in range(TURNS):
        seeds = range(100 * turn, 100 * turn + 6)
        start = time.perf_counter()
        one.append(await ask_in_turn(client, seeds) / (time.perf_counter() - start))
        start = time.perf_counter()
        parts = [range(seeds[0] + 3 * i, seeds[0] + 3 * i + 3) for i in range(CLIENTS)]
        count = sum(await asyncio.gather(*(ask_in_turn(client, part) for part in parts)))
        many.append(count / (time.perf_counter() - start))
    waits: dict[int, list[float]] = {0: [], 4: []}
    longest_pause: dict[int, float] = {}
    for prompts in waits:  # long ones, read at the same time
        pauses.clear()
        for turn in range(LONG_ANSWERS):
            long = [
                asyncio.create_task(ask(client, 900 + 10 * turn + i)) for i in range(LONG_ANSWERS)
            ]
            await asyncio.sleep(0.15)
            long += [
                asyncio.create_task(ask(client, 700 + 10 * turn + i, 2, LONG))
                for i in range(prompts)
            ]
            waits[prompts].append((await ask(client, turn, 8))[1])
            await asyncio.gather(*long)
        longest_pause[prompts] = max(pauses)
    stop.set()
    alive = results.get()
    checker.join()
    ratio = statistics.median(many) / statistics.median(one)
    alone, together = ([round(x) for x in rates] for rates in (one, many))
    print(f"tokens/s alone {alone}, {CLIENTS} clients {together}: {ratio:.1f} times")
    for prompts, seconds in waits.items():
        print(
            f"first text during {LONG_ANSWERS} long answers and {prompts} long prompts: "
            f"median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s; "
            f"no answer paused for more than {longest_pause[prompts]:.2f} s"
        )
    at = [1e3 * alive[int(fraction * (len(alive) - 1))] for fraction in (0.5, 0.99, 1.0)]
    late = sum(seconds > 0.02 for seconds in alive)
    print(
        "/health: median {:.1f}, 99% {:.1f}, worst {:.1f} ms".format(*at),
        f"of {len(alive)}; above 20 ms: {late}",
    )
    differing = sum(len(texts) > 1 for texts in texts_of.values())
    print(f"seeds whose texts differ: {differing} of {len(texts_of)}")


if __name__ == "__main__":
    asyncio.run(main())
