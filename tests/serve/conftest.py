"""A live server over a tiny random model, for the tests of this directory."""

import socket
import threading
import time
from dataclasses import replace

import jax
import pytest
import tiny
import uvicorn

from ramp.config import Config, Text, resolve
from ramp.serve import api
from ramp.serve.connections import Connections
from ramp.serve.device import JaxSlots
from ramp.serve.engine import Engine
from ramp.serve.protocol import ServedModel
from ramp.text.tokenizer import Tokenizer


class Live:
    """A server in a thread of this process."""

    def __init__(self, slots: int = 4, queue: int = 24):
        tokenizer = Tokenizer.bytes_only()
        c = resolve(
            replace(
                Config(),
                model=tiny.model(context_len=512, vocab_size=384),
                text=Text(tokenizer="bytes"),
            )
        )
        with jax.set_mesh(tiny.mesh()):
            self.lm = tiny.lively(c.model)
            slots_on_mesh = JaxSlots(c.model, self.lm, tokenizer.vocab_size, slots)
            self.engine = Engine(slots_on_mesh, tokenizer, queue)
            self.engine.stop_ids = set()  # answers are as long as they were asked to be
            self.engine.warm_up()
        self.engine.start()
        sock = api.listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = ServedModel("tiny", c, tokenizer, "finetune")
        self.api = api.Api(self.engine, self.model)
        self.connections = Connections()
        self.http = uvicorn.Server(api.make_server_config(self.api, self.connections))
        self.thread = threading.Thread(
            target=self.http.run, kwargs={"sockets": [sock]}, daemon=True
        )
        self.thread.start()
        while not self.http.started:
            time.sleep(0.01)

    def quiet(self) -> None:
        """Wait until no request is being answered or waits."""
        for _ in range(1000):
            if not self.engine.running and not self.engine.waiting:
                return
            time.sleep(0.01)
        raise AssertionError(f"{len(self.engine.running)} slots were never given back")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def close(self) -> None:
        self.http.should_exit = True
        self.thread.join(timeout=20)
        self.engine.close()
        assert (
            self.engine.error is None
            and not self.thread.is_alive()
            and not self.engine._thread.is_alive()
        )


@pytest.fixture(scope="package")
def live():
    server = Live()
    yield server
    server.close()
