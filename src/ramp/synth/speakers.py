"""Who answers: the model of a run, of a folder or a GGUF file, or an OpenAI-compatible server."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ramp import rundir
from ramp.errors import UserError
from ramp.files import parse_path

BATCH_SIZE = 32  # replies sampled at once
CONNECTIONS = 8  # to a server at once
TRIES, DELAY = 4, 2.0  # seconds, of a request that a busy server turns away
TIMEOUT = 600  # seconds
CONTEXT = 2048  # of a model that is no run
KEY_VARIABLES = ("RAMP_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    temperature: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 96


class Speaker(Protocol):
    """A chat model that answers prompts."""

    @property
    def name(self) -> str:
        """What it is called where its replies are kept."""
        ...

    @property
    def is_writer(self) -> bool:
        """Whether this process keeps and shows the replies."""
        ...

    def reply(self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling) -> list[str]:
        """One reply to each prompt, each a conversation of its own."""
        ...


def open_speaker(model: str, name: str = "") -> Speaker:
    """The model that a word on the command line means.

    name: which of the models of a server. UserError where there is none.
    """
    if model.startswith(("http://", "https://")):
        return Server.connect(model, name)
    path = parse_path(model)
    if not path.exists():
        raise UserError(
            f"{model} is no run directory, model folder or GGUF file, and no address of a server "
            "(http://...): check the path"
        )
    return LocalModel.load(path)


# --- on this machine


@dataclass(frozen=True)
class LocalModel:
    """A model on the current mesh."""

    name: str
    c: Any  # its Config
    lm: dict
    tokenizer: Any
    is_writer: bool

    @classmethod
    def load(cls, path: Path) -> "LocalModel":
        """Of a run directory (its newest stage that chats), a model folder, or a GGUF file."""
        if (path / "config.toml").exists():
            run, c = rundir.open_run(path)
            # jax is imported late, so that mistakes are quick.
            from ramp.host import setup_devices
            from ramp.text.tokenizer import Tokenizer
            from ramp.train.processes import is_writer
            from ramp.train.restore import load_params

            c = setup_devices(c, stages=())
            tokenizer = Tokenizer.load(run.tokenizer)
            lm = load_params(run, run.default_stage, c, tokenizer)["lm"]
            return cls(str(path), c, lm, tokenizer, is_writer())
        return cls._load_foreign(path)

    @classmethod
    def _load_foreign(cls, path) -> "LocalModel":
        import jax

        from ramp.export import load
        from ramp.host import setup_devices
        from ramp.model import transformer
        from ramp.train.processes import is_writer, to_mesh
        from ramp.train.state import abstract_state

        foreign, tokenizer = load.open_foreign(path)
        c = setup_devices(load.make_config(foreign, tokenizer, CONTEXT), stages=())
        mesh = jax.sharding.get_mesh()
        # Shapes and shardings only; no weights are made.
        like = abstract_state(lambda: transformer.init_params(c.model, jax.random.PRNGKey(0)), mesh)
        weights = load.load_foreign_params(foreign, like, tokenizer)
        lm = jax.tree.map(lambda w, x: to_mesh(w, x.sharding), weights, like)
        return cls(str(path), c, lm, tokenizer, is_writer())

    def reply(self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling) -> list[str]:
        """One reply to each prompt. UserError for a prompt longer than the context."""
        from ramp.decode.sample import SamplingParams, generate
        from ramp.text.chat import render_prompt
        from ramp.text.demo_chats import exchange

        rows = [render_prompt(self.tokenizer, exchange(prompt)) for prompt in prompts]
        longest = max(map(len, rows))
        room = min(how.max_tokens, self.c.model.context_len - longest)
        if room < 1:
            raise UserError(
                f"a question has {longest} tokens and the model's context "
                f"{self.c.model.context_len}; shorten it"
            )
        stop = self.tokenizer.stop_ids
        result = generate(
            self.c.model,
            self.lm,
            rows,
            seeds,
            SamplingParams(how.temperature, min_p=how.min_p),
            room,
            stop=stop,
            vocab_size=self.tokenizer.vocab_size,
            batch_size=BATCH_SIZE,
        )
        return [self.tokenizer.decode(row) for row in result.rows(without=stop)]


# --- behind an address


@dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible API."""

    name: str
    url: str  # up to /v1
    is_writer: bool = True

    @classmethod
    def connect(cls, url: str, name: str = "") -> "Server":
        """The server's only model, or the one of this name. UserError where there is none."""
        url = url.rstrip("/").removesuffix("/chat/completions")
        url = url if url.endswith("/v1") else f"{url}/v1"
        if name:
            return cls(name, url)
        found = _send(f"{url}/models", None).get("data", [])
        names = [str(model.get("id")) for model in found if isinstance(model, dict)]
        if len(names) != 1:
            listed = ", ".join(names[:10]) or "none"
            raise UserError(f"{url} has these models: {listed}; choose one with --name")
        return cls(names[0], url)

    def reply(self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling) -> list[str]:
        """One reply to each prompt, several requests at a time."""

        def ask(prompt, seed):
            body = {
                "model": self.name,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": how.temperature,
                "max_tokens": how.max_tokens,
                "seed": seed,
            }
            # Not every server knows it, and 0 changes nothing.
            if how.min_p:
                body["min_p"] = how.min_p
            answer = _send(f"{self.url}/chat/completions", body)
            try:
                return str(answer["choices"][0]["message"]["content"] or "")
            except (KeyError, IndexError, TypeError):
                raise UserError(
                    f"{self.url} answered {str(answer)[:200]!r} and no chat completion: is it an "
                    "OpenAI-compatible server?"
                ) from None

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(ask, prompts, seeds))


def _send(url, body) -> dict:
    """The JSON that a server answers; without a body it is a GET. UserError for no such answer."""
    headers = {"Content-Type": "application/json"}
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    for attempt in range(TRIES):
        try:
            request = urllib.request.Request(url, data, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(500).decode("utf-8", "replace").split())
            is_busy = error.code in (429, 502, 503)
            if not is_busy or attempt == TRIES - 1:
                raise UserError(f"{url} answered {error.code}: {said[:300]}") from None
        except (urllib.error.URLError, OSError) as error:
            # A server that was never there is not waited for.
            reason = getattr(error, "reason", error)
            raise UserError(f"{url} cannot be reached: {reason}; is the server up?") from None
        except ValueError:
            raise UserError(f"{url} answered no JSON: is it an OpenAI-compatible server?") from None
        time.sleep(DELAY * 2**attempt)
    raise AssertionError("every attempt returns or raises")
