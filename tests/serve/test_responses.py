"""/v1/responses and /v1/embeddings with `openai` unchanged."""

import base64
import json

import httpx
import jax
import numpy as np
import openai
import pytest
import tiny

from ramp.model import transformer


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


HELLO = [{"role": "user", "content": "Hello"}]


def respond(client, **more):
    return client.responses.create(
        **({"model": "tiny", "input": "Hello", "max_output_tokens": 20, "temperature": 0} | more)
    )


def test_a_response(client):
    said = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=20, temperature=0
    )
    want = said.choices[0].message.content
    done = respond(client, store=False, metadata={"a": "b"})
    assert done.output_text == want and done.object == "response"
    # The limit was met, and this form says so in two places.
    assert done.status == "incomplete" and done.incomplete_details.reason == "max_output_tokens"
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (
        9,
        20,
        29,
    )
    for talk in (
        HELLO,
        [{"role": "user", "type": "message", "content": [{"type": "input_text", "text": "Hello"}]}],
    ):
        assert respond(client, input=talk).output_text == want
    told = [{"role": "system", "content": "Be brief."}, *HELLO]
    said = client.chat.completions.create(model="tiny", messages=told, max_tokens=20, temperature=0)
    assert respond(client, instructions="Be brief.").output_text == said.choices[0].message.content
    # What was said comes back as it was given out.
    talk = [*HELLO, done.output[0].to_dict(), {"role": "user", "content": "More"}]
    assert respond(client, input=talk).usage.input_tokens > 29


def test_a_response_in_events(client):
    whole = respond(client)
    events = list(respond(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    with client.responses.stream(
        model="tiny", input="Hello", max_output_tokens=20, temperature=0
    ) as helper:
        texts = [event.delta for event in helper if event.type == "response.output_text.delta"]
    assert "".join(texts) == whole.output_text


def test_a_response_in_a_form(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    done = respond(client, text={"format": form}, max_output_tokens=100, temperature=1)
    assert done.status == "completed" and set(json.loads(done.output_text)) == {"ok"}
    kinds = [
        e.type for e in respond(client, text={"format": form}, max_output_tokens=100, stream=True)
    ]
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "messages[0].content"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"max_output_tokens": 5000}, "messages"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
def test_what_the_basic_form_lacks_is_named(live, more, param):
    with httpx.Client(base_url=live.url) as web:
        answer = web.post("/v1/responses", json={"model": "tiny", "input": "Hello"} | more)
        assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param


TEXTS = ["Hello", "a longer text, read in more than one chunk " * 4, "é🙂"]


def embed(client, value, **more):
    return client.embeddings.create(model="tiny", input=value, **more)


def test_embeddings(client, live):
    """The mean of the last hidden states, of length 1: what a whole forward pass gives."""
    done = embed(client, TEXTS)  # base64, as the client has it
    floats = embed(client, TEXTS, encoding_format="float")
    tokenizer, c = live.model.tokenizer, live.engine.device.c
    rows = [[tokenizer.bos, *tokenizer.encode(text)] for text in TEXTS]
    assert done.usage.prompt_tokens == done.usage.total_tokens == sum(map(len, rows))
    with jax.set_mesh(tiny.mesh()):
        for row, one, other in zip(rows, done.data, floats.data, strict=True):
            x = transformer.compute_hidden(c, live.lm, np.array([row]))
            y, _ = transformer.apply_head(c, live.lm, x)
            want = np.asarray(y, np.float64).mean(0)
            want /= np.linalg.norm(want)
            np.testing.assert_allclose(one.embedding, want, atol=1e-5)
            np.testing.assert_array_equal(np.float32(one.embedding), np.float32(other.embedding))
    # Ids, one text alone, a text in any company.
    assert [one.index for one in done.data] == [0, 1, 2]
    for value in (TEXTS[0], [TEXTS[0]], rows[0], [rows[0]], [TEXTS[0]] * 9):
        again = embed(client, value)
        np.testing.assert_array_equal(again.data[-1].embedding, done.data[0].embedding)
    raw = httpx.post(
        live.url + "/v1/embeddings",
        json={"model": "tiny", "input": "x", "encoding_format": "base64"},
    )
    assert len(base64.b64decode(raw.json()["data"][0]["embedding"])) == 4 * c.width
    live.quiet()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [9999]}, "input"),
        ({"input": None}, "input"),
        ({"input": "x" * 600}, "input"),
        ({"input": ["x"] * 300}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_cannot_be_embedded_is_named(live, more, param):
    with httpx.Client(base_url=live.url) as web:
        answer = web.post("/v1/embeddings", json={"model": "tiny", "input": "Hello"} | more)
        assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param
