"""Gradient of Einsum: another Einsum, of the output's gradient and the other operands."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import size, zeros
from onnxqat.graph.equation import Equation, parse
from onnxqat.graph.ops import Ops


def einsum_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of Einsum, which needs to know how many axes an ellipsis stands for."""
    text = node.attributes["equation"].as_string()
    if "..." in text and any(value is None or value.shape is None for value in node.inputs):
        return Refused("the equation has an ellipsis and an operand's rank is not known; give the operand a shape")
    return Custom(einsum_gradient)


def einsum_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """The gradient of operand i is Einsum of dy and the other operands, from their labels to those of operand i.

    A label that only operand i has was summed over: dy is repeated along it, by an operand of ones. A label that occurs twice in
    operand i takes a diagonal: dy goes back to the diagonal, by an operand that is the identity matrix.
    """
    operands = [value for value in call.inputs if value is not None]
    equation = parse(call.attributes["equation"].as_string(), [call.rank(i) for i in range(len(operands))])
    return [
        _operand_gradient(op, equation, operands, dy, i) if i in call.wanted else None for i in range(len(operands))
    ]


def _operand_gradient(op: Ops, equation: Equation, operands: Sequence[ir.Value], dy: ir.Value, index: int) -> ir.Value:
    x, term = operands[index], equation.terms[index]
    used = [(equation.output, dy)] + [
        (other, value) for j, (other, value) in enumerate(zip(equation.terms, operands, strict=True)) if j != index
    ]
    present = {letter for labels, _ in used for letter in labels}
    fresh = iter(letter for letter in string.ascii_letters if letter not in "".join(equation.terms) + equation.output)
    target = ""
    for axis, letter in enumerate(term):
        name = letter
        if letter in target:
            name = next(fresh)
            used.append((letter + name, _identity(op, x, axis)))
        elif letter not in present:
            used.append((letter, _ones(op, x, axis)))
        target += name
    labels = ",".join(label for label, _ in used)
    gradient = op.Einsum(*(value for _, value in used), equation=f"{labels}->{target}")
    return op.sum_to(gradient, x) if set(term) & set(equation.broadcast) else gradient


def _ones(op: Ops, x: ir.Value, axis: int) -> ir.Value:
    one = ir.tensor([1], dtype=x.dtype or ir.DataType.FLOAT)
    return op.ConstantOfShape(op.Unsqueeze(size(op, x, axis), op.ints([0])), value=one)


def _identity(op: Ops, x: ir.Value, axis: int) -> ir.Value:
    side = op.Unsqueeze(size(op, x, axis), op.ints([0]))
    square = zeros(op, op.Concat(side, side, axis=0), x.dtype or ir.DataType.FLOAT)
    return op.EyeLike(square)


RULES: Mapping[str, RuleOrChoice] = {
    "Einsum": einsum_rule,
}
