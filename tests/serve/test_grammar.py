"""Answers by a schema: valid JSON from a model that knows none, whoever else is served."""

import json
import queue
import random
import re
from collections import Counter

import httpx
import numpy as np
import openai
import pytest
from pydantic import BaseModel
from schemas import make_root

from ramp.decode import batch
from ramp.decode.sample import SamplingParams
from ramp.serve import grammar, protocol
from ramp.serve.answers import check_reason
from ramp.serve.fields import ApiError
from ramp.serve.jobs import Job
from ramp.text.tokenizer import SPECIALS, Tokenizer

pytest.importorskip("llguidance")

# A model that has learnt nothing would hardly ever end a string, a number or a list.
CLOSERS = {ord(c): 3.0 for c in '"]},'} | {ord(c): -2.0 for c in "0123456789[{\\"}


def ask(engine, constraint, n=400, seed=0, **more):
    """A submitted job, and a function that waits for (ids, finish reason)."""
    events: queue.Queue = queue.Queue()
    sampling = more.pop("sampling", SamplingParams(1.0))
    more = {"logit_bias": CLOSERS} | more
    job = Job(
        tuple(b"json:"), n, sampling, seed, lambda *news: events.put(news),
        constraint=constraint and constraint.copy(()), **more,
    )  # fmt: skip
    engine.submit([job])

    def wait():
        ids, why = [], ""
        while not why:
            tokens, why = events.get(timeout=60)
            ids += [token.id for token in tokens]
        return ids, why

    return wait


def compile_schema(live, schema):
    return live.model.grammars.compile(grammar.write_json_grammar(schema, "f"), "f")


def check_random_schemas(live, count, seed):
    """Every answer that ends is valid; one that meets the limit says so, and is asked for again."""
    jsonschema = pytest.importorskip("jsonschema")
    r = random.Random(seed)
    reasons = Counter()
    left = []
    for number in range(count):
        schema = make_root(r)
        left.append((schema, compile_schema(live, schema), number))
    for turn in range(20):
        again = []
        for first in range(0, len(left), 24):
            group = left[first : first + 24]
            # Also with few tokens left: cut short, it says so.
            waits = [ask(live.engine, made, 400, 1000 * turn + i) for _, made, i in group]
            for item, wait in zip(group, waits, strict=True):
                ids, why = wait()
                reasons[why] += 1
                text = live.model.tokenizer.decode_bytes(ids).decode("utf-8", "replace")
                if why == "stop":
                    value = json.loads(text)
                    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
                    validator = jsonschema.Draft202012Validator(item[0], format_checker=checker)
                    assert not [*validator.iter_errors(value)], (item[0], text)
                else:
                    assert why == "length" and len(ids) == 400
                    again.append(item)
        left = again
        if not left:
            break
    assert not left, [schema for schema, _, _ in left]
    print(dict(reasons))


def test_random_schemas(live):
    check_random_schemas(live, 40, seed=1)


@pytest.mark.slow
def test_a_thousand_random_schemas(live):
    """`pytest -m slow -s tests/serve/test_grammar.py -k thousand`"""
    check_random_schemas(live, 1000, seed=2)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client, **more):
    asked = {"model": "tiny", "max_tokens": 200, "seed": 1, "logit_bias": CLOSERS} | more
    return client.chat.completions.create(
        messages=[{"role": "user", "content": "Who?"}],
        **asked,
    )


def as_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def test_openai_s_client_parses(client):
    done = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "Who?"}], response_format=Person,
        seed=3, max_tokens=300, logit_bias=CLOSERS,
    )  # fmt: skip
    assert done.choices[0].finish_reason == "stop"
    assert isinstance(done.choices[0].message.parsed.age, int)


