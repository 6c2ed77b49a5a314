"""Conditions on the columns of a data set: lang == "fra_Latn" and len(sentences) >= 5.

They are parsed as Python expressions, but may consist only of column names, numbers, strings, lists
of these, comparisons, `in`, `and`, `or`, `not`, + - * /, and len(). A comparison with a missing
value is null, and a condition that is null counts as false.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lcm_cli.errors import IntegrityError
from lcm_cli.schema import nearest

Value = Any  # an Arrow array with one value per row, or a constant
Columns = Mapping[str, pa.Array]

_COMPARE: dict[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda a, b: pc.divide(_real(a), _real(b)),
}
_HINT = 'a condition looks like this: lang == "fra_Latn" and len(sentences) >= 5'


class Filter:
    """A condition. `columns` are the column names it uses."""

    def __init__(self, text: str) -> None:
        """Parse `text`. Raises IntegrityError, with the position, for an invalid condition."""
        self.text = text = text.strip()
        try:
            self._tree = ast.parse(text, mode="eval").body
            _check(self._tree, text)
        except (SyntaxError, ValueError) as error:
            # ast reports 0 at the end of the text.
            place = getattr(error, "offset", None) or len(text) + 1
            reason = getattr(error, "msg", str(error))
            raise _error(text, len(text[: place - 1].encode()), reason) from error
        except (RecursionError, MemoryError) as error:
            raise _error(text, 0, "it is nested too deeply") from error
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        self.columns = sorted(names - {"len"})

    def check(self, known: Iterable[str], where: str) -> None:
        """Raise IntegrityError unless `where` has all columns; `known` are those it has."""
        known = list(known)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and node.id in self.columns and node.id not in known:
                near = nearest(node.id, known)
                hint = f"did you mean {' or '.join(near)}?" if near else ""
                hint = hint or f"its columns: {', '.join(known)}"
                message = f"{where} has no column {node.id!r}"
                raise _error(self.text, node.col_offset, message, hint)

    def mask(self, columns: Columns, rows: int) -> NDArray[np.bool_]:
        """Return the rows for which the condition is true, as a mask (rows,).

        Raises IntegrityError for incompatible types.
        """
        value = self._value(self._tree, columns)
        if not _is_truth(value):
            raise self._wrong(self._tree, "its value is not true or false")
        if isinstance(value, bool):
            return np.full(rows, value)
        return np.asarray(pc.fill_null(value, False).to_numpy(zero_copy_only=False), dtype=bool)

    def _value(self, node: ast.expr, columns: Columns) -> Value:
        try:
            return self._compute(node, columns)
        except (pa.ArrowException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise self._wrong(node, f"incompatible types: {reason}") from error

    def _compute(self, node: ast.expr, columns: Columns) -> Value:
        def value(part: ast.expr) -> Value:
            return self._value(part, columns)

        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return columns[node.id]
            case ast.List() | ast.Tuple():
                return [value(part) for part in node.elts]
            case ast.Call():
                return _length(value(node.args[0]))
            case ast.UnaryOp(op=ast.Not()):
                return pc.invert(value(node.operand))
            case ast.UnaryOp():
                return pc.negate(value(node.operand))
            case ast.BinOp():
                return _ARITHMETIC[type(node.op)](value(node.left), value(node.right))
            case ast.BoolOp():
                # Kleene's logic: false and null is false, true or null is true.
                join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
                return reduce(join, map(value, node.values))
            case ast.Compare():
                return self._compare(node, columns)
        raise AssertionError(node)  # _check refuses all other nodes

    def _compare(self, node: ast.Compare, columns: Columns) -> Value:
        """Compare neighbours: a < b <= c means a < b and b <= c."""
        sides = [self._value(part, columns) for part in (node.left, *node.comparators)]
        found = [
            _is_in(left, right, type(op)) if isinstance(op, (ast.In, ast.NotIn))
            else _COMPARE[type(op)](left, right)
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
        ]  # fmt: skip
        return reduce(pc.and_kleene, found)

    def _wrong(self, node: ast.expr, reason: str) -> IntegrityError:
        return _error(self.text, node.col_offset, reason)


def _check(node: ast.expr, text: str) -> None:
    """Raise IntegrityError for the first part that is not allowed in a condition."""
    parts: list[ast.expr] = []
    match node:
        case ast.Constant(value=str() | bool() | int() | float()):
            return
        case ast.Name() if node.id != "len":
            return
        case ast.List() | ast.Tuple() if node.elts:
            parts = node.elts
        case ast.Call(func=ast.Name(id="len"), args=[_], keywords=[]):
            parts = node.args
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            parts = [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            parts = [node.left, node.right]
        case ast.BoolOp():
            parts = node.values
        case ast.Compare():
            _check_operators(node, text)
            parts = [node.left, *node.comparators]
        case _:
            raise _error(text, node.col_offset, f"{ast.unparse(node)!r} is not allowed")
    for part in parts:
        _check(part, text)


def _check_operators(node: ast.Compare, text: str) -> None:
    for op, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple)):
                reason = "`in` needs a list, such as [1, 2]"
                raise _error(text, right.col_offset, reason)
        elif type(op) not in _COMPARE:
            raise _error(text, right.col_offset, "`is` is not allowed; compare with ==")


def _is_in(left: Value, right: list[Value], op: type[ast.cmpop]) -> Value:
    if not isinstance(left, (pa.Array, pa.Scalar)):
        raise TypeError("the left side of `in` is not a column")
    # Arrow's is_in is false for null; other comparisons with a missing value are null.
    found = pc.is_in(left, pa.array(right).cast(left.type))
    found = pc.if_else(pc.is_valid(left), found, pa.scalar(None, pa.bool_()))
    return pc.invert(found) if op is ast.NotIn else found


def _length(value: Value) -> Value:
    """Return the length of strings in characters, or of lists in elements."""
    if not isinstance(value, pa.Array):
        raise TypeError("len() needs a column")
    if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
        return pc.utf8_length(value)
    return pc.list_value_length(value)


def _real(value: Value) -> Value:
    """Return numbers as float64, so that integers do not undergo integer division."""
    return (
        pc.cast(value, pa.float64()) if isinstance(value, pa.Array) else operator.truediv(value, 1)
    )


def _is_truth(value: Value) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, pa.Array) and pa.types.is_boolean(value.type)
    )


def _error(text: str, offset: int, reason: str, hint: str = _HINT) -> IntegrityError:
    place = len(text.encode()[:offset].decode("utf-8", "ignore")) + 1  # ast counts bytes
    return IntegrityError(f"filter = {text!r}, at character {place}: {reason}", hint)
