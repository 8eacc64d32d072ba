"""Corpora as people have them, and worse: each ends in documents and counts, or in one sentence.

Every case goes through listing, reading, cutting and the tokenizer, in at most ten seconds.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramp.errors import UserError
from ramp.text.corpus import USED, Document, Tally, content_id, list_parts, read_part
from ramp.text.encode import FastEncoder
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["It was a dark and stormy night; the rain fell in torrents."] * 9, 300)
NIGHT = "It was a dark and stormy night; the rain fell in torrents. "
FRENCH = "Le café est très agréable à l'été, où les élèves étudient près du château. "
RUSSIAN = "Все люди рождаются свободными и равными в своём достоинстве и правах. "  # noqa: RUF001
JAPANESE = "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。"


@dataclass
class Case:
    """A corpus, and what is to come of it."""

    make: object  # writes it into a folder, and returns the source, or None for the folder
    documents: int | None = None  # None: it is refused
    says: str = ""  # a part of the sentence, or of the notes
    counts: dict = field(default_factory=dict)  # besides documents, characters, bytes
    texts: list[str] | None = None
    max_bad: float = 0.01


CASES: dict[str, Case] = {}


def corpus(documents=None, says="", texts=None, max_bad=0.01, **counts):
    """Register a corpus under the name of the function that makes it."""

    def register(make):
        number = len(texts) if texts is not None else documents
        CASES[make.__name__] = Case(make, number, says, counts, texts, max_bad)
        return make

    return register


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# --- files and folders


@corpus(says="matches no file")
def nothing_there(folder):
    return str(folder / "missing")


@corpus(says="matches no file")
def an_empty_folder(folder):
    pass


@corpus(says="holds no text")
def an_empty_file(folder):
    (folder / "a.txt").write_bytes(b"")


@corpus(says="holds no text")
def only_white_space(folder):
    (folder / "a.txt").write_text(" \n\t\r\n\u00a0\u2003\n" * 99)


@corpus(says="binary")
def a_picture_named_txt(folder):
    (folder / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20)


@corpus(says="no file of a known format but .png")
def a_folder_of_pictures(folder):
    (folder / "a.png").write_bytes(b"\x89PNG")


@corpus(1, says="left out, of no known format: .png")
def a_picture_among_texts(folder):
    (folder / "a.png").write_bytes(b"\x89PNG")
    (folder / "a.txt").write_text(NIGHT)


@corpus(2)
def code_by_its_suffix(folder):
    (folder / "a.py").write_text("print('hello')\n")
    (folder / "b.py").write_text("print('world')\n")
    (folder / "c.txt").write_text("not this")
    return f"{folder}/*.py"


@corpus(1)
def a_file_without_suffix(folder):
    (folder / "LICENSE").write_text(NIGHT)
    return str(folder / "LICENSE")


@corpus(40)
def a_link_to_its_own_folder(folder):
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"{NIGHT}{i}")
    (folder / "loop").symlink_to(folder)
    return f"file:{folder}/**/*.txt"


@corpus(3)
def links_in_circles_and_to_nowhere(folder):
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a" / "1.txt").write_text("one text")
    (folder / "b" / "2.txt").write_text("two texts")
    (folder / "a" / "to_b").symlink_to(folder / "b")
    (folder / "b" / "to_a").symlink_to(folder / "a")
    (folder / "me.txt").symlink_to(folder / "me.txt")
    (folder / "gone.txt").symlink_to(folder / "never.txt")
    outside = folder.parent / "outside.txt"
    outside.write_text("three texts")
    (folder / "there.txt").symlink_to(outside)
    (folder / "again.txt").symlink_to(outside)


@corpus(1)
def a_pipe_that_never_ends(folder):
    os.mkfifo(folder / "pipe.txt")
    (folder / "a.txt").write_text(NIGHT)


@corpus(says="neither a file nor a folder")
def a_pipe_by_name(folder):
    os.mkfifo(folder / "pipe.txt")
    return str(folder / "pipe.txt")


@corpus(1)
def a_folder_named_like_a_file(folder):
    (folder / "a.txt").mkdir()
    (folder / "a.txt" / "b.txt").write_text(NIGHT)


@corpus(6)
def names_with_odd_characters(folder):
    names = [
        "a b.txt",
        "a[1].txt",
        "50% #1.txt",
        "new\nline.txt",
        "日本.txt",
        os.fsdecode(b"\xff.txt"),
    ]
    for i, name in enumerate(names):
        (folder / name).write_text(f"{NIGHT}{i}")


@corpus(1)
def a_name_like_a_range(folder):
    (folder / "a{0..9}.txt").write_text(NIGHT)
    return str(folder / "a{0..9}.txt")


@corpus(1)
def a_name_like_a_glob_and_a_field(folder):
    (folder / "a[1]*#b.txt").write_text(NIGHT)
    (folder / "a1.txt").write_text("another")
    return str(folder / "a[1]*#b.txt")


@corpus(1)
def hidden_files(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "a.txt").write_text("never")
    (folder / ".b.txt").write_text("never")
    (folder / "a.txt").write_text(NIGHT)


@corpus(1)
def a_very_deep_folder(folder):
    deep = folder.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text(NIGHT)


@corpus(1000)
def many_small_files(folder):
    for i in range(1000):
        (folder / f"{i}.txt").write_text(f"{NIGHT}{i}")


@corpus(1000)
def the_same_document_a_thousand_times(folder):
    (folder / "a.jsonl").write_text(lines({"text": NIGHT}) * 1000)


@corpus(says="no other known kind")
def an_address_of_another_kind(folder):
    return "ftp://here/a.txt"


@corpus(says="matches no file")
def a_text_in_place_of_its_path(folder):
    return f"{NIGHT * 99}\n\n{NIGHT}"


@corpus(says="matches no file")
def a_path_with_a_zero(folder):
    return f"{folder}/a\0b.txt"


@corpus(says="matches no file")
def the_home_of_nobody(folder):
    return "~nobody-of-this-name/texts"


@corpus(says="matches no file")
def a_glob_that_does_not_close(folder):
    (folder / "a.txt").write_text(NIGHT)
    return f"{folder}/[a.txt"


@corpus(says="may not be read")
def no_permission(folder):
    (folder / "a.txt").write_text(NIGHT)
    (folder / "a.txt").chmod(0)
    return str(folder / "a.txt")


# --- encodings


@corpus(texts=["naïve text"])
def a_mark_of_utf8(folder):
    (folder / "a.txt").write_bytes(codecs.BOM_UTF8 + "naïve text".encode())


@corpus(texts=["naïve text"], says="read as utf-16")
def utf16_with_a_mark(folder):
    (folder / "a.txt").write_bytes("naïve text".encode("utf-16"))


@corpus(texts=[NIGHT * 5], says="read as utf-16-le")
def utf16_without_a_mark(folder):
    (folder / "a.txt").write_bytes((NIGHT * 5).encode("utf-16-le"))


@corpus(texts=[NIGHT], says="read as utf-32")
def utf32(folder):
    (folder / "a.txt").write_bytes(NIGHT.encode("utf-32"))


@corpus(texts=["naïve", "text"], says="read as utf-16")
def lines_of_utf16(folder):
    (folder / "a.jsonl").write_bytes(lines({"text": "naïve"}, {"text": "text"}).encode("utf-16"))


@corpus(says="bad_file")
def utf16_that_breaks_off(folder):
    (folder / "a.txt").write_bytes((NIGHT + "🎈").encode("utf-16")[:-1])


@corpus(texts=[FRENCH * 5], says="read as cp1252")
def latin1(folder):
    (folder / "a.txt").write_bytes((FRENCH * 5).encode("latin-1"))


@corpus(texts=["café"], says="read as cp1252")
def one_word_of_latin1(folder):
    (folder / "a.txt").write_bytes(b"caf\xe9")


@corpus(texts=["“Naïve” — he said…"], says="read as cp1252")
def quotes_of_windows(folder):
    (folder / "a.txt").write_bytes("“Naïve” — he said…".encode("cp1252"))


@corpus(texts=[RUSSIAN * 5], says="read as cp1251")
def russian_of_windows(folder):
    (folder / "a.txt").write_bytes((RUSSIAN * 5).encode("cp1251"))


@corpus(texts=[RUSSIAN * 5], says="read as koi8_r")
def russian_of_unix(folder):
    (folder / "a.txt").write_bytes((RUSSIAN * 5).encode("koi8-r"))


@corpus(texts=[JAPANESE * 5], says="read as cp932")
def shift_jis(folder):
    (folder / "a.txt").write_bytes((JAPANESE * 5).encode("cp932"))


@corpus(texts=[FRENCH, RUSSIAN * 5, JAPANESE], says="read as cp1252")
def an_encoding_a_file(folder):
    (folder / "a.txt").write_bytes(FRENCH.encode("latin-1"))
    (folder / "b.txt").write_bytes((RUSSIAN * 5).encode("koi8-r"))
    (folder / "c.txt").write_text(JAPANESE)


@corpus(texts=["text", "café"], says="read as cp1252")
def latin1_in_a_table(folder):
    (folder / "a.csv").write_bytes("text;n\ntext;1\ncafé;2\n".encode("latin-1"))


@corpus(says="bad_utf8")
def utf8_and_latin1_in_one_file(folder):
    (folder / "a.txt").write_bytes((FRENCH * 50).encode() + FRENCH.encode("latin-1"))


@corpus(150, bad_utf8=1)
def one_damaged_line(folder):
    good = lines(*({"text": f"{FRENCH}{i}"} for i in range(150))).encode()
    damaged = json.dumps({"text": FRENCH}, ensure_ascii=False).encode().replace(b"\xa9", b"", 1)
    (folder / "a.jsonl").write_bytes(good + damaged + b"\n")


@corpus(says="binary")
def random_bytes(folder):
    (folder / "a.txt").write_bytes(bytes((i * i * 7 + i * 131) % 256 for i in range(40_000)))


@corpus(1)
def a_few_zeros_in_a_text(folder):
    (folder / "a.txt").write_text(NIGHT * 3 + "\0" + NIGHT * 3)


@corpus(texts=["a\r\nb\r\n", "c\rd"])
def line_ends_of_all_systems(folder):
    (folder / "a.txt").write_bytes(b"a\r\nb\r\n")
    (folder / "b.txt").write_bytes(b"c\rd")


@corpus(texts=["a\u2028b\u0085c\x0cd"])
def characters_that_look_like_line_ends(folder):
    (folder / "a.jsonl").write_text(
        json.dumps({"text": "a\u2028b\u0085c\x0cd"}, ensure_ascii=False)
    )


# --- lengths


@corpus(says="pieces")
def one_word_of_a_megabyte(folder):
    (folder / "a.txt").write_text("x" * 10**6)


CASES["one_word_of_a_megabyte"].documents = 200


@corpus(2, pieces=2)
def one_line_of_megabytes(folder):
    """One of fifty is read below."""
    (folder / "a.jsonl").write_text(lines({"text": NIGHT * (2 * 2**20 // len(NIGHT))}))


@corpus(2, pieces=2)
def a_long_text_among_many(folder):
    for i in range(30):
        (folder / f"{i:02}.md").write_text("")
    (folder / "long.md").write_text("# One\n\n" + NIGHT * 30_000)


@corpus(20, pieces=19)
def one_file_alone(folder):
    (folder / "input.txt").write_text("\n\n".join(f"{NIGHT * 4}{i}" for i in range(20)))


@corpus(1)
def combining_marks_and_joined_pictures(folder):
    (folder / "a.txt").write_text("e" + "\u0301" * 100 + "👩‍👩‍👧‍👦" * 9 + "\u202e\ufeff\U000e0001")


@corpus(2, empty=998)
def nearly_all_empty(folder):
    records = [{"text": ""}] * 998 + [{"text": "one"}, {"text": "two"}]
    (folder / "a.jsonl").write_text(lines(*records))


# --- JSON


@corpus(200, bad_line=1)
def a_torn_line(folder):
    good = lines(*({"text": f"{NIGHT}{i}"} for i in range(200)))
    (folder / "a.jsonl").write_text(good + '{"text": "It was a da')


@corpus(says="no_text")
def lines_of_numbers(folder):
    (folder / "a.jsonl").write_text("1\n2\n3\n")


@corpus(says="no_text")
def records_without_text(folder):
    (folder / "a.jsonl").write_text(lines({"n": 1}, {"n": 2}))


@corpus(texts=["one", "two"])
def lines_of_strings(folder):
    (folder / "a.jsonl").write_text('"one"\n"two"\n')


@corpus(texts=["one text", "two texts"], says="field 'story_of_it'")
def a_field_of_another_name(folder):
    rows = [{"id": "a" * 40, "story_of_it": text} for text in ("one text", "two texts")]
    (folder / "a.jsonl").write_text(lines(*rows))


@corpus(texts=["one", "two"], says="field 'page.body'")
def nested_fields(folder):
    rows = [{"page": {"body": text, "url": "http://a/b/c/d"}} for text in ("one", "two")]
    (folder / "a.jsonl").write_text(lines(*rows))


@corpus(texts=["q?\na!"], says="field 'messages.content'")
def conversations(folder):
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a!"}]
    (folder / "a.jsonl").write_text(lines({"messages": turns}))


@corpus(texts=["one", "two"])
def a_name_with_a_dot(folder):
    (folder / "a.jsonl").write_text(lines({"a.b": "one"}, {"a.b": "two"}))
    return f"{folder}/a.jsonl#a.b"


@corpus(says="no_text")
def a_field_that_is_not_there(folder):
    (folder / "a.jsonl").write_text(lines({"text": "one"}))
    return f"{folder}/a.jsonl#body"


@corpus(1, max_bad=0.5, bad_line=1)
def a_thousand_brackets(folder):
    (folder / "a.jsonl").write_text("[" * 100_000 + "\n" + lines({"text": "fine"}))


@corpus(1, max_bad=0.5, bad_utf8=1)
def half_a_character_in_an_escape(folder):
    (folder / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "fine"}\n')


@corpus(texts=["fine"])
def numbers_that_no_json_has(folder):
    (folder / "a.jsonl").write_text('{"text": "fine", "n": NaN, "m": 1e999}\n')


@corpus(texts=["one", "two"])
def lines_named_json(folder):
    (folder / "a.json").write_text(lines({"text": "one"}, {"text": "two"}))


@corpus(texts=["one", "two"])
def a_document_named_jsonl(folder):
    (folder / "a.jsonl").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1))


@corpus(texts=["one", "two"])
def records_inside_an_object(folder):
    rows = [{"text": "one"}, {"text": "two"}]
    (folder / "a.json").write_text(json.dumps({"version": 1, "data": rows}))


@corpus(texts=["one", "two"])
def one_record_a_file(folder):
    for name in ("one", "two"):
        (folder / f"{name}.json").write_text(json.dumps({"title": "t", "text": name}))


@corpus(says="bad_line")
def json_that_breaks_off(folder):
    (folder / "a.json").write_text('[{"text": "one"}, {"text": "tw')


@corpus(1, empty=1)
def a_null(folder):
    (folder / "a.jsonl").write_text(lines({"text": None}, {"text": "one"}))


# --- tables


@corpus(texts=['say "hi"', "two\nlines", "x" * 200_000])
def quotes_and_lines_and_long_fields(folder):
    content = 'n,text\n1,"say ""hi"""\n2,"two\nlines"\n3,' + "x" * 200_000
    (folder / "a.csv").write_text(content)


