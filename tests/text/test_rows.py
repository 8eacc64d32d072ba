"""Every token is a target once; a batch depends on (seed, step) alone; damage is noticed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text.rows import ArrayRows, Batches, TokenRows, split_positions
from ramp.text.shards import Manifest, Stream, TokenReader, write_shard, write_tokens
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
    return TokenRows(written(tmp_path / "train.json", corpus(60)), 16, TOK.fingerprint)


def array_rows(n: int = 7, length: int = 4) -> ArrayRows:
    grid = np.arange(n * length, dtype=np.int32).reshape(n, length)
    return ArrayRows(
        grid, grid + 1, np.ones((n, length), np.float32), np.zeros((n, length), np.int32)
    )


def take_one(rows, i: int) -> dict[str, np.ndarray]:
    return {name: array[0] for name, array in rows.take(np.array([i])).items()}


def test_the_stream_and_its_sidecar(tmp_path):
    docs = corpus(20)
    info = write_tokens(tmp_path / "a.json", iter(docs), TOK)
    again = TokenReader(tmp_path / "a.json", TOK.fingerprint)
    stream = again.read_all()
    assert list(stream) == [i for doc in docs for i in (TOK.bos, *doc)]
    assert info == again.manifest
    assert info.documents == 20
    assert info.tokens == len(stream)
    assert info.bytes == sum(map(len, docs))  # one byte a token here, none for bos
    assert stream.dtype == np.uint16 == np.dtype(info.dtype)
    assert np.array_equal(np.load(tmp_path / "a/00000.npy"), stream)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.json.copy", "a", "a.json"]


def test_a_large_vocabulary_does_not_overflow(tmp_path):
    tok = Tokenizer(tuple((a, b) for a in range(256) for b in range(256)))
    assert tok.vocab_size > 2**16
    write_tokens(tmp_path / "a.json", [np.array([1, 65_700])], tok)
    assert list(TokenReader(tmp_path / "a.json").read_all()) == [tok.bos, 1, 65_700]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), length=st.integers(1, 40))
def test_every_token_but_the_first_is_a_target_once(tmp_path_factory, sizes, length):
    docs = [np.arange(size) + 1 for size in sizes]
    if sum(sizes) + len(sizes) < 2:
        return
    rows = TokenRows(written(tmp_path_factory.mktemp("rows") / "a.json", docs), length)
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
        write_tokens(tmp_path / "a.json", docs(), TOK)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_cannot_pass_for_the_old_tokens(tmp_path):
    path = written(tmp_path / "a.json", corpus(9))

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


def _hollow(path):
    path.write_text("{}")


def _other_counts(path):
    path.write_text(path.read_text().replace('"documents": 9', '"documents": 8'))


def _gone(path):
    path.unlink()


@pytest.mark.parametrize("harm", [_truncate, _flip, _empty, _hollow, _gone])
def test_damaged_shards_are_refused(tmp_path, harm):
    path = written(tmp_path / "a.json", corpus(9))
    TokenRows(path, 8, TOK.fingerprint).take(np.arange(1))
    harm(tmp_path / "a/00000.npy")
    with pytest.raises(UserError, match=r"a/00000\.npy.*ramp prepare"):
        TokenRows(path, 8, TOK.fingerprint).take(np.arange(1))


@pytest.mark.parametrize("harm", [_truncate, _flip, _empty, _hollow, _other_counts, _gone])
def test_damaged_manifests_are_refused(tmp_path, harm):
    path = written(tmp_path / "a.json", corpus(9))
    (tmp_path / ".a.json.copy").unlink()
    harm(path)
    with pytest.raises(UserError, match=r"a\.json.*ramp prepare"):
        TokenRows(path, 8, TOK.fingerprint)


def sharded(path, streams, weights=None, tok=TOK):
    """A manifest of streams, each a list of shards, each a list of documents."""
    listed = []
    for s, shards in enumerate(streams):
        parts = [
            write_shard(path.with_suffix("") / f"{s}-{i}.npy", docs, tok)
            for i, docs in enumerate(shards)
        ]
        listed.append(Stream(f"file:{s}", weights[s] if weights else 1.0, tuple(parts)))
    Manifest(tok.fingerprint, tok.bos, "uint16", tuple(listed)).save(path)
    return path


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4).map(sorted),
    length=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_rows_of_shards_are_those_of_the_whole(tmp_path_factory, cuts, length, seed):
    docs = [d + 1 for d in corpus(12, seed)]
    pieces = [docs[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True) if a < b]
    folder = tmp_path_factory.mktemp("shards")
    whole = TokenRows(written(folder / "a.json", docs), length, mask_documents=True)
    parts = TokenRows(sharded(folder / "b.json", [pieces]), length, mask_documents=True)
    assert len(whole) == len(parts)
    numbers = np.random.default_rng(seed).integers(0, len(whole), 20)
    for name, array in whole.take(numbers).items():
        assert np.array_equal(parts.take(numbers)[name], array), name


def test_segments_number_the_documents_of_a_row(tmp_path):
    docs = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6])]
    rows = TokenRows(written(tmp_path / "a.json", docs), 4, mask_documents=True)
    batch = rows.take(np.arange(len(rows)))
    # bos 1 2 bos | 3 bos 4 5 | 6
    assert batch["segments"].tolist() == [[1, 1, 1, 2], [0, 1, 1, 1]]
    rows = TokenRows(written(tmp_path / "a.json", docs), 5, mask_documents=True)
    assert rows.take(np.arange(2))["segments"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, -1, -1]]


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("ramp.text.shards.MAX_OPEN", 2)
    docs = corpus(30)
    whole = TokenRows(written(tmp_path / "a.json", docs), 16)
    parts = TokenRows(sharded(tmp_path / "b.json", [[[d] for d in docs]]), 16)
    numbers = np.random.default_rng(0).permutation(len(whole))
    assert np.array_equal(parts.take(numbers)["tokens"], whole.take(numbers)["tokens"])
    assert len(parts.reader._open) <= 2


def test_a_sample_is_of_whole_documents_evenly_spread(tmp_path):
    docs = [np.full(9, i % 200) for i in range(300)]
    path = sharded(tmp_path / "b.json", [[docs[:70], docs[70:71], docs[71:300]]])
    reader = TokenReader(path)
    assert np.array_equal(reader.read_documents(3000), reader.read_all())
    sample = reader.read_documents(1000).reshape(-1, 10)
    assert (sample[:, 0] == TOK.bos).all() and (sample[:, 1:] == sample[:, 1:2]).all()
    assert sample[:, 1].tolist() == [i % 200 for i in range(0, 300, 3)]
    assert len(reader.read_documents(999)) <= 999


# ---- mixes


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    start=st.integers(0, 10**11),
)
def test_a_mix_has_its_fractions_at_every_position(weights, start):
    part, place = split_positions(np.arange(2000), weights)
    for i, weight in enumerate(weights):
        own = part == i
        assert np.array_equal(place[own], np.arange(own.sum()))  # none left out, none twice
        expected = np.arange(1, 2001) * weight / sum(weights)
        assert np.abs(np.cumsum(own) - expected).max() < len(weights) + 0.01
    # Any position may be asked for alone.
    far = np.arange(start, start + 50)
    together = split_positions(far, weights)
    alone = [split_positions(far[i : i + 1], weights) for i in range(50)]
    assert [(int(p[0]), int(q[0])) for p, q in alone] == list(
        zip(*(a.tolist() for a in together), strict=True)
    )


def mixed_rows(tmp_path, weights=(0.25, 0.75)):
    streams = [[[np.full(15, s + 10 * i) for i in range(n)]] for s, n in ((0, 4), (1, 9))]
    return TokenRows(sharded(tmp_path / "mix.json", streams, weights), 16)


def test_a_batch_of_a_mix_is_the_same_on_any_number_of_hosts(tmp_path):
    for hosts in (1, 4, 8):
        parts = []
        for host in range(hosts):
            rows = mixed_rows(tmp_path)
            batches = Batches(rows, 8, seed=3, mix=rows.mix)
            share = 8 // hosts
            parts += [batches(s, host * share, (host + 1) * share)["tokens"] for s in (0, 7, 99)]
        got = np.concatenate([np.concatenate(parts[i::3]) for i in range(3)])
        if hosts == 1:
            whole = got
        assert np.array_equal(got, whole)


def test_small_sources_of_a_mix_have_more_epochs_each_another_order(tmp_path):
    rows = mixed_rows(tmp_path)
    batches = Batches(rows, 8, seed=3, mix=rows.mix)
    drawn = np.concatenate([batches(step)["tokens"][:, 1] for step in range(36)])
    small = drawn[drawn % 10 == 0]
    assert len(small) == 72  # a quarter of 288
    epochs = small.reshape(-1, 4)
    assert all(sorted(epoch) == [0, 10, 20, 30] for epoch in epochs)
    assert rows.count_epochs(288) == {"file:0": 18.0, "file:1": 24.0}
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    path = written(tmp_path / "a.json", corpus(9))
    other = Tokenizer.train(["ab ab ab abc"], 266)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenRows(path, 8, other.fingerprint)


@pytest.mark.parametrize("docs", [[], [np.array([], np.int32)]])
def test_too_few_tokens_are_refused(tmp_path, docs):
    with pytest.raises(UserError, match="too few"):
        TokenRows(written(tmp_path / "a.json", docs), 8)


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
