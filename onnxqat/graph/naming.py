"""Names of nodes in messages: a node's own name or, if it has none, the operation it computes."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.errors import InputError


def name_of(node: ir.Node) -> str:
    """The node's name; without one, that of its first output that has a name, or else its operator."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def label(node: ir.Node) -> str:
    """Operator and name: `Conv 'stem'`."""
    return f"{node.op_type} {name_of(node)!r}"


def refused(node: ir.Node, fact: str) -> InputError:
    """The error that refuses a model because of a node."""
    return InputError(f"model: {label(node)}: {fact}; export the model again")