@corpus(texts=["one, two", "three"])
def semicolons(folder):
    (folder / "a.csv").write_text("n;text\n1;one, two\n2;three\n")


@corpus(texts=["one, two", "three"])
def tabs(folder):
    (folder / "a.tsv").write_text("n\ttext\n1\tone, two\n2\tthree\n")


@corpus(3, max_bad=0.5)
def rows_of_other_lengths(folder):
    (folder / "a.csv").write_text("n,text\n1,one,more,and more\n2\n3,three\n4,four\n")


CASES["rows_of_other_lengths"].counts = {"empty": 1}


@corpus(says="open_quote")
def a_quote_that_is_not_closed(folder):
    rows = "".join(f"{i},line {i}\n" for i in range(40))
    (folder / "a.csv").write_text(f'n,text\n1,"open\n{rows}')


@corpus(says="holds no text")
def only_a_header(folder):
    (folder / "a.csv").write_text("n,text\n")


def table(path: Path, **columns):
    pq.write_table(pa.table(columns), path)


@corpus(says="bad_file")
def parquet_that_is_none(folder):
    (folder / "a.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")


@corpus(says="holds no text")
def parquet_without_rows(folder):
    table(folder / "a.parquet", text=pa.array([], pa.string()))


@corpus(says="no_text")
def parquet_of_numbers(folder):
    table(folder / "a.parquet", n=[1, 2, 3])


