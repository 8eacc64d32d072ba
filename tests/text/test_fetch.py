"""Shards are downloaded once, whole and checked; what may pass is tried again, the rest is refused."""

import hashlib
import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramp.errors import UserError
from ramp.text import fetch
from ramp.text.corpus import Document, content_id, documents


def doc(text: str, where: str) -> Document:
    return Document(content_id(text), text, where)


def read(source, **kwargs) -> tuple[list[Document], Counter]:
    counts = Counter()
    return list(documents(source, counts, **kwargs)), counts


def parquet_bytes(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def server():
    """A loopback server: `plan` maps a path to its answers in turn, a status, a body or an address; the last stays."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            here.asked.append(self.path)
            answers = here.plan.get(self.path, [404])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, str):
                self.send_response(302)
                self.send_header("Location", answer)
                self.end_headers()
                return
            if isinstance(answer, int):
                self.send_error(answer)
                return
            body, promised = answer if isinstance(answer, tuple) else (answer, len(answer))
            self.send_response(200)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    here = HTTPServer(("127.0.0.1", 0), Handler)
    here.plan, here.asked = {}, []
    here.url = f"http://127.0.0.1:{here.server_port}"
    threading.Thread(target=here.serve_forever, daemon=True).start()
    yield here
    here.shutdown()
    here.server_close()


@pytest.fixture
def naps(monkeypatch):
    """Seconds that a download would have slept between attempts."""
    slept = []
    monkeypatch.setattr("ramp.text.fetch.time.sleep", slept.append)
    return slept


def test_a_shard_that_fails_twice_then_comes(server, naps, tmp_path):
    body = parquet_bytes("one", "two")
    server.plan["/s_0.parquet"] = [
        503,
        (body[:50], len(body)),
        body,
    ]  # an error, then a connection cut short
    source = server.url + "/s_0.parquet"
    docs, _ = read(source, cache=tmp_path)
    assert docs == [doc("one", "s_0.parquet:1"), doc("two", "s_0.parquet:2")]
    assert naps == [1.0, 2.0]
    assert len(server.asked) == 3
    assert read(source, cache=tmp_path)[0] == docs
    assert len(server.asked) == 3  # the second time it came from the cache
    note = json.loads(next(tmp_path.glob("*.sha256.json")).read_text())
    assert note == {"url": source, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def test_a_query_is_no_part_of_the_name(server, tmp_path):
    server.plan["/s.parquet?download=true"] = [parquet_bytes("one")]
    assert read(server.url + "/s.parquet?download=true", cache=tmp_path)[0] == [
        doc("one", "s.parquet:1")
    ]


def test_a_range_of_shards(server, naps, tmp_path):
    for i in range(3):
        server.plan[f"/s_0{i}.parquet"] = [parquet_bytes(f"text {i}")]
    docs, _ = read(server.url + "/s_{00..02}.parquet", cache=tmp_path)
    assert [d.text for d in docs] == ["text 0", "text 1", "text 2"]
    assert naps == []


def test_shards_come_one_at_a_time_as_they_are_read(server, tmp_path):
    for i in range(3):
        server.plan[f"/s_{i}.parquet"] = [parquet_bytes(f"text {i}")]
    stream = documents(server.url + "/s_{0..2}.parquet", Counter(), cache=tmp_path)
    assert next(stream).text == "text 0"
    assert server.asked == ["/s_0.parquet"]


def test_a_shard_that_never_comes(server, naps, tmp_path):
    server.plan["/s.parquet"] = [500]
    with pytest.raises(UserError, match=r"s\.parquet cannot be downloaded \(attempt 5: HTTP 500"):
        read(server.url + "/s.parquet", cache=tmp_path)
    assert naps == [1, 2, 4, 8]
    with pytest.raises(UserError, match=r"attempt 1: HTTP 404"):
        read(server.url + "/none.parquet", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(naps, tmp_path):
    with pytest.raises(UserError, match=r"attempt 5: .*refused"):
        read("http://127.0.0.1:9/s.parquet", cache=tmp_path)


def shard_list(tmp_path, *entries) -> str:
    (tmp_path / "shards.json").write_text(json.dumps(entries))
    return f"@{tmp_path / 'shards.json'}"


def test_a_list_with_checksums(server, naps, tmp_path):
    body = parquet_bytes("one")
    server.plan["/s.parquet"] = [body]
    good, cache = hashlib.sha256(body).hexdigest(), tmp_path / "cache"
    wrong = shard_list(tmp_path, {"url": server.url + "/s.parquet", "sha256": "0" * 64})
    with pytest.raises(UserError, match=f"has sha256 {good} but the shard list says 000"):
        read(wrong, cache=cache)
    assert list(cache.iterdir()) == []
    right = shard_list(tmp_path, {"url": server.url + "/s.parquet", "sha256": good.upper()})
    assert read(right, cache=cache)[0] == [doc("one", "s.parquet:1")]


def test_a_file_that_changed_in_the_cache_is_noticed(server, tmp_path):
    server.plan["/s.parquet"] = [parquet_bytes("one")]
    source = server.url + "/s.parquet"
    read(source, cache=tmp_path)
    held = next(tmp_path.glob("*.parquet"))
    held.write_bytes(parquet_bytes("two"))
    with pytest.raises(UserError, match="delete it, and it will be downloaded again"):
        read(source, cache=tmp_path)
    held.unlink()
    assert read(source, cache=tmp_path)[0][0].text == "one"


@pytest.mark.parametrize("content", ["", "{}", '[{"sha256": "0"}]', "[3]", "[]"])
def test_bad_shard_lists(tmp_path, content):
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(UserError, match="shard list"):
        read(f"@{tmp_path}/shards.json")
    with pytest.raises(UserError, match="cannot be opened"):
        read(f"@{tmp_path}/none.json")


def test_plain_http_is_for_loopback_only(server, tmp_path):
    with pytest.raises(UserError, match="neither an https"):
        read("http://example.invalid/s.parquet", cache=tmp_path)
    with pytest.raises(UserError, match="neither an https"):
        read("http://127.0.0.1.example.invalid/s.parquet", cache=tmp_path)
    server.plan["/s.parquet"] = ["http://example.invalid/s.parquet"]
    with pytest.raises(UserError, match="neither an https"):
        read(server.url + "/s.parquet", cache=tmp_path)
    entry = {"url": "file:///etc/passwd"}
    with pytest.raises(UserError, match="neither an https"):
        read(shard_list(tmp_path, entry), cache=tmp_path)


def test_gs_without_fsspec_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"ramp-lm\[gcs\]"):
        read("gs://bucket/s.parquet", cache=tmp_path)


def test_brace_ranges():
    assert fetch.expand_braces("a{8..10}b") == ["a8b", "a9b", "a10b"]
    assert fetch.expand_braces("{008..010}") == ["008", "009", "010"]
    assert fetch.expand_braces("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]
    assert fetch.expand_braces("plain") == ["plain"]
    with pytest.raises(UserError, match="backwards"):
        fetch.expand_braces("{5..1}")
