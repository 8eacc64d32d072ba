"""Exact arithmetic of an expression, by walking its syntax tree. Nothing is ever run."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 200  # characters: a model may write anything
MAX_VALUE = 10**30

OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class NotArithmetic(ValueError):
    """Not an expression of numbers, + - * / and brackets, or one without a value."""


def calculate(text: str) -> Fraction:
    """The value of an expression such as `3*(2.5-1)/2` or `20%*50`."""
    return _evaluate(_parse(text))


def list_operands(text: str) -> list[Fraction]:
    """The numbers in an expression; a minus before a number is an operation, not a part of it."""
    constants = [node for node in ast.walk(_parse(text)) if isinstance(node, ast.Constant)]
    return [Fraction(str(node.value)) for node in constants]


def parse_number(text: str) -> Fraction:
    """A number as people write it: `1,234`, `$5.50`, `3/4`, `50%`, `.5`."""
    return calculate(text.strip().replace("$", "").replace(",", "").rstrip("."))


def _parse(text) -> ast.expr:
    plain = text.replace(",", "").replace("$", "").replace("x", "*")
    plain = re.sub(r"(\d+\.?\d*|\.\d+)%", r"(\1/100)", plain)
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", plain).strip()  # 007 is a number to people
    # A power or a floor division is Python's syntax but nobody's arithmetic here, and a tower of
    # powers would never end.
    is_safe = re.fullmatch(r"[\d.+\-*/() ]+", plain) and "**" not in plain and "//" not in plain
    if len(plain) > MAX_LENGTH or not is_safe:
        raise NotArithmetic(text[:MAX_LENGTH])
    try:
        return ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise NotArithmetic(text) from None


def _evaluate(node: ast.expr):
    try:
        match node:
            case ast.Constant(value=int() | float() as value):
                return Fraction(str(value))  # 0.1 is a tenth, not the nearest binary fraction
            case ast.UnaryOp(op=ast.USub()):
                return -_evaluate(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return _evaluate(node.operand)
            case ast.BinOp() if type(node.op) in OPERATIONS:
                left, right = _evaluate(node.left), _evaluate(node.right)
                value = OPERATIONS[type(node.op)](left, right)
                if abs(value) <= MAX_VALUE:
                    return value
    except (ZeroDivisionError, ValueError):
        pass
    raise NotArithmetic(ast.unparse(node))