@corpus(texts=["one", "two"], says="field 'body'", empty=1)
def parquet_with_other_names_and_nulls(folder):
    table(folder / "a.parquet", n=[1, 2, 3], body=["one", None, "two"])


@corpus(texts=["one", "two"], says="field 'page.text'")
def nested_parquet(folder):
    table(folder / "a.parquet", page=[{"text": "one", "n": 1}, {"text": "two", "n": 2}])


@corpus(texts=["one\ntwo", "three"], says="field 'lines'")
def parquet_of_lists(folder):
    table(folder / "a.parquet", lines=[["one", "two"], ["three"]])


@corpus(texts=["one", "one"])
def a_dictionary_in_parquet(folder):
    table(folder / "a.parquet", text=pa.array(["one", "one"]).dictionary_encode())


@corpus(says="no column 'body' but text")
def parquet_without_the_field(folder):
    table(folder / "a.parquet", text=["one"])
    return f"{folder}/a.parquet#body"


@corpus(says="bad_file")
def half_a_parquet(folder):
    table(folder / "a.parquet", text=[f"{NIGHT}{i}" for i in range(999)])
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[: len(whole) // 2])


# --- packed


@corpus(texts=["one", "two", "three", "four"])
def every_kind_of_packing(folder):
    for i, (name, word) in enumerate({"gz": "one", "bz2": "two", "xz": "three"}.items()):
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[name]
        (folder / f"{i}.jsonl.{name}").write_bytes(pack(lines({"text": word}).encode()))
    (folder / "9.txt.zst").write_bytes(zstd(b"four"))


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@corpus(texts=["one", "two"])
def frames_one_behind_the_other(folder):
    frames = (zstd(lines({"text": word}).encode()) for word in ("one", "two"))
    (folder / "a.jsonl.zst").write_bytes(b"".join(frames))


@corpus(says="bad_file")
def gzip_that_breaks_off(folder):
    packed = gzip.compress(lines(*({"text": f"{NIGHT}{i * i}"} for i in range(999))).encode())
    (folder / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])