def test_every_way_to_ask(client):
    """Several answers, streams, stop strings, figures and text completions, all in the form."""
    done = chat(client, n=4, response_format=as_format(PERSON), logprobs=True, top_logprobs=2)
    texts = [choice.message.content for choice in done.choices]
    assert len(set(texts)) == 4 and all(set(json.loads(t)) == {"name", "age"} for t in texts)
    # The figures are the model's own, over all tokens.
    assert all(t.logprob <= 0 for c in done.choices for t in c.logprobs.content)
    streamed = [""] * 4
    for piece in chat(client, n=4, response_format=as_format(PERSON), stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    cut = chat(client, response_format=as_format(PERSON), stop=['","age', '", "age'])
    assert cut.choices[0].finish_reason == "stop"
    greedy = chat(
        client, temperature=0, response_format={"type": "json_object"}, logit_bias={"125": 9}
    )
    assert isinstance(json.loads(greedy.choices[0].message.content), dict)
    for form, pattern in (
        ({"syntax": "regex", "definition": "a+/b\\d"}, "a+/b\\d"),
        ({"syntax": "lark", "definition": 'start: "x" ("y" | "z")+'}, "x[yz]+"),
    ):
        form = {"type": "grammar"} | form
        done = client.completions.create(
            model="tiny", prompt="x", max_tokens=99, seed=1, logit_bias={"98": 5},
            extra_body={"response_format": form},
        )  # fmt: skip
        # What has no end of its own ends with the limit.
        assert re.fullmatch(pattern, done.choices[0].text)


def test_what_is_cut_short_says_so(client):
    whole = chat(client, response_format=as_format(PERSON)).choices[0]
    for limit in range(1, 12):
        cut = chat(client, response_format=as_format(PERSON), max_tokens=limit).choices[0]
        assert cut.finish_reason == "length" and whole.message.content.startswith(
            cut.message.content
        )


def test_company_changes_nothing(live):
    """A grammar beside others, and others beside a grammar: bit for bit what each gets alone."""
    made = compile_schema(live, {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3})
    kinds = [(None, {"logit_bias": {}}), (made, {}), (None, {"frequency_penalty": 1.0}), (made, {})]

    def start(i):
        constraint, more = kinds[i]
        return ask(live.engine, constraint, 120, seed=i, **more)

    live.quiet()
    alone = [start(i)() for i in range(4)]
    live.quiet()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 2]):
        waits = {i: start(i) for i in order}
        assert [waits[i]() for i in order] == [alone[i] for i in order]


def test_nothing_compiles_and_slots_come_back(live, client):
    programs = batch.decode_slots, batch.finish_round, batch.prefill_chunk
    before = [f._cache_size() for f in programs]
    made = compile_schema(live, {"type": "string", "minLength": 300})
    waits = [ask(live.engine, made, 60, i) for i in range(6)]
    stream = chat(
        client, n=4, response_format=as_format({"type": "string", "minLength": 300}), stream=True
    )
    next(iter(stream))
    stream.close()
    assert [wait()[1] for wait in waits] == ["length"] * 6
    live.quiet()
    # What a grammar forbade in a slot is allowed to who comes next.
    ids = [ask(live.engine, None, 200, 9, logit_bias={7: 100})()[0] for _ in range(2)]
    assert ids == [[7] * 200] * 2
    assert [f._cache_size() for f in programs] == before


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {}}, '"not"'),
        ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, '"uniqueItems"'),
        ({"if": {}, "then": {}}, '"if"'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "http://example.org/x"}, "example.org"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"$ref": "#"}, "no text has this form"),
        ({"type": "whole"}, "whole"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"minimum": 3, "maximum": 1, "type": "integer"}, "minimum"),
        ({"enum": ["x" * 70_000]}, "65536"),
    ],
)
def test_what_cannot_be_followed_is_named(live, schema, says):
    with httpx.Client(base_url=live.url) as web:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        answer = web.post(
            "/v1/chat/completions", json=body | {"response_format": as_format(schema)}
        )
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"].startswith("response_format")
        assert says in error["message"] and len(error["message"]) < 600


