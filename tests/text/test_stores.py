"""gs:// and hf:// through fsspec, against servers on this machine that speak as those stores do."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

FILES = {
    "data/b.jsonl": b'{"body": "second, from a store"}\n',
    "data/a.jsonl": b'{"body": "first, from a store"}\n',
    "data/deep/c.txt": b"third, from a store",
    "data/picture.png": b"\x89PNG\0\0",
}
READ = """
import json, sys
from collections import Counter
from pathlib import Path
from ramp.errors import UserError
from ramp.text.corpus import documents
for source in sys.argv[2:]:
    try:
        docs = list(documents(source, Counter(), cache=Path(sys.argv[1])))
        print(json.dumps([(d.text, d.where) for d in docs]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


class Store(BaseHTTPRequestHandler):
    """As much of the two stores as reading and listing need."""

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, name, headers=()):
        data = FILES.get(name)
        if data is None:
            return self.answer(b"{}", 404, **dict(headers))
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self.answer(part, 206, Content_Range=span, **dict(headers))
        return self.answer(data, **dict(headers))

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer({}, 404)


class Bucket(Store):
    def do_GET(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = unquote(url.path)
        if "/b/mine/" not in path:
            return self.answer({}, 404)
        name = path.split("/o/", 1)[1] if "/o/" in path else ""
        if "/download/" in path or query.get("alt") == ["media"]:
            return self.send_file(name)
        if name:
            return self.answer(item(name)) if name in FILES else self.answer({}, 404)
        if not path.endswith("/o"):
            return self.answer({}, 404)
        prefix = query.get("prefix", [""])[0]
        found = [n for n in FILES if n.startswith(prefix)]
        if query.get("delimiter") != ["/"]:
            return self.answer({"items": [item(n) for n in found]})
        inner = {n: n.removeprefix(prefix) for n in found}
        folders = {prefix + rest.split("/")[0] + "/" for rest in inner.values() if "/" in rest}
        items = [item(n) for n, rest in inner.items() if "/" not in rest]
        return self.answer({"items": items, "prefixes": sorted(folders)})


def item(name):
    size, time = str(len(FILES[name])), "2026-01-01T00:00:00.000Z"
    return {"name": name, "bucket": "mine", "size": size, "timeCreated": time, "updated": time}


class Hub(Store):
    def do_GET(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        commit = {"X_Repo_Commit": "0" * 40, "ETag": '"1"'}
        if path.startswith("/datasets/me/mine/resolve/"):
            return self.send_file(path.split("/", 6)[6], commit)
        api = "/api/datasets/me/mine"
        if path in (api, f"{api}/revision/main"):
            return self.answer({"id": "me/mine", "sha": "0" * 40, "_id": "1", "private": False})
        if path.startswith(f"{api}/tree/main"):
            folder = path.removeprefix(f"{api}/tree/main").strip("/")
            is_deep = parse_qs(url.query).get("recursive") == ["true"]
            return self.answer(list_tree(folder + "/" if folder else "", is_deep))
        return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        paths = parse_qs(body).get("paths") or json.loads(body or "{}").get("paths", [])
        found = []
        for path in paths:
            if path in FILES:
                found.append(entry(path))
            elif any(name.startswith(path + "/") for name in FILES):
                found.append({"type": "directory", "path": path, "oid": "1"})
        self.answer(found)


def list_tree(prefix, is_deep):
    inner = [name.removeprefix(prefix) for name in FILES if name.startswith(prefix)]
    folders = sorted({rest.split("/")[0] for rest in inner if "/" in rest})
    files = [prefix + rest for rest in inner if is_deep or "/" not in rest]
    found = [{"type": "directory", "path": prefix + name, "oid": "1"} for name in folders]
    return found + [entry(name) for name in files]


def entry(name):
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": "1"}


def read(handler, variable, tmp_path, *sources):
    """What every source gives in a process that knows of the server by an environment variable."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        variable: f"http://127.0.0.1:{server.server_port}",
        "NO_PROXY": "127.0.0.1",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",  # this is no machine of Google's: do not look for its key
        "HF_HOME": str(tmp_path / "hub"),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path / "cache"), *sources],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "package,handler,variable,root",
    [
        # Half of its ten seconds are imports: `pytest -m slow tests/text/test_stores.py`.
        pytest.param(
            *("gcsfs", Bucket, "STORAGE_EMULATOR_HOST", "gs://mine"), marks=pytest.mark.slow
        ),
        ("huggingface_hub", Hub, "HF_ENDPOINT", "hf://datasets/me/mine"),
    ],
)
def test_a_store_is_read_by_file_glob_and_folder(package, handler, variable, root, tmp_path):
    pytest.importorskip(package)
    one, glob, folder, missing, nothing, elsewhere = read(
        handler,
        variable,
        tmp_path,
        f"{root}/data/a.jsonl",
        f"{root}/data/*.jsonl#body",
        f"{root}/data",
        f"{root}/data/none.jsonl",
        f"{root}/data/*.csv",
        root.replace("mine", "other") + "/data",
    )
    assert one == [["first, from a store", "a.jsonl:1"]]
    second = ["second, from a store", "b.jsonl:1"]
    assert glob == [*one, second]
    assert folder == [*glob, ["third, from a store", "deep/c.txt"]]
    assert "none.jsonl cannot be downloaded" in missing or "no such object" in missing
    assert "matches no file" in nothing
    assert "cannot be downloaded" in elsewhere or "matches no file" in elsewhere
