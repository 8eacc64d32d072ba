"""A server of the page that answers by script: what a real one says on its worst days."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ramp.serve.api import CONTENT_SECURITY_POLICY, PAGE

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
INFO = {
    "model": "stub",
    "stage": "finetune",
    "can_chat": True,
    "shape": {"depth": 4, "width": 64, "context": 512, "vocab": 384},
    "settings": {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "tokens": 100},
    "tasks": {"chain": 12, "swaps": 9},
}
CUT = "cut"  # in a reply: the connection ends there


def say(*pieces: str, field: str = "content") -> list[str]:
    """The events of an answer, without its end."""
    choices = [{"index": 0, "delta": {field: piece}, "finish_reason": None} for piece in pieces]
    return [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]


END = ["data: [DONE]\n\n"]


class Stub:
    """`replies`: what the next requests get, in turn: (status, message), or a list of events, of CUT and of
    `threading.Event` to wait for. Without one, the question comes back. `asked`: the bodies so far."""

    def __init__(self):
        self.replies: list = []
        self.asked: list[dict] = []
        self.key = ""
        self.info = INFO
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def send(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                if body is not None:
                    self.wfile.write(body)

            def send_json(self, status, data):
                self.send(status, "application/json", json.dumps(data).encode())

            def refuse(self, status, message):
                self.send_json(status, {"error": {"message": message}})

            def may_ask(self):
                return not stub.key or self.headers["Authorization"] == f"Bearer {stub.key}"

            def do_GET(self):
                path = self.path.split("?")[0]
                file = PAGE / ("index.html" if path == "/" else path.removeprefix("/page/"))
                if path == "/ramp/info":
                    if self.may_ask():
                        self.send_json(200, stub.info)
                    else:
                        self.refuse(401, "wrong or missing key")
                elif file.is_file():
                    self.send(200, TYPES[file.suffix], file.read_bytes())
                else:
                    self.refuse(404, "there is nothing at this address")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.may_ask():
                    return self.refuse(401, "wrong or missing key")
                stub.asked.append(body)
                text = body["messages"][-1]["content"]
                reply = stub.replies.pop(0) if stub.replies else say(text) + END
                if isinstance(reply, tuple):
                    return self.refuse(*reply)
                self.send(200, "text/event-stream", None)
                for event in reply:
                    if event is CUT:
                        return None
                    if isinstance(event, threading.Event):
                        event.wait(20)
                    else:
                        self.wfile.write(event.encode())
                        self.wfile.flush()
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
