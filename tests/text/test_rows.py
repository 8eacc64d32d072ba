"""Every token is a target once; a batch depends on (seed, step) alone; damage is noticed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text.rows import ArrayRows, Batches, TokenRows, read_tokens, write_tokens
from ramp.text.tokenizer import Tokenizer

TOK = Tokenizer.bytes_only()


def corpus(n_docs: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(0, 40), dtype=np.int32) for _ in range(n_docs)]


def written(path, docs):
    write_tokens(path, docs, TOK)
    return path


@pytest.fixture
def rows(tmp_path):
    return TokenRows(written(tmp_path / "train.npy", corpus(60)), 16, TOK.fingerprint)


def array_rows(n: int = 7, length: int = 4) -> ArrayRows:
    grid = np.arange(n * length, dtype=np.int32).reshape(n, length)
    return ArrayRows(
        grid, grid + 1, np.ones((n, length), np.float32), np.zeros((n, length), np.int32)
    )


def take_one(rows, i: int) -> dict[str, np.ndarray]:
    return {name: array[0] for name, array in rows.take(np.array([i])).items()}


def test_the_stream_and_its_sidecar(tmp_path):
    docs = corpus(20)
    info = write_tokens(tmp_path / "a.npy", iter(docs), TOK)
    stream, again = read_tokens(tmp_path / "a.npy", TOK.fingerprint)
    assert list(stream) == [i for doc in docs for i in (TOK.bos, *doc)]
    assert info == again
    assert info.documents == 20
    assert info.tokens == len(stream)
    assert info.bytes == sum(map(len, docs))  # one byte a token here, none for bos
    assert stream.dtype == np.uint16 == np.dtype(info.dtype)
    assert np.array_equal(np.load(tmp_path / "a.npy"), stream)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.npy.json"]


def test_a_large_vocabulary_does_not_overflow(tmp_path):
    tok = Tokenizer(tuple((a, b) for a in range(256) for b in range(256)))
    assert tok.vocab_size > 2**16
    write_tokens(tmp_path / "a.npy", [np.array([1, 65_700])], tok)
    assert list(read_tokens(tmp_path / "a.npy")[0]) == [tok.bos, 1, 65_700]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), length=st.integers(1, 40))
def test_every_token_but_the_first_is_a_target_once(tmp_path_factory, sizes, length):
    docs = [np.arange(size) + 1 for size in sizes]
    if sum(sizes) + len(sizes) < 2:
        return
    rows = TokenRows(written(tmp_path_factory.mktemp("rows") / "a.npy", docs), length)
    whole = [take_one(rows, i) for i in range(len(rows))]
    stream = [i for doc in docs for i in (TOK.bos, *doc)]
    bears = np.concatenate([row["weights"] for row in whole]) > 0
    assert [*np.concatenate([row["targets"] for row in whole])[bears]] == stream[1:]
    assert [*np.concatenate([row["tokens"] for row in whole])[bears]] == stream[:-1]
    assert bears[: len(stream) - 1].all()
    assert not bears[len(stream) - 1 :].any()
    assert len(rows) == -(-(len(stream) - 1) // length)
    for row in whole:
        assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
            "tokens": ((length,), np.int32),
            "targets": ((length,), np.int32),
            "weights": ((length,), np.float32),
        }


def test_a_failing_source_leaves_nothing_behind(tmp_path):
    def docs():
        yield np.arange(5)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_tokens(tmp_path / "a.npy", docs(), TOK)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_cannot_pass_for_the_old_tokens(tmp_path):
    path = written(tmp_path / "a.npy", corpus(9))

    def docs():
        yield np.arange(5)
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        write_tokens(path, docs(), TOK)
    with pytest.raises(UserError, match="ramp prepare"):
        TokenRows(path, 8)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-6])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def _empty(path):
    path.write_bytes(b"")


def _no_sidecar(path):
    path.with_name(path.name + ".json").unlink()


def _bad_sidecar(path):
    path.with_name(path.name + ".json").write_text('{"tokens"')


def _hollow_sidecar(path):
    path.with_name(path.name + ".json").write_text("{}")


def _gone(path):
    path.unlink()


@pytest.mark.parametrize(
    "harm", [_truncate, _flip, _empty, _no_sidecar, _bad_sidecar, _hollow_sidecar, _gone]
)
def test_damaged_tokens_are_refused(tmp_path, harm):
    path = written(tmp_path / "a.npy", corpus(9))
    TokenRows(path, 8, TOK.fingerprint)
    harm(path)
    with pytest.raises(UserError, match=r"a\.npy.*ramp prepare"):
        TokenRows(path, 8, TOK.fingerprint)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    path = written(tmp_path / "a.npy", corpus(9))
    other = Tokenizer.train(["ab ab ab abc"], 266)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenRows(path, 8, other.fingerprint)


@pytest.mark.parametrize("docs", [[], [np.array([], np.int32)]])
def test_too_few_tokens_are_refused(tmp_path, docs):
    with pytest.raises(UserError, match="too few"):
        TokenRows(written(tmp_path / "a.npy", docs), 8)


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_number_of_hosts_forms_the_same_batch(rows, shuffle):
    batches = Batches(rows, 8, seed=3, shuffle=shuffle)
    for step in (0, 1, batches.num_batches - 1):
        whole = batches(step)
        for hosts in (2, 4, 8):
            share = 8 // hosts
            fresh = Batches(rows, 8, seed=3, shuffle=shuffle)  # another host: nothing carried over
            parts = [fresh(step, host * share, (host + 1) * share) for host in range(hosts)]
            for name, array in whole.items():
                assert np.array_equal(np.concatenate([part[name] for part in parts]), array)
                assert array.flags.c_contiguous


def test_every_epoch_is_another_permutation(rows):
    n = len(rows)
    first_targets = {tuple(take_one(rows, i)["targets"]): i for i in range(n)}
    assert len(first_targets) == n
    batches = Batches(rows, 5, seed=1)
    drawn = [first_targets[tuple(t)] for step in range(n) for t in batches(step)["targets"]]
    epochs = [tuple(drawn[e * n : (e + 1) * n]) for e in range(5)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(range(n)), *epochs}) == 6


def test_the_order_of_rows_is_the_one_it_was():
    """A run resumed under a newer Grain must not see other data: if this fails, the shuffle has changed."""
    batches = Batches(array_rows(10), 10, seed=7)
    order = [list(batches(step)["tokens"][:, 0] // 4) for step in range(2)]
    assert order == [[7, 9, 0, 8, 4, 2, 5, 6, 3, 1], [6, 0, 4, 2, 7, 9, 1, 5, 8, 3]]


def test_batches_are_pure_in_seed_and_step(rows):
    one, two = Batches(rows, 4, seed=1), Batches(rows, 4, seed=1)
    ahead = [two(step)["tokens"] for step in (7, 2, 1000)]
    assert all(
        np.array_equal(one(step)["tokens"], held)
        for step, held in zip((7, 2, 1000), ahead, strict=True)
    )
    assert not np.array_equal(one(7)["tokens"], Batches(rows, 4, seed=2)(7)["tokens"])


def test_a_batch_may_hold_more_rows_than_there_are():
    batch = Batches(array_rows(3), 8, seed=0)(0)
    assert sorted(batch["tokens"][:3, 0]) == sorted(batch["tokens"][3:6, 0]) == [0, 4, 8]


def test_in_order_the_last_batch_is_padded_with_rows_of_weight_zero():
    rows = array_rows(7)
    batches = Batches(rows, 4, shuffle=False)
    assert batches.num_batches == 2
    first, last = batches(0), batches(1)
    held = np.concatenate([first["tokens"], last["tokens"][:3]])
    assert np.array_equal(held, rows.tokens)
    assert first["weights"].all()
    assert last["weights"][:3].all()
    assert not last["weights"][3].any()
    assert (last["segments"][3] == -1).all()
    assert not batches(1, 3, 4)["weights"].any()
    for bad in ((2,), (-1,), (0, 2, 2), (0, 0, 5), (0, -1, 2)):
        with pytest.raises(IndexError):
            batches(*bad)


def test_batches_do_not_lend_out_the_rows():
    rows = array_rows(4)
    before = rows.tokens.copy()
    for shuffle in (True, False):
        batch = Batches(rows, 2, shuffle=shuffle)(0)
        batch["tokens"][:] = -7
    assert np.array_equal(rows.tokens, before)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        Batches(array_rows(4), 0)
    with pytest.raises(UserError, match="at least 1"):
        Batches(array_rows(0), 4)


def test_array_rows_can_be_looked_into(tmp_path):
    path, rows = tmp_path / "chat.npz", array_rows()
    rows.save(path, "abc")
    with np.load(path, allow_pickle=False) as file:
        saved = dict(file)
    assert str(saved.pop("tokenizer")) == "abc"
    assert saved.keys() == vars(rows).keys()
    for name, array in vars(rows).items():
        assert np.array_equal(saved[name], array) and saved[name].dtype == array.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["chat.npz"]


def test_text_does_not_import_jax():
    code = "import sys, ramp.text.rows, ramp.text.chat, ramp.text.corpus; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", "import json; " + code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "grain", "pyarrow"} & set(json.loads(done.stdout))
