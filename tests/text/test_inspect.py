"""What a sample of a corpus shows is near what is there, and the configuration chosen for it works."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramp.config import Config, check_config, replace, resolve
from ramp.errors import UserError
from ramp.rundir import fit_vocabulary
from ramp.text.corpus import split_of
from ramp.text.inspect import choose_config, describe, inspect_sources

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from"
)


def sentence(i: int, words: int = 40) -> str:
    known = WORDS.split()
    return " ".join(known[(i * 7 + j * j) % len(known)] for j in range(words)) + f" {i}."


def test_small_corpora_are_read_as_a_whole(tmp_path):
    rows = [{"id": str(i), "page": {"body": sentence(i)}} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    (tmp_path / "b.txt").write_text("\n\n".join(sentence(i) for i in range(100, 150)))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "c.csv").write_bytes("text\ncafé crème\n".encode("latin-1"))
    found = inspect_sources([str(tmp_path)])
    assert found.is_exact
    assert found.num_repeated == 1
    assert dict(found.formats) == {".jsonl": 1, ".txt": 1, ".csv": 1}
    assert len(found.ids) == found.num_documents - 1
    c = choose_config(found, Config())
    says = describe(found, c)
    for part in (
        "text found in the field 'page.body'",
        "left out, of no known format: .png",
        "read as cp1252",
        "pieces in what was read",
        "1 of ",
        "epochs",
        "prepare pretrain eval",
    ):
        assert part in says
    splits = [split_of(i, c.text.val_fraction) for i in found.ids]
    assert min(splits.count("val"), splits.count("train")) >= 8
    assert check_config(resolve(c)).pretrain.steps == c.pretrain.steps


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "parquet", "csv"])
def test_a_sample_is_near_the_whole(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("ramp.text.inspect.SAMPLE_BYTES", 2**18)
    texts = [sentence(i, 30 + i % 90) for i in range(8000)]
    rows = [{"text": t} for t in texts]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none")
    elif suffix == "txt":
        (tmp_path / "a.txt").write_text("\n\n".join(texts))
    elif suffix == "csv":
        (tmp_path / "a.csv").write_text("text\n" + "\n".join(texts))
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = inspect_sources([str(tmp_path / f"a.{suffix}")])
    assert not found.is_exact
    size = sum(map(len, texts))
    # Parquet packs what repeats even where it does not compress.
    assert 0.7 * size < found.num_bytes < (3.5 if suffix == "parquet" else 1.3) * size
    assert "about" in describe(found, choose_config(found, Config()))


def test_what_is_set_stays(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(sentence(i) for i in range(300)))
    found = inspect_sources([str(tmp_path)])
    c = Config()
    c = replace(c, stages=("prepare",), model=replace(c.model, depth=3, context_len=64))
    c = replace(c, pretrain=replace(c.pretrain, steps=7, batch_size=2))
    c = replace(c, text=replace(c.text, vocab_size=300, val_fraction=0.4))
    chosen = choose_config(found, c)
    assert chosen.stages == ("prepare",)
    assert (chosen.model.depth, chosen.model.width, chosen.model.context_len) == (3, 0, 64)
    assert (chosen.pretrain.steps, chosen.pretrain.batch_size) == (7, 2)
    assert (chosen.text.vocab_size, chosen.text.val_fraction) == (300, 0.4)
    resolve(chosen)


@pytest.fixture
def address(tmp_path):
    """Of a server on this machine that serves the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *args: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_small_files_of_other_machines_are_read_and_large_ones_estimated(
    tmp_path, address, monkeypatch
):
    text = "\n\n".join(sentence(i) for i in range(2000))
    (tmp_path / "a.txt").write_text(text)
    found = inspect_sources([f"{address}/a.txt"], cache=tmp_path / "cache")
    assert found.is_exact
    assert found.num_bytes == len(text)
    monkeypatch.setattr("ramp.text.inspect.MAX_DOWNLOAD", 1000)
    far = inspect_sources([f"{address}/a.txt"], cache=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert far.num_bytes == len(text)
    for inspection in (found, far):
        c = choose_config(inspection, Config())
        assert "epochs" in describe(inspection, c)
    assert "1 large files of other machines were not looked into" in describe(far, c)
    # What is not there is said by whoever downloads it.
    gone = inspect_sources([f"{address}/gone.txt"])
    assert gone.num_bytes > 0


@pytest.mark.parametrize("content", ["", "a few words", "x" * 1000])
def test_too_little_text_is_one_sentence(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=r"holds no text|too few to train on: give at least 2,000"):
        choose_config(inspect_sources([str(tmp_path)]), Config())


@pytest.mark.parametrize("size", [2_500, 6_000, 40_000, 400_000])
def test_both_splits_get_rows_whatever_the_size(tmp_path, size):
    (tmp_path / "a.txt").write_text("\n\n".join(sentence(i) for i in range(size // 160)))
    found = inspect_sources([str(tmp_path / "a.txt")])
    c = choose_config(found, Config())
    held_out = [i for i in found.ids if split_of(i, c.text.val_fraction) == "val"]
    assert 0 < len(held_out) < len(found.ids)
    assert 60 <= c.pretrain.steps <= 750
    resolve(c)


def test_the_vocabulary_of_another_tokenizer_stays(tmp_path):
    from ramp.text.tokenizer import Tokenizer

    (tmp_path / "a.txt").write_text("\n\n".join(sentence(i) for i in range(300)))
    Tokenizer.train([sentence(i) for i in range(300)], 300).save(tmp_path / "tokenizer.json")
    c = Config()
    c = replace(c, text=replace(c.text, tokenizer=str(tmp_path / "tokenizer.json")))
    c = fit_vocabulary(c)  # as the command line does before it chooses
    found = inspect_sources([str(tmp_path / "a.txt")])
    assert choose_config(found, c).text.vocab_size == 300
