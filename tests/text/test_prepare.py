"""Preparation: the same bytes whatever happens, no validation text in training, nothing left out in silence."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ramp.config import Text
from ramp.errors import UserError
from ramp.text import passes, prepare, units
from ramp.text.corpus import content_id, split_of
from ramp.text.prepare import prepare_tokens
from ramp.text.shards import TokenReader
from ramp.text.tokenizer import Tokenizer

TEXT = Text(val_fraction=0.25, vocab_size=300, workers=1)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT", 4000)


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in rng.integers(10**5, size=rng.integers(5, 60))) for _ in range(n)
    ]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def run(tmp_path, source, name="data", **over):
    data = tmp_path / name
    data.mkdir(exist_ok=True)
    text = replace(TEXT, **({} if "mix" in over else {"sources": (f"file:{source}",)}) | over)
    return prepare_tokens(text, data, data / "tokenizer.json")


def hash_files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def read_split(data: Path, split: str) -> list[str]:
    tokenizer = Tokenizer.load(data / "tokenizer.json")
    stream = TokenReader(data / f"{split}.json").read_all()
    starts = np.flatnonzero(stream == tokenizer.bos)
    return [tokenizer.decode_bytes(d.tolist()).decode() for d in np.split(stream, starts)[1:]]


def test_documents_become_shards_in_their_order(tmp_path):
    texts = sentences(150)
    made = run(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts))
    data = tmp_path / "data"
    assert len(made.manifests["train"].shards) > 5
    for split in ("train", "val"):
        want = [t for t in texts if split_of(content_id(t), 0.25) == split]
        assert read_split(data, split) == want
        manifest = made.manifests[split]
        assert (manifest.documents, manifest.bytes) == (len(want), sum(map(len, want)))
    assert made.counts["documents"] == 150 and set(made.counts) == {
        "documents",
        "characters",
        "bytes",
    }
    # The tokenizer is that of the training split alone.
    train = [t for t in texts if split_of(content_id(t), 0.25) == "train"]
    assert made.tokenizer.fingerprint == Tokenizer.train(train, 300).fingerprint
    assert made.sample_bytes == sum(map(len, train))
    # Nothing is left of the work.
    assert sorted(p.name for p in data.iterdir() if p.name[0] != ".") == [
        *("tokenizer.json", "train", "train.json", "val", "val.json")
    ]


def test_the_number_of_workers_changes_no_byte(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", sentences(120) + sentences(40))
    run(tmp_path, source, "one", workers=1)
    run(tmp_path, source, "two", workers=2)
    assert hash_files(tmp_path / "one") == hash_files(tmp_path / "two")


@pytest.mark.parametrize("phase", ["make_first_pass", "make_second_pass"])
def test_what_was_done_before_a_kill_is_not_done_again(tmp_path, monkeypatch, phase, capsys):
    source = write_jsonl(tmp_path / "a.jsonl", sentences(150))
    run(tmp_path, source, "whole")
    whole, done = getattr(passes, phase), []

    def fail_at_the_fourth(argument):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(argument)
        return whole(argument)

    monkeypatch.setattr(prepare, phase, fail_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source)
    assert not (tmp_path / "data/train.json").exists()
    again = []
    monkeypatch.setattr(
        prepare, phase, lambda argument: (again.append(argument), whole(argument))[1]
    )
    capsys.readouterr()
    made = run(tmp_path, source)
    assert len(again) == len(list((tmp_path / "whole/train").iterdir())) - 3
    assert "3 of" in capsys.readouterr().out
    assert hash_files(tmp_path / "data") == hash_files(tmp_path / "whole")
    assert made.counts["documents"] == 150


def stop_before_second_pass(folder, source, monkeypatch):
    """A preparation that ends where the first pass is done and kept."""

    def fail(argument):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "make_second_pass", fail)
        with pytest.raises(KeyboardInterrupt):
            run(folder, source)


def test_sources_that_change_between_two_starts_are_read_again(tmp_path, monkeypatch, capsys):
    files = [write_jsonl(tmp_path / f"{i}.jsonl", sentences(30, i)) for i in range(4)]
    source = tmp_path / "*.jsonl"

    stop_before_second_pass(tmp_path, source, monkeypatch)
    write_jsonl(files[2], sentences(30, 99))
    run(tmp_path, source)
    assert "have changed since" in capsys.readouterr().out
    run(tmp_path, source, "whole")
    assert hash_files(tmp_path / "data") == hash_files(tmp_path / "whole")


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path, monkeypatch):
    texts = sentences(40)
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    whole = passes.make_second_pass

    for changed in ([*texts[:-1], "another"], texts[:-1]):
        write_jsonl(source, texts)

        def change(argument, changed=changed):
            write_jsonl(source, changed)
            return whole(argument)

        monkeypatch.setattr(prepare, "make_second_pass", change)
        with pytest.raises(UserError, match="has changed while it was prepared"):
            run(tmp_path, source)
    # The remedy: start again.
    monkeypatch.setattr(prepare, "make_second_pass", whole)
    assert run(tmp_path, source).counts["documents"] == 39


def test_no_validation_document_is_in_training(tmp_path):
    """Each document twice, and each once more with another end: 43 of 47 leaked when ids were places."""
    texts = [t for t in sentences(200, 1) if len(t.split()) > 20]
    near = [f"{t} and so on" for t in texts]
    mixed = [t for three in zip(texts, texts[::-1], near, strict=True) for t in three]
    made = run(tmp_path, write_jsonl(tmp_path / "a.jsonl", mixed))
    train, val = (read_split(tmp_path / "data", split) for split in ("train", "val"))
    base = {t.removesuffix(" and so on") for t in train}
    assert not base & {t.removesuffix(" and so on") for t in val}
    assert made.counts["exact_duplicates"] == len(texts)
    left = made.counts["near_duplicates"] + made.counts["near_duplicates_of_validation"]
    assert len(train) + len(val) == 2 * len(texts) - left
    assert made.counts["near_duplicates_of_validation"] > 10
    # Texts of a dozen shingles and three others are J = .8: some of those are missed.
    assert left > 0.9 * len(texts)


@pytest.mark.parametrize(("dedup", "documents"), [("near", 20), ("exact", 40), ("off", 60)])
def test_duplicates_may_be_kept(tmp_path, dedup, documents):
    texts = sentences(20, 2)
    texts = [t + " " + t[::-1] for t in texts]
    source = write_jsonl(tmp_path / "a.jsonl", [*texts, *texts, *[t.upper() for t in texts]])
    made = run(tmp_path, source, dedup=dedup)
    assert sum(m.documents for m in made.manifests.values()) == documents


def test_a_line_at_the_top_moves_no_document(tmp_path):
    texts = sentences(200, 3)
    run(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts), "before")
    run(tmp_path, write_jsonl(tmp_path / "b.jsonl", ["something new", *texts]), "after")
    for split in ("train", "val"):
        before, after = (read_split(tmp_path / name, split) for name in ("before", "after"))
        assert [t for t in after if t != "something new"] == before


def test_test_sets_are_kept_out(tmp_path):
    texts, test = sentences(60, 4), sentences(10, 5)
    write_jsonl(tmp_path / "test.jsonl", [*test, "too short"])
    long = [t for t in test if len(t.split()) >= 13]
    dirty = [f"{texts[i]} {t} {texts[i + 1]}" for i, t in enumerate(long)]
    source = write_jsonl(tmp_path / "a.jsonl", [*texts, *dirty])
    made = run(tmp_path, source, decontaminate=(f"file:{tmp_path}/test.jsonl",))
    assert made.counts["contaminated"] == len(dirty) > 5
    assert made.test.num_documents == 11 and made.test.num_short >= 1
    assert sum(m.documents for m in made.manifests.values()) == len(texts)


def test_a_mix_has_a_stream_for_each_source(tmp_path):
    names = [
        f"file:{write_jsonl(tmp_path / f'{i}.jsonl', sentences(n, i))}"
        for i, n in enumerate((40, 90))
    ]
    made = run(tmp_path, "", mix=((names[0], 1.0), (names[1], 3.0)))
    streams = made.manifests["train"].streams
    assert [(s.source, s.weight) for s in streams] == [(names[0], 1.0), (names[1], 3.0)]
    counts = Counter(split_of(content_id(t), 0.25) for t in sentences(40, 0))
    assert sum(shard.documents for shard in streams[0].shards) == counts["train"]
    assert len(made.manifests["val"].streams) == 1


@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_a_split_without_a_document_is_one_sentence_and_its_remedy_works(tmp_path, fraction):
    texts = [t for t in sentences(30, 6) if split_of(content_id(t), 0.01) == "train"][:6]
    if fraction == 0.5:
        texts = [t for t in sentences(30, 6) if split_of(content_id(t), 0.5) == "val"][:6]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(
        UserError, match=r"set text.val_fraction to (0\.\d+), which holds out \d+"
    ) as error:
        run(tmp_path, source, val_fraction=fraction)
    remedy = float(str(error.value).split("set text.val_fraction to ")[1].split(",")[0])
    made = run(tmp_path, source, val_fraction=remedy)
    assert made.manifests["train"].documents and made.manifests["val"].documents


def test_one_document_is_refused(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", sentences(1) * 5)
    with pytest.raises(
        UserError, match="5 documents were read, of which 4 exact duplicates left: training"
    ):
        run(tmp_path, source)


def test_the_tokenizer_is_fitted_to_a_sample_of_much_text(tmp_path, monkeypatch):
    for module in (passes, prepare):
        monkeypatch.setattr(module, "SAMPLE_BYTES", 10_000)
    source = write_jsonl(tmp_path / "a.jsonl", sentences(600, 7))
    made = run(tmp_path, source)
    assert 7_000 < made.sample_bytes <= 14_000 < made.manifests["train"].bytes / 5
    # A file may hold more text than its size says.
    monkeypatch.setattr(units, "UNKNOWN_SIZE", 1)
    monkeypatch.setattr(prepare, "UNKNOWN_SIZE", 1)
    again = run(tmp_path, source, "again")
    assert again.sample_bytes == made.sample_bytes


def test_bad_records_of_all_units_are_judged_together(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(300, 8))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:200] + ["{\n"] * 2 + lines[200:]))
    assert run(tmp_path, path).counts["bad_line"] == 2
    path.write_text("".join(lines[:200] + ["{\n"] * 20 + lines[200:]))
    with pytest.raises(UserError, match="20 of 320 records cannot be read"):
        run(tmp_path, path)


def test_damaged_work_is_one_sentence_and_its_remedy_works(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", sentences(60, 9))

    stop_before_second_pass(tmp_path, source, monkeypatch)
    kept = tmp_path / "data/work/first/00001.npz"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    with pytest.raises(UserError, match=r"delete .*/data/work, and prepare again"):
        run(tmp_path, source)
    shutil.rmtree(tmp_path / "data/work")
    assert run(tmp_path, source).counts["documents"] == 60
