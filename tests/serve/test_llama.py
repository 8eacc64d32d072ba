"""The engine on llama.cpp compared with the engine on jax: the same model, job for job.

They run where llama-cpp-python is installed: `uv run --extra llama pytest tests/serve/test_llama.py`.
"""

import queue
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from ramp.config import Config, Text, resolve
from ramp.decode.sample import SamplingParams
from ramp.export.export import export
from ramp.serve.engine import Engine
from ramp.serve.jobs import Job
from ramp.text.tokenizer import Tokenizer

pytest.importorskip("llama_cpp")

from ramp.serve.device import JaxSlots
from ramp.serve.llama import CHUNK_TOKENS, LlamaSlots

CONTEXT = 512
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The same random model on both, four slots each."""
    tokenizer = Tokenizer.train(["the cat sat on the mat", "to be or not to be"] * 3, 300)
    shape = tiny.model(context_len=CONTEXT, vocab_size=384, tie_embeddings=True)
    c = resolve(replace(Config(), model=shape, text=Text(vocab_size=tokenizer.vocab_size)))
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c.model)
        ours = Engine(JaxSlots(c.model, lm, tokenizer.vocab_size, 4), tokenizer)
        path = tmp_path_factory.mktemp("llama") / "model.gguf"
        export(c, lm, tokenizer, {}, "pretrain", path, "gguf")
    theirs = Engine(LlamaSlots(path, tokenizer.vocab_size, CONTEXT, 4), tokenizer)
    for engine in (ours, theirs):
        engine.stop_ids = set()
        engine.start()
    yield ours, theirs
    for engine in (ours, theirs):
        engine.close()
        assert engine.error is None


def ask(engine, prompts, tokens=12, sampling=GREEDY, **settings):
    """The jobs of prompts that are asked at once, when all have ended, with their tokens."""
    heard = queue.Queue()
    jobs, answers = [], []
    for prompt in prompts:
        answer = []

        def emit(new, reason, answer=answer):
            answer.extend(new)
            if reason:
                heard.put(reason)

        jobs.append(Job(tuple(prompt), tokens, sampling, 7, emit, **settings))
        answers.append(answer)
    engine.submit(jobs)
    reasons = {heard.get(timeout=60) for _ in jobs}
    assert reasons == {"length"}
    return jobs, answers


def test_greedy_answers_and_figures_are_equal(engines):
    prompts = [b"one", b"a longer prompt " * 20, b"x", b"two and three", b"the fifth waits"]
    (_, ours), (_, theirs) = (ask(engine, prompts, logprobs=3) for engine in engines)
    for mine, other in zip(ours, theirs, strict=True):
        assert [token.id for token in mine] == [token.id for token in other]
        for a, b in zip(mine, other, strict=True):
            assert [id for id, _ in a.top] == [id for id, _ in b.top]
            np.testing.assert_allclose((a.logp, a.entropy), (b.logp, b.entropy), atol=2e-2)


def test_prompts_are_scored(engines):
    prompt = bytes(range(1, 200)) * 2
    assert len(prompt) > 2 * CHUNK_TOKENS
    (mine,), (other,) = (ask(engine, [prompt], 0, scores_prompt=True)[0] for engine in engines)
    scores = [[token.logp or 0.0 for token in job.prompt_tokens] for job in (mine, other)]
    assert len(scores[0]) == len(prompt)
    np.testing.assert_allclose(*scores, atol=2e-2)


def test_embeddings_are_equal(engines):
    (mine,), (other,) = (
        ask(engine, [b"some words " * 20], 0, embeds_prompt=True)[0] for engine in engines
    )
    cosine = np.dot(mine.embedding, other.embedding)
    cosine /= np.linalg.norm(mine.embedding) * np.linalg.norm(other.embedding)
    assert cosine > 0.9999


def test_inserted_tokens_are_read(engines):
    """A tool's result stands behind the token that asked for it, and the answer goes on from it."""

    def insert(answer):
        return list(b"=42>") if len(answer) == 3 else []

    (_, ours), (_, theirs) = (ask(engine, [b"call"], insert=insert) for engine in engines)
    assert [t.id for t in ours[0]] == [t.id for t in theirs[0]]
    assert [t.id for t in theirs[0]][3:7] == list(b"=42>")


def test_the_next_turn_reads_what_is_new(engines):
    engine = engines[1]
    first = b"a turn of a conversation " * 8
    (job,), _ = ask(engine, [first], exact=False)
    before = engine.counts["prompt_tokens"]
    following = (*job.prompt, *job.answer, *b"and more")
    _, answers = ask(engine, [following], exact=False)
    # The last token that was drawn had been drawn, but not read.
    assert engine.counts["prompt_tokens"] - before <= len(b"and more") + 2
    _, alone = ask(engine, [following], exact=True)
    assert [t.id for t in answers[0]] == [t.id for t in alone[0]]


def test_many_answers_to_one_prompt_read_it_once(engines):
    engine = engines[1]
    before = engine.counts["prompt_tokens"]
    _, answers = ask(engine, [b"the same " * 30] * 4)
    assert engine.counts["prompt_tokens"] - before == 270
    assert len({tuple(t.id for t in answer) for answer in answers}) == 1


def test_seeds_repeat(engines):
    texts = [
        [t.id for t in ask(engines[1], [b"chance"], 30, SamplingParams(1.0))[1][0]]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_a_slot_that_was_cleared_answers_as_before(engines):
    prompt = b"words that are longer than a block " * 4
    _, (before,) = ask(engines[1], [prompt])
    for slot in range(4):
        engines[1].device.clear(slot)
    _, (after,) = ask(engines[1], [prompt])
    assert [t.id for t in before] == [t.id for t in after]