def test_a_keyword_that_is_not_followed_is_refused(live):
    """Each keyword of the newest JSON Schema that says what is valid: followed, or named."""
    jsonschema = pytest.importorskip("jsonschema")
    followed = {
        "$ref": "#/$defs/a", "allOf": [{"minLength": 2}], "anyOf": [{"type": "null"}], "const": 3, "enum": [3],
        "exclusiveMaximum": 3, "exclusiveMinimum": 3, "items": False, "maxItems": 0, "maxLength": 0, "maximum": 3,
        "maxProperties": 0, "minItems": 1, "minLength": 2, "minimum": 3, "minProperties": 2, "multipleOf": 3,
        "pattern": "x", "patternProperties": {"": False}, "prefixItems": [{"const": 1}], "additionalProperties": False,
        "properties": {"a": {"const": 3}}, "required": ["q"], "type": "null", "oneOf": [{"type": "null"}],
    }  # fmt: skip
    for name in jsonschema.Draft202012Validator.VALIDATORS:
        if name in followed:
            compile_schema(live, {name: followed[name], "$defs": {"a": {"const": 3}}})
        elif name != "format":
            with pytest.raises(ApiError, match=re.escape(name)):
                compile_schema(live, {name: 1})
    # Together with what they forbid, no text is left.
    values = [None, 3, 1, 2.5, "", "ab", [], [1], {}, {"a": 1}]
    for name, value in followed.items():
        schema = {name: value, "$defs": {"a": {"const": 3}}}
        valid = jsonschema.Draft202012Validator(schema)
        for example in values:
            made = compile_schema(live, schema).copy(())
            for byte in json.dumps(example).encode():
                if made.failed_after is None and made.num_tokens is None:
                    made.accept(byte)
                else:
                    made.failed_after = 0
            is_whole = made.failed_after is None and made.matcher.is_accepting()
            assert not is_whole or valid.is_valid(example), (schema, example)


@pytest.mark.parametrize(
    "value",
    [
        {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "grammar", "syntax": "lark"}, {"type": "grammar", "syntax": "lark", "definition": "start: x"},
        {"type": "grammar", "syntax": "regex", "definition": "("}, {"type": "grammar", "syntax": "lark", "definition": "{"},
    ],
)  # fmt: skip
def test_forms_that_are_none(live, value):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": value,
    }
    with pytest.raises(ApiError) as caught:
        protocol.parse_request(body, live.model, True)
    assert caught.value.status == 400 and caught.value.param == "response_format"


def test_half_a_pair_is_no_pattern():
    value = {"type": "grammar", "syntax": "regex", "definition": "\ud800"}
    with pytest.raises(ApiError, match="is no text"):
        grammar.read_format(value, "f")


def test_brackets_without_end(live):
    for key in ("allOf", "properties"):
        schema: dict = {}
        inner = schema
        for _ in range(900):
            inner[key] = [{}] if key == "allOf" else {"a": {}}
            inner = inner[key][0 if key == "allOf" else "a"]
        with pytest.raises(ApiError, match="deep"):
            compile_schema(live, schema)


def test_a_model_that_thinks_answers_in_form():
    """The form counts from the end of thinking, before which the answer may not end."""
    names = (*SPECIALS, "<think>", "</think>")
    tokenizer = Tokenizer(names=names, visible=names[8:])
    grammars = grammar.Grammars(tokenizer)
    opened = [tokenizer.bos, tokenizer.id_of("<think>"), 10]
    for prompt, thinks in (
        (opened, True),
        ([*opened, tokenizer.id_of("</think>"), 10, 10, 10], False),
    ):
        made = grammars.compile('start: "ab"', "f").copy(prompt)
        row = np.full(20, -1, np.int32)
        made.fill(row)
        allowed = {i for i in range(tokenizer.vocab_size) if row[i // 32] >> (i % 32) & 1}
        everything = set(range(tokenizer.vocab_size)) - set(tokenizer.stop_ids)
        assert allowed == (everything if thinks else {ord("a")})
        for id in (*b"hm", tokenizer.id_of("</think>")) if thinks else ():
            made.accept(id)
        for id in b"ab":
            assert made.num_tokens is None and made.failed_after is None
            made.accept(id)
        assert made.num_tokens == (5 if thinks else 2) and made.failed_after is None


def test_a_dead_end_is_no_answer(live):
    """Where no token may follow, the client is told; the engine goes on."""
    made = compile_schema(live, PERSON)
    broken = replace_fill(made.copy(()))
    assert ask(live.engine, broken, 20)()[1] == "failed"
    # What was drawn behind a whole answer is nothing to it.
    tokens, reason = ask(live.engine, replace_fill(made.copy(())), 2)()
    assert (len(tokens), reason) == (2, "length")
    with pytest.raises(ApiError, match="no token follows"):
        check_reason("failed")
    assert ask(live.engine, made, 400, 4)()[1] == "stop"


def replace_fill(constraint):
    """A constraint whose matcher gives up after three tokens."""
    inner = constraint.matcher

    class Fragile:
        count = 0

        def __getattr__(self, name):
            return getattr(inner, name)

        def deep_copy(self):
            return self

        def consume_token(self, id):
            self.count += 1
            return self.count < 3 and inner.consume_token(id)

    constraint.matcher = Fragile()
    return constraint
