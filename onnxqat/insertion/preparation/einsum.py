"""Einsum of a constant weight as the product of matrices that it is, so that it gets an integer kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxqat.config_parts import ORIGINAL_TYPE
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_value_name
from onnxqat.graph.equation import parse
from onnxqat.insertion.groups import is_float
from onnxqat.insertion.preparation.simplify import put_in_place


@dataclass(frozen=True)
class _Product:
    """Labels of an Einsum that is a product of matrices.

    Attributes:
        data: axes of the data that stay, in its order.
        summed: axes of both that are summed over, in the data's order.
        weight: axes of the weight that stay, in the order of the output.
        given: all axes of the data, as it has them.
        held: all axes of the weight, as it has them.
        output: axes of the output.
    """

    data: str
    summed: str
    weight: str
    given: str
    held: str
    output: str


def einsum_as_matmul(graph: ir.Graph) -> None:
    """Writes an Einsum of data and a constant as Transpose, Reshape and MatMul, where every axis is of one or summed over."""
    for node in [node for node in graph if node.op_type == "Einsum" and len(node.inputs) == 2]:
        place = next((i for i, value in enumerate(node.inputs) if constant(value) is not None), None)
        data = node.inputs[1 - place] if place is not None else None
        if place is None or data is None or data.shape is None or not is_float(data) or constant(data) is not None:
            continue
        product = _product(node, place)
        if product is not None:
            _rewrite(graph, node, data, node.inputs[place], product)


def _product(node: ir.Node, place: int) -> _Product | None:
    ranks = [None if value is None or value.shape is None else value.shape.rank() for value in node.inputs]
    equation = parse(node.attributes["equation"].as_string(), ranks)
    held, given, output = equation.terms[place], equation.terms[1 - place], equation.output
    summed = "".join(letter for letter in given if letter in held and letter not in output)
    stays = "".join(letter for letter in given if letter not in summed)
    weight = "".join(letter for letter in output if letter in held)
    whole = sorted(output) == sorted(stays + weight) and sorted(held) == sorted(summed + weight)
    if not (whole and stays and summed and weight) or len(set(held)) < len(held) or len(set(given)) < len(given):
        return None  # an axis of both in the output too, of one that is summed, a diagonal, or a product of vectors
    return _Product(stays, summed, weight, given, held, output)


def _rewrite(graph: ir.Graph, node: ir.Node, data: ir.Value, held: ir.Value | None, product: _Product) -> None:
    array = constant(held)
    assert array is not None
    assert held is not None
    sizes = dict(zip(product.held, array.shape, strict=True))
    order = [product.held.index(letter) for letter in product.summed + product.weight]
    rows = math.prod(sizes[letter] for letter in product.summed)
    matrix = np.transpose(array, order).reshape(rows, -1)
    if array.shape != matrix.shape or order != sorted(order):
        held = constant_value(graph, f"{held.name}_matrix", matrix)
    steps = [*_turned(product.given, product.data + product.summed)]
    if len(product.summed) > 1:
        steps.append(_reshape(graph, node, [0] * len(product.data) + [rows]))
    steps.append(ir.Node("", "MatMul", [None, held], name=node.name))
    if len(product.weight) > 1:
        steps.append(_reshape(graph, node, [0] * len(product.data) + [sizes[letter] for letter in product.weight]))
    steps += _turned(product.data + product.weight, product.output)
    for step in steps[:-1]:
        _insert(graph, node, step, data)
        data = step.outputs[0]
    steps[-1].replace_input_with(0, data)
    put_in_place(graph, node, steps[-1])


def _insert(graph: ir.Graph, node: ir.Node, step: ir.Node, data: ir.Value) -> None:
    """Puts a step before the node; its output has a rank of its own, which shape inference finds."""
    step.replace_input_with(0, data)
    step.metadata_props[ORIGINAL_TYPE] = node.op_type
    step.name = step.name or f"{node.name}_{step.op_type}"
    step.outputs[0].name = fresh_value_name(graph, f"{node.name}_{step.op_type}_output")
    step.outputs[0].type = data.type
    graph.insert_before(node, step)


def _turned(given: str, wanted: str) -> Sequence[ir.Node]:
    perm = [given.index(letter) for letter in wanted]
    return [] if given == wanted else [ir.Node("", "Transpose", [None], [ir.AttrInt64s("perm", perm)])]


def _reshape(graph: ir.Graph, node: ir.Node, sizes: Sequence[int]) -> ir.Node:
    target = constant_value(graph, f"{node.name}_shape", np.array(sizes, np.int64))
    return ir.Node("", "Reshape", [None, target])
