"""The engine: a request is the same alone and in company, slots come back, nothing compiles once it is warm."""

import queue
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ramp.decode import batch
from ramp.decode.cache import grow_cache
from ramp.decode.sample import SamplingParams
from ramp.serve.device import JaxSlots
from ramp.serve.engine import Engine, QueueFull
from ramp.serve.jobs import Job
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()


def make_engine(c, lm, **settings) -> Engine:
    """An engine on slots of the current mesh."""
    return Engine(JaxSlots(c, lm, TOKENIZER.vocab_size, **settings), TOKENIZER)


@pytest.fixture(scope="module")
def engine(live):
    return live.engine


SIMPLE = SamplingParams()


def answer(
    engine: Engine,
    prompt: list[int],
    n: int,
    sampling: SamplingParams = SIMPLE,
    seed: int = 0,
    **more,
):
    """A submitted job, and a function that waits for its tokens."""
    events: queue.Queue = queue.Queue()
    job = Job(
        tuple(prompt), n, sampling, seed, lambda tokens, why: events.put((tokens, why)), **more
    )
    engine.submit([job])

    def wait() -> tuple[list[int], str]:
        said, why = [], ""
        while not why:
            tokens, why = events.get(timeout=60)
            said += tokens
        return said, why

    return job, wait


REQUESTS = [
    (list(b"hello there"), 40, SamplingParams(temperature=1.0), 7),
    (list(b"a" * 100), 60, SamplingParams(temperature=0.7, top_k=20), 8),
    (list(b"xyz"), 90, SamplingParams(temperature=1.3, top_p=0.9), 9),
    (list(b"greedy"), 30, SamplingParams(temperature=0.0), 10),
    (list(b"q" * 200), 150, SamplingParams(temperature=1.0, min_p=0.05), 11),
    (list(b"hello there"), 40, SamplingParams(temperature=1.0), 12),
    (list(b"long" * 40), 300, SamplingParams(temperature=1.0), 13),
]


def test_the_same_alone_and_in_company(live, engine):
    """Bit for bit, figures included, though slots, neighbours and the size of the cache differ."""
    alone = []
    for prompt, n, sampling, seed in REQUESTS:
        live.quiet()
        alone.append(answer(engine, prompt, n, sampling, seed)[1]())
    for turn in range(3):
        order = random.Random(turn).sample(range(len(REQUESTS)), len(REQUESTS))
        waits = {i: answer(engine, *REQUESTS[i])[1] for i in order}
        assert [waits[i]() for i in range(len(REQUESTS))] == alone
    assert all(
        len(tokens) == n and why == "length"
        for (tokens, why), (_, n, _, _) in zip(alone, REQUESTS, strict=True)
    )


def test_greedy_tokens_are_those_of_a_whole_forward_pass(live, engine):
    prompt = list(b"some prompt of bytes, longer than a piece" * 4)
    tokens, _ = answer(engine, prompt, 50, SamplingParams(temperature=0.0))[1]()
    ids = [token.id for token in tokens]
    with jax.set_mesh(tiny.mesh()):
        logits = np.asarray(tiny.logits(engine.device.c, live.lm, np.array([prompt + ids])))[
            0, len(prompt) - 1 : -1
        ]
    logits = logits[:, : TOKENIZER.vocab_size]
    assert logits.argmax(-1).tolist() == ids
    logps = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    np.testing.assert_allclose([t.logp for t in tokens], logps.max(-1), atol=1e-4)
    np.testing.assert_allclose(
        [t.entropy for t in tokens], -(np.exp(logps) * logps).sum(-1), atol=1e-3
    )


def test_nothing_compiles_once_it_is_warm(engine):
    programs = (
        batch.prefill_chunk,
        batch.copy_slot,
        batch.decode_slots,
        batch.finish_round,
        batch.clear_slot,
        grow_cache,
    )
    before = [f._cache_size() for f in programs]
    for sampling in (SamplingParams(), SamplingParams(0.0), SamplingParams(0.5, 3, 0.8, 0.01)):
        for prompt, n in ((b"a", 5), (b"b" * 130, 100), (b"c" * 380, 100)):
            answer(engine, list(prompt), n, sampling, 3)[1]()
    assert [f._cache_size() for f in programs] == before


