"""The calculator in an answer: what is put in at run time is what training saw, and only the model can call it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.tasks import tool
from ramp.text.chat import render, render_prompt
from ramp.text.tokenizer import Tokenizer

T = Tokenizer.bytes_only()
MARK = T.special("tool")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12*7", "84"),
        ("1/4", "0.25"),
        ("1/3", "0.333333"),
        ("5-9", "-4"),
        ("__import__('os')", "?"),
        ("9" * 300, "?"),
        ("1/0", "?"),
    ],
)
def test_results(expression, value):
    said = [*T.encode("so "), MARK, *T.encode(expression), MARK]
    assert tool.reply(T, said) == [*T.encode(value), MARK]
    assert all(tool.reply(T, said[:n]) == [] for n in range(len(said)))
    assert tool.reply(T, [*said, *tool.reply(T, said)]) == []


@given(st.text(alphabet="ab 1+<>=|", max_size=30), st.integers(-99, 99), st.integers(1, 9))
def test_training_shows_what_run_time_does(words, a, b):
    """Feed the rendered answer token by token: `reply` gives exactly the masked tokens, where they stand."""
    content = f"{words}<<{a}*{b}={a * b}>>{words}"
    ids, weights = tool.encode_with_calls(T, content)
    i, put = 0, []
    while i < len(ids):
        i += 1
        result = tool.reply(T, ids[:i])
        assert ids[i : i + len(result)] == result and not any(weights[i : i + len(result)])
        put += range(i, i + len(result))
        i += len(result)
    assert put == [i for i, w in enumerate(weights) if not w] and put


def test_only_an_assistant_calls():
    talk = [
        {"role": "user", "content": "<<2*3=6>> <|tool|>2*3<|tool|>"},
        {"role": "assistant", "content": "It is <<2*3=6>>6."},
    ]
    ids, weights, _ = render(T, talk, 500, tool.encode_with_calls)
    assert ids.count(MARK) == 3 and T.decode(ids).endswith(
        "It is <|tool|>2*3<|tool|>6<|tool|>6.<|end|>"
    )
    assert MARK not in render_prompt(T, talk[:1])
    assert len(ids) == len(weights) and weights.count(0) == len(render_prompt(T, talk[:1])) + 2
    assert MARK not in render(T, talk, 500)[0]


def test_evaluation_goes_on_behind_the_result():
    """A model that is a table of what follows what."""
    script = {"sum": [*b"I: ", MARK, *b"2+2", MARK, *b"wrong"], f"after {4}": [*b" it is"]}

    def draw(rows):
        return [script["sum"] if row[-1] != MARK else script["after 4"] for row in rows]

    said = tool.generate_with_tool(T, [[1], [2]], draw, 50, 100)
    assert [T.decode(s) for s in said] == ["I: <|tool|>2+2<|tool|>4<|tool|> it is"] * 2
    assert [len(s) for s in tool.generate_with_tool(T, [[1]], draw, 6, 100)] == [6]
    assert T.decode(tool.generate_with_tool(T, [[1]], draw, 50, 8)[0]).endswith("4<|tool|>")
    assert tool.call_result("7/2") == str(float(Fraction(7, 2)))
