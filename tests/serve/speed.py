"""Many clients at once, beside one at a time; what company costs a newcomer; how quickly the server says that it lives.

    ramp serve RUN --port 8000 &  python tests/serve/speed.py http://127.0.0.1:8000 NAME [TOKENS]

The client is the `openai` package. Texts of a seed that was asked for more than once must be equal, alone or in company.
`/health` is asked by a process of its own: beside the clients it would wait for them to parse what they were sent.
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
CLIENTS, TURNS, BESIDE = 16, 3, 8
said: dict[tuple, set[str]] = defaultdict(set)
silences: list[float] = []  # seconds between two pieces of a text


async def ask(
    client: openai.AsyncOpenAI, seed: int, tokens: int = TOKENS, prompt: str = ASKED
) -> tuple[int, float]:
    """Tokens of one streamed answer, and the seconds to its first text."""
    began, heard, count, text = time.perf_counter(), [], 0, ""
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
    said[seed, tokens, prompt].add(text)
    silences.extend(after - before for before, after in pairwise(heard))
    return count, heard[0] - began if heard else 0.0


async def several(client: openai.AsyncOpenAI, seeds: range) -> int:
    return sum([(await ask(client, seed))[0] for seed in seeds])


def pulse(url: str, stop, found) -> None:
    """Ask for `/health` fifty times a second until told to stop: seconds of each answer."""
    seconds: list[float] = []
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            began = time.perf_counter()
            assert client.get("/health").status_code == 200
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)
    found.put(sorted(seconds))


async def main() -> None:
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)
    spawn = multiprocessing.get_context("spawn")
    stop, found = spawn.Event(), spawn.Queue()
    heart = spawn.Process(target=pulse, args=(URL, stop, found))
    heart.start()
    one, many = [], []
    for turn in range(TURNS):
        seeds = range(100 * turn, 100 * turn + 6)
        began = time.perf_counter()
        one.append(await several(client, seeds) / (time.perf_counter() - began))
        began = time.perf_counter()
        parts = [range(seeds[0] + 3 * i, seeds[0] + 3 * i + 3) for i in range(CLIENTS)]
        count = sum(await asyncio.gather(*(several(client, part) for part in parts)))
        many.append(count / (time.perf_counter() - began))
    waits: dict[int, list[float]] = {0: [], 4: []}
    quiet: dict[int, float] = {}
    for prompts in waits:  # long ones, read at the same time
        silences.clear()
        for turn in range(BESIDE):
            long = [asyncio.create_task(ask(client, 900 + 10 * turn + i)) for i in range(BESIDE)]
            await asyncio.sleep(0.15)
            long += [
                asyncio.create_task(ask(client, 700 + 10 * turn + i, 2, LONG))
                for i in range(prompts)
            ]
            waits[prompts].append((await ask(client, turn, 8))[1])
            await asyncio.gather(*long)
        quiet[prompts] = max(silences)
    stop.set()
    alive = found.get()
    heart.join()
    ratio = statistics.median(many) / statistics.median(one)
    print(
        f"tokens/s alone {[round(x) for x in one]}, {CLIENTS} clients {[round(x) for x in many]}: {ratio:.1f} times"
    )
    for prompts, seconds in waits.items():
        print(
            f"first text beside {BESIDE} long answers and {prompts} long prompts: median {statistics.median(seconds):.2f}",
            end="",
        )
        print(f" s, worst {max(seconds):.2f} s; nobody silent for more than {quiet[prompts]:.2f} s")
    at = [1e3 * alive[int(share * (len(alive) - 1))] for share in (0.5, 0.99, 1.0)]
    late = sum(seconds > 0.02 for seconds in alive)
    print(
        "/health: median {:.1f}, 99% {:.1f}, worst {:.1f} ms".format(*at),
        f"of {len(alive)}; above 20 ms: {late}",
    )
    print(
        f"seeds whose texts differ: {sum(len(texts) > 1 for texts in said.values())} of {len(said)}"
    )


if __name__ == "__main__":
    asyncio.run(main())
