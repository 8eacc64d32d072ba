"""The calculator against Python's own arithmetic; what is no arithmetic is refused, whatever it is."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.tasks import calculator

numbers = st.integers(0, 999)
expressions = st.recursive(
    numbers.map(str),
    lambda e: st.tuples(e, st.sampled_from("+-*"), e).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
    max_leaves=6,
)


@given(expressions)
def test_calculator_against_python(text):
    assert calculator.calculate(text) == Fraction(eval(text))  # the test may; the package may not


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,200/4", 300),
        ("50%*8", 4),
        (".5*4", 2),
        ("007+1", 8),
        ("$3x4", 12),
        ("-3--4", 1),
        ("0.1+0.2", Fraction(3, 10)),
    ],
)
def test_calculator_reads_what_people_write(text, value):
    assert calculator.calculate(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "1/0", "2**99", "9//2", "__import__('os')", "a+1", "1+", "(" * 150 + ")" * 150, "9" * 500, "[1]", "1 if 1 else 2",
     "*".join(["9999999999"] * 12), "1;2", "lambda: 1", "1_000", "1e999"],
)  # fmt: skip
def test_calculator_refuses(text):
    with pytest.raises(calculator.NotArithmetic):
        calculator.calculate(text)


@settings(max_examples=300)
@given(st.text(alphabet="0123456789+-*/(). %$,x", max_size=30))
def test_calculator_has_a_value_or_says_so(text):
    with suppress(calculator.NotArithmetic):
        assert isinstance(calculator.calculate(text), Fraction)