def test_a_cancelled_request_loses_its_slot_at_the_next_chunk(live, engine):
    live.quiet()
    jobs = [answer(engine, list(b"long"), 380, seed=i)[0] for i in range(4)]
    while len(engine.running) < 4:
        time.sleep(0.005)
    begun = engine.counts["chunks"]
    engine.cancel(jobs)
    _, wait = answer(engine, list(b"next"), 4)
    wait()
    assert engine.counts["chunks"] - begun <= 4
    live.quiet()
    assert all(len(job.answer) < 380 for job in jobs)


def test_the_line_is_bounded_and_takes_all_choices_or_none(live, engine):
    live.quiet()
    jobs = [answer(engine, list(b"x"), 300, seed=i)[0] for i in range(28)]  # 4 slots and 24 in line
    with pytest.raises(QueueFull):
        for _ in range(4):
            answer(engine, list(b"x"), 300)
    engine.cancel(jobs)
    live.quiet()
    many = [Job((1,), 4, SamplingParams(), 0, lambda tokens, why: None) for _ in range(29)]
    with pytest.raises(QueueFull):
        engine.submit(many)
    assert not engine.waiting and not engine.running


def test_tokens_can_be_put_into_an_answer(engine):
    """What comes after them is what a prompt that held them would have got."""
    put = list(b"<42>")
    _, wait = answer(
        engine,
        list(b"sum:"),
        20,
        SamplingParams(0.0),
        insert=lambda answer: put if len(answer) == 6 else [],
    )
    tokens, _ = wait()
    ids = [t.id for t in tokens]
    assert ids[6:10] == put and [t.forced for t in tokens] == [6 <= i < 10 for i in range(20)]
    again, _ = answer(engine, list(b"sum:") + ids[:10], 10, SamplingParams(0.0))[1]()
    assert [t.id for t in again] == ids[10:]


def test_clients_that_come_and_go_leak_nothing(live, engine):
    """Threads that ask, wait, leave early; every answer that was waited for is complete."""
    live.quiet()
    failures = []

    def client(i: int) -> None:
        r = random.Random(i)
        for turn in range(4):
            n = r.randrange(1, 60)
            try:
                job, wait = answer(
                    engine, [i + 1] * r.randrange(1, 100), n, SamplingParams(1.0), i * 100 + turn
                )
            except QueueFull:
                continue
            if r.random() < 0.4:
                time.sleep(r.random() * 0.05)
                engine.cancel([job])
            elif len(wait()[0]) != n:
                failures.append((i, turn))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live.quiet()
    assert not failures


def test_on_any_mesh(engine):
    """Slots split over devices, heads too: the same tokens as on one."""
    prompts = [list(b"one"), list(b"two and more"), list(b"three")]
    want = [[t.id for t in answer(engine, p, 12, SamplingParams(0.0))[1]()[0]] for p in prompts]
    with jax.set_mesh(tiny.mesh(data=2, model=2)):
        c = tiny.model(context_len=64, vocab_size=384)
        split = make_engine(c, tiny.lively(c), slots=3)
        split.stop_ids = set()
        assert split.slots == 4
        split.start()
        got = [[t.id for t in answer(split, p, 12, SamplingParams(0.0))[1]()[0]] for p in prompts]
        split.close()
    assert got == want and split.error is None


