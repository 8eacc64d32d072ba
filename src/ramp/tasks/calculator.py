"""Exact arithmetic of an expression, by walking its syntax tree. Nothing is ever run.

Digits are those of ASCII: Python's `\\d` and `int` would take Arabic and full-width ones too.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import gcd
from types import MappingProxyType

MAX_LENGTH = 200  # characters: a model may write anything
MAX_VALUE = 10**30

OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
THOUSANDS = r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?!,[0-9])"
# A number in a text: 1,200 is one, 7,2 is two.
NUMBER = rf"(?:{THOUSANDS}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A number that stands alone: with its sign, currency, per cent and the words of its unit.
VALUE = re.compile(rf"(-?)[$€£]?(-?)({NUMBER})\s*(%?)((?:\s+[A-Za-z]+)*)\.?")
# A minus sign and a dash, which people and models type for it.
MINUS = str.maketrans("\u2212\u2013", "--")
FRACTION = re.compile("(-?[0-9]+)/([0-9]+)")
CURRENCY = {"dollar", "dollars", "euro", "euros"}
# These words change the number before them.
SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "k", "half", "percent"}
NOTHING: Mapping[Fraction, Fraction] = MappingProxyType({})


class NotArithmetic(ValueError):
    """Not an expression of numbers, + - * / and brackets, or one without a value."""


def calculate(text: str, replace: Mapping[Fraction, Fraction] = NOTHING) -> Fraction:
    """The value of an expression such as `3*(2.5-1)/2` or `20%*50`.

    replace: numbers that stand for others.
    """
    return _evaluate(_parse(text), replace)


def list_operands(text: str) -> list[Fraction]:
    """The numbers in an expression; a minus before a number is an operation, not a part of it."""
    constants = [node for node in ast.walk(_parse(text)) if isinstance(node, ast.Constant)]
    return [Fraction(str(node.value)) for node in constants]


def parse_number(text: str) -> Fraction:
    """A number as people write it: `1,234`, `$5.50`, `3/4`, `50%`, `.5`; no computation is one."""
    value, is_percent, units = _split_value(text)
    if units:
        raise NotArithmetic(text[:MAX_LENGTH])
    return value / 100 if is_percent else value


def parse_answer(text: str, question: str) -> Fraction:
    """The value of an answer, which may carry units: `$72`, `72.00`, `72%`, `72 clips a day`.

    Words count as units where the question has them, so that nothing else hides behind a number.
    """
    value, _, units = _split_value(text)
    words = set(re.findall("[a-z]+", question.lower())) | CURRENCY
    if not set(units) <= words - SCALES:
        raise NotArithmetic(text[:MAX_LENGTH])
    return value


def _split_value(text: str) -> tuple[Fraction, bool, list[str]]:
    """(number, whether it is per cent, the words behind it)."""
    text = text.strip().translate(MINUS)
    if len(text) > MAX_LENGTH:
        raise NotArithmetic(text[:MAX_LENGTH])
    if fraction := FRACTION.fullmatch(text):
        top, bottom = int(fraction[1]), int(fraction[2])
        # 144/2 is a division that is still to be done.
        if bottom > 1 and gcd(top, bottom) == 1:
            return Fraction(top, bottom), False, []
    match = VALUE.fullmatch(text)
    if not match or (match[1] and match[2]):
        raise NotArithmetic(text)
    value = Fraction(match[3].replace(",", ""))
    return -value if match[1] or match[2] else value, bool(match[4]), match[5].lower().split()


def count_decimals(text: str) -> int:
    """Digits behind the point of a number."""
    return len(text.partition(".")[2].rstrip("% "))


def _parse(text) -> ast.expr:
    plain = re.sub(THOUSANDS, lambda match: match[0].replace(",", ""), text)
    plain = plain.replace("$", "").replace("x", "*")
    plain = re.sub(r"([0-9]+\.?[0-9]*|\.[0-9]+)%", r"(\1/100)", plain)
    plain = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", plain).strip()  # 007 is a number to people
    # A power or a floor division is Python's syntax but nobody's arithmetic here, and a tower of
    # powers would never end.
    is_safe = re.fullmatch(r"[0-9.+\-*/() ]+", plain) and "**" not in plain and "//" not in plain
    if len(plain) > MAX_LENGTH or not is_safe:
        raise NotArithmetic(text[:MAX_LENGTH])
    try:
        return ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise NotArithmetic(text) from None


def _evaluate(node: ast.expr, replace: Mapping[Fraction, Fraction]):
    try:
        match node:
            case ast.Constant(value=int() | float() as number):
                value = Fraction(str(number))  # 0.1 is a tenth, not the nearest binary fraction
                return replace.get(value, value)
            case ast.UnaryOp(op=ast.USub()):
                return -_evaluate(node.operand, replace)
            case ast.UnaryOp(op=ast.UAdd()):
                return _evaluate(node.operand, replace)
            case ast.BinOp() if type(node.op) in OPERATIONS:
                left, right = _evaluate(node.left, replace), _evaluate(node.right, replace)
                value = OPERATIONS[type(node.op)](left, right)
                if abs(value) <= MAX_VALUE:
                    return value
    except (ZeroDivisionError, ValueError):
        pass
    raise NotArithmetic(ast.unparse(node))
