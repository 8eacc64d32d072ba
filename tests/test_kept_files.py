"""Kept files and JSONL: one byte damaged anywhere, a kill between two writes, a deletion, an old file."""

import json
import logging
import random

import pytest

from ramp import files


@pytest.fixture
def said(caplog):
    """The warnings of one reading."""
    caplog.set_level(logging.WARNING)

    def read(path):
        files.warn_once.cache_clear()
        caplog.clear()
        return files.read_kept(path), [record.getMessage() for record in caplog.records]

    return read


def flip(path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_any_flipped_byte_of_a_kept_file_or_its_copy_is_mended(tmp_path, said, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    path, copy, draw = tmp_path / "a.json", tmp_path / ".a.json.copy", random.Random(0)
    content = b'{"bpb": 1.234}'
    files.write_kept(path, content)
    whole = copy.read_bytes()
    for target in (path, copy):
        for at in range(target.stat().st_size):
            flip(target, at, draw.randrange(8))
            got, messages = said(path)
            assert got == content
            # A damaged checksum beside two equal contents is no loss, and is written again.
            assert len(messages) == 1 or (target == copy and at < 64)
            files.repair_kept(path)
            assert (path.read_bytes(), copy.read_bytes()) == (content, whole)
            assert said(path) == (content, [])


def test_two_damages_are_refused_and_a_deleted_file_stays_deleted(tmp_path):
    path = tmp_path / "a.json"
    files.write_kept(path, "{}")
    assert files.list_kept(tmp_path) == [path]
    flip(path, 0, 0)
    flip(tmp_path / ".a.json.copy", 65, 0)
    with pytest.raises(ValueError, match="neither"):
        files.read_kept(path)
    path.unlink()
    assert files.list_kept(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        files.read_kept(path)


def test_a_kill_between_the_two_writes_is_a_file_that_is_whole(tmp_path, said, monkeypatch):
    path = tmp_path / "a.json"
    files.write_kept(path, "old")
    write = files.write_atomic

    def write_copy_only(target, content):
        if target == path:
            raise KeyboardInterrupt
        write(target, content)

    monkeypatch.setattr(files, "write_atomic", write_copy_only)
    with pytest.raises(KeyboardInterrupt):
        files.write_kept(path, "new")
    monkeypatch.undo()
    assert said(path)[0] == b"new"
    files.repair_kept(path)
    assert path.read_bytes() == b"new"


def test_any_flipped_byte_of_a_line_leaves_the_line_out_or_the_record_as_it_was(tmp_path, caplog):
    path, draw = tmp_path / "m.jsonl", random.Random(1)
    records = [{"step": 1, "loss": 2.5}, {"step": 2, "text": "é\u2028 }"}, {"step": 3}]
    for record in records:
        files.append_jsonl(path, record)
    whole = path.read_bytes()
    assert list(files.read_jsonl(path)) == records == files.read_whole_jsonl(path)
    for at in range(len(whole)):
        path.write_bytes(whole)
        flip(path, at, draw.randrange(8))
        files.warn_once.cache_clear()
        caplog.clear()
        for record in files.read_jsonl(path):
            # A key that was damaged together with its checksum says nothing new of the rest.
            matches = [r for r in records if all(record.get(key) == r[key] for key in r)]
            assert matches
            if record not in records:
                assert not caplog.records
        if len(list(files.read_jsonl(path))) < len(records):
            assert caplog.records


def test_lines_without_checksum_and_torn_ones(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    files.append_jsonl(path, {"step": 3})
    assert [record["step"] for record in files.read_jsonl(path)] == [1, 3]
    with pytest.raises(ValueError, match=r"line 2.*`sed -i 2d .*m.jsonl`"):
        files.read_whole_jsonl(path)
    # A shell shall take the path for one word.
    path = path.rename(tmp_path / "m; two.jsonl")
    with pytest.raises(ValueError, match=r"`sed -i 2d '/.*m; two.jsonl'`"):
        files.read_whole_jsonl(path)