def test_a_fault_ends_every_answer(live, engine, monkeypatch):
    with jax.set_mesh(tiny.mesh()):
        broken = make_engine(engine.device.c, live.lm, slots=4)
    monkeypatch.setattr(broken.device, "draw", lambda jobs: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    broken.start()
    _, wait = answer(broken, [1], 5)
    assert wait() == ([], "error")
    with pytest.raises(RuntimeError):
        answer(broken, [1], 5)


# ---------------------------------------------------------------------------------------------------- pieces
@pytest.mark.parametrize(
    "over", [tiny.ALL, tiny.WINDOW, {"depth": 0}], ids=["all", "window", "none"]
)
def test_a_prompt_in_pieces_is_the_prompt_at_once(over):
    """Logits behind a prompt in pieces of 16, and after more tokens, are those of whole rows; a window lies across pieces."""
    c, prompt = tiny.model(context_len=80, **over), tiny.tokens(1, 64)[0]
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c)
        for piece, length in ((16, 3), (16, 41), (16, 64), (64, 41)):
            slots = JaxSlots(c, lm, TOKENIZER.vocab_size, slots=2, prefill_tokens=piece)
            job = Job(
                tuple(prompt[:length].tolist()), 8, SamplingParams(0.0), 0, lambda tokens, why: None
            )
            rounds = 0
            while job.num_unread:
                slots.read(1, job)
                rounds += 1
                if job.num_unread:
                    slots.draw({})  # what a slot draws before its prompt is read leaves no trace
            assert rounds == -(-length // piece)
            read = np.asarray(slots.state.logits_bv)[1]
            row = np.concatenate([prompt[:length], slots.draw({}).token_bn[1]])
            padded = np.pad(row, (0, 80 - len(row)))[None]
            want = np.asarray(tiny.logits(c, lm, padded))[0]
            off = 5e-6 * np.abs(want).max()  # sums in another order, at the scale of what is summed
            np.testing.assert_allclose(read, want[length - 1], rtol=0, atol=off)
            np.testing.assert_allclose(
                np.asarray(slots.state.logits_bv)[1], want[len(row) - 1], rtol=0, atol=off
            )


def test_a_long_prompt_delays_nobody(live):
    """It is read two pieces at a time between chunks of those who speak; a short prompt that came later is answered first."""
    with jax.set_mesh(tiny.mesh()):
        engine = make_engine(live.engine.device.c, live.lm, slots=4, prefill_tokens=16)
    engine.stop_ids = set()
    order: list[str] = []
    slots = engine.device
    piece, chunk = slots.read, slots.draw
    slots.read = lambda at, job: (order.append("piece"), piece(at, job))[1]
    slots.draw = lambda jobs: (order.append("chunk"), chunk(jobs))[1]
    heard: dict[str, int] = {}
    done = threading.Event()

    def said(name: str, job_ended: bool) -> None:
        heard.setdefault(name, len(order))
        if job_ended and name == "long":
            done.set()

    asked = [("speaker", b"s", 300), ("long", b"l" * 400, 4), ("short", b"x", 4)]
    for name, prompt, n in asked:
        engine.submit(
            [
                Job(
                    tuple(prompt),
                    n,
                    SamplingParams(),
                    0,
                    lambda tokens, why, name=name: said(name, bool(why)),
                )
            ]
        )
    engine.start()
    assert done.wait(60)
    engine.close()
    assert heard["speaker"] <= heard["short"] < heard["long"]
    assert "piece piece piece" not in " ".join(order[heard["speaker"] : heard["long"]])


# ---------------------------------------------------------------------------------------------------- drawing
WAYS = [
    SamplingParams(1.0),
    SamplingParams(0.5),
    SamplingParams(1.0, 5),
    SamplingParams(1.0, 0, 0.7),
    SamplingParams(0.8, 6, 0.8),
    SamplingParams(1.0, 0, 1.0, 0.2),
    SamplingParams(1.5, 9, 0.9, 0.05),
]


def expected(logits: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """The distribution, by sorting."""
    x = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-x)
    p = np.exp(x - x.max())
    keep = np.zeros(len(x), bool)
    keep[order[: int(sampling.top_k) or None]] = True
    p = np.where(keep, p, 0) / p[keep].sum()
    before = np.cumsum(p[order]) - p[order]
    keep[order] &= (before < sampling.top_p) | (sampling.top_p >= 1)
    p = np.where(keep, p, 0)
    p = np.where(p >= sampling.min_p * p.max(), p, 0)
    return p / p.sum()


def test_draws_follow_the_distribution_of_each_row():
    """Every row its own sampling, in one call; 4,000 draws a row against a slow computation by sorting."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (len(WAYS), 24)).astype(np.float32)
    ways = SamplingParams(
        *(np.array(a, np.float32) for a in zip(*(vars(w).values() for w in WAYS), strict=True))
    )
    with jax.set_mesh(tiny.mesh()):
        draw = jax.jit(jax.vmap(lambda keys: batch.sample_tokens(jnp.asarray(logits), keys, ways)))
        keys = jax.random.split(jax.random.PRNGKey(1), 4000 * len(WAYS)).reshape(4000, len(WAYS), 2)
        drawn = np.asarray(draw(keys))
    for i, sampling in enumerate(WAYS):
        want = expected(logits[i], sampling)
        got = np.bincount(drawn[:, i], minlength=24) / 4000
        assert not got[want == 0].any()
        assert np.abs(got - want).max() < 4 * np.sqrt(0.25 / 4000)
        assert (got[want > 0.01] > 0).all()


def test_a_number_that_is_not_finite_stays_with_its_request(live):
    """One token of the model gives no numbers; who comes to that slot next has no part in it."""
    c = tiny.model(tie_embeddings=False, vocab_size=384, context_len=256)
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c)
        is_x = jnp.arange(384)[:, None] == ord("x")
        table = jnp.where(is_x, jnp.nan, lm["embed"]["table"])
        lm["embed"] = lm["embed"] | {"table": table}
        broken = Engine(JaxSlots(c, lm, TOKENIZER.vocab_size, 2), TOKENIZER)
        broken.stop_ids = set()
        broken.warm_up()
    broken.start()
    # Never drawn by chance, so that whatever is not finite comes from a prompt.
    rest = {"logit_bias": {ord("x"): -100.0}}
    want = answer(broken, list(b"good"), 8, SamplingParams(0.0), **rest)[1]()
    for bad in (b"x" * 100, b"long and then x", b"x at first, then so much more" * 4):
        waits = [answer(broken, list(bad), 8, SamplingParams(0.0))[1] for _ in range(2)]
        assert [wait() for wait in waits] == [([], "invalid")] * 2
        waits = [
            answer(broken, list(b"good"), 8, SamplingParams(0.0), exact=exact, **rest)[1]
            for exact in (True, False)
        ]
        assert [wait() for wait in waits] == [want] * 2
    broken.close()


def test_one_prompt_for_jobs_with_different_wishes(live, engine):
    """Scores, more scores, an embedding and an answer of the same prompt, asked for at once."""
    live.quiet()
    prompt = list(b"the same prompt, longer than one chunk of sixty-four tokens, for all of them")
    wishes = [
        {"embeds_prompt": True}, {"scores_prompt": True, "logprobs": 1}, {},
        {"scores_prompt": True, "logprobs": 5},
    ]  # fmt: skip
    found = []
    for order in ([0], [1], [2], [3], [0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        live.quiet()
        jobs = {i: answer(engine, prompt, 3, SamplingParams(0.0), **wishes[i]) for i in order}
        for i, (job, wait) in sorted(jobs.items()):
            tokens, _ = wait()
            scores = job.prompt_tokens if job.scores_prompt else []
            vector = np.asarray(job.embedding).tolist() if job.embeds_prompt else []
            found.append((i, [t.id for t in tokens], scores, vector))
    alone = found[:4]
    assert all(found[4 + i] == alone[found[4 + i][0]] for i in range(len(found) - 4))
    assert (
        all(len(token.top) == 5 for token in alone[3][2][1:])
        and len(alone[0][3]) == engine.device.c.width
    )
