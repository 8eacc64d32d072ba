"""Exact arithmetic of an expression, by walking its syntax tree. Nothing is ever run."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 200  # characters; a model writes what it likes
BIGGEST = 10**30

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
    return _value(_tree(text))


def operands(text: str) -> list[Fraction]:
    """The numbers that stand in an expression, in order; a minus before a number is an operation, not a part of it."""
    return [Fraction(str(n.value)) for n in ast.walk(_tree(text)) if isinstance(n, ast.Constant)]


def number(text: str) -> Fraction:
    """A number as people write it: `1,234`, `$5.50`, `3/4`, `50%`, `.5`."""
    return calculate(text.strip().replace("$", "").replace(",", "").rstrip("."))


def _tree(text: str) -> ast.expr:
    plain = text.replace(",", "").replace("$", "").replace("x", "*")
    plain = re.sub(r"(\d+\.?\d*|\.\d+)%", r"(\1/100)", plain)
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", plain).strip()  # 007 is a number to people
    if (
        len(plain) > LONGEST
        or "**" in plain
        or "//" in plain
        or not re.fullmatch(r"[\d.+\-*/() ]+", plain)
    ):
        raise NotArithmetic(text[:LONGEST])
    try:
        return ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise NotArithmetic(text) from None


def _value(node: ast.expr) -> Fraction:
    try:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = _value(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            value = OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
            if abs(value) <= BIGGEST:
                return value
    except (ZeroDivisionError, ValueError):
        pass
    raise NotArithmetic(ast.unparse(node))