@corpus(says="bad_file")
def zstd_that_breaks_off(folder):
    (folder / "a.txt.zst").write_bytes(zstd(os.urandom(10**5).hex().encode())[:5000])


@corpus(says="bad_file")
def text_named_gz(folder):
    (folder / "a.txt.gz").write_text(NIGHT)


@corpus(2)
def a_bomb_of_zeros(folder):
    """Forty megabytes of blanks in forty kilobytes."""
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"one" + b" " * (40 * 2**20) + b"two"))


CASES["a_bomb_of_zeros"].counts = {"pieces": 2, "empty": 5241}


def tar(path: Path, *members: tuple[str, bytes], mode="w"):
    with tarfile.open(path, mode) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


@corpus(texts=["one", "two", "three"], says="members of a tar left out")
def a_tar_of_all_formats(folder):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["three"]}), sink)
    tar(
        folder / "a.tar.gz",
        ("a.txt", b"one"),
        ("b/c.jsonl.gz", gzip.compress(lines({"text": "two"}).encode())),
        ("d.parquet", sink.getvalue()),
        ("e.jpg", b"\xff\xd8"),
        mode="w:gz",
    )


@corpus(texts=["one"], says="members of a tar left out")
def a_tar_that_leads_outside(folder):
    with tarfile.open(folder / "a.tar", "w") as file:
        info = tarfile.TarInfo("../../outside.txt")
        info.size = 3
        file.addfile(info, io.BytesIO(b"one"))
        for name, kind in (("link.txt", tarfile.SYMTYPE), ("device.txt", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            file.addfile(info)


@corpus(says="bad_file")
def half_a_tar(folder):
    tar(folder / "a.tar", ("a.txt", NIGHT.encode() * 999))
    whole = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(whole[: len(whole) // 2])


@corpus(says="bad_file")
def a_tar_that_is_none(folder):
    (folder / "a.tar").write_bytes(b"no tar " * 200)


@corpus(says="holds no text")
def an_empty_tar(folder):
    tar(folder / "a.tar")


# --- the test


def read(case: Case, source: str) -> tuple[list[Document], Tally]:
    tally = Tally(source, max_bad=case.max_bad)
    documents = []
    for part in list_parts(source, notes=tally.notes):
        documents += read_part(part, tally)
    tally.close()
    return documents, tally


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_corpus(name, tmp_path, monkeypatch):
    case, folder = CASES[name], tmp_path / "corpus"
    folder.mkdir()
    source = case.make(folder) or str(folder)
    if name == "no_permission" and os.access(folder / "a.txt", os.R_OK):
        pytest.skip("root may read everything")
    began = time.perf_counter()
    if case.documents is None:
        with pytest.raises(UserError, match=case.says) as caught:
            read(case, source)
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert sentence.endswith(".")
        assert len(sentence) < 400
    else:
        documents, tally = read(case, source)
        assert len(documents) == case.documents == tally.counts["documents"]
        if case.texts is not None:
            assert [d.text for d in documents] == case.texts
        left_out = {kind: n for kind, n in tally.counts.items() if kind not in USED}
        expected = {kind: n for kind, n in case.counts.items() if kind not in USED}
        assert left_out == expected
        assert tally.counts["pieces"] >= case.counts.get("pieces", 0)
        assert case.says == "pieces" or any(case.says in note for note in [*tally.notes, ""])
        check_documents(documents)
    assert time.perf_counter() - began < 10


def check_documents(documents: list[Document]) -> None:
    """Ids are of the content, names can be printed, and the tokenizer gives every text back."""
    assert all(d.id == content_id(d.text) for d in documents)
    assert all(d.where.isprintable() for d in documents)
    ids = list(FastEncoder(TOKENIZER).encode_all(d.text for d in documents))
    for document, own in zip(documents, ids, strict=True):
        assert TOKENIZER.decode_bytes(own.tolist()) == document.text.encode()
    shown = Counter(d.where for d in documents)
    assert max(shown.values()) == 1


def test_what_would_be_held_as_a_whole_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ramp.text.formats.MAX_LINE", 1000)
    row = {"text": NIGHT}
    (tmp_path / "a.jsonl").write_text(lines(row, {"text": NIGHT * 99}, row, {"text": "x" * 985}))
    documents, tally = read(Case(None, max_bad=0.9), str(tmp_path / "a.jsonl"))
    assert [d.where for d in documents] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]
    assert tally.counts["line_too_long"] == 1
    (tmp_path / "b.json").write_text(json.dumps([row] * 99))
    with pytest.raises(UserError, match="one record a line"):
        read(Case(None), str(tmp_path / "b.json"))


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text(NIGHT)
    scan = os.scandir

    def forbid(folder):
        if str(folder).endswith("inner"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr("os.scandir", forbid)  # root may read everything
    with pytest.raises(UserError, match=r"inner may not be read: change its permissions\.$"):
        list_parts(str(tmp_path))


def test_a_bad_file_among_many_good_ones_is_left_out_and_counted(tmp_path):
    for i in range(150):
        (tmp_path / f"{i:03}.txt").write_text(f"{NIGHT}{i}")
    packed = gzip.compress(lines(*({"text": f"{NIGHT}{i * i}"} for i in range(99))).encode())
    (tmp_path / "torn.jsonl.gz").write_bytes(packed[:-400])
    (tmp_path / "picture.txt").write_bytes(bytes(range(256)) * 9)
    documents, tally = read(Case(None, max_bad=0.02), str(tmp_path))
    assert len(documents) >= 150
    assert {kind: n for kind, n in tally.counts.items() if kind not in USED} == {
        "bad_file": 1,
        "binary": 1,
    }


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_is_read_in_bounded_memory(tmp_path):
    """`pytest -m slow tests/text/test_hostile_corpora.py`: 50 MB of text, 0.5 GB more at most."""
    line = json.dumps({"text": NIGHT * (50 * 2**20 // len(NIGHT))})
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    code = (
        "import resource, sys; from collections import Counter;"
        "from ramp.text.corpus import documents;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "before = peak(); n = sum(1 for _ in documents(sys.argv[1], Counter()));"
        "print(n, peak() - before)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    number, megabytes = map(int, done.stdout.split())
    assert number >= 48
    assert megabytes < 500
    assert time.perf_counter() - began < 20


def test_there_are_enough_of_them():
    assert len(CASES) >= 60
