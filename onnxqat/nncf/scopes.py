"""Names that NNCF gives to the nodes of a PyTorch model: the path of modules, the function, and which call of it.

`Net/Sequential[features]/NNCFConv2d[0]/conv2d_0` is the first call of `conv2d` in module `features.0` of a `Net`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Marks a regular expression.
EXPRESSION = "{re}"
#: Marks the quantizer behind a node.
OUTPUT = "|OUTPUT"

#: ONNX operators of functions, where they are not called the same but for case and underscores.
OPERATORS: Mapping[str, frozenset[str]] = {
    function: frozenset(operators.split())
    for functions, operators in {
        "conv1d conv2d conv3d": "conv",
        "conv_transpose1d conv_transpose2d conv_transpose3d": "convtranspose",
        "linear addmm": "gemm matmul",
        "matmul rmatmul bmm baddbmm": "matmul gemm",
        "batch_norm": "batchnormalization",
        "hardtanh relu6 clamp clip": "clip",
        "iadd radd add": "add",
        "isub rsub sub": "sub",
        "imul rmul mul": "mul",
        "div idiv rdiv truediv itruediv rtruediv": "div",
        "cat stack": "concat",
        "interpolate": "resize upsample",
        "max_pool1d max_pool2d max_pool3d": "maxpool",
        "avg_pool1d avg_pool2d avg_pool3d": "averagepool",
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d": "globalaveragepool averagepool reducemean",
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": "globalmaxpool maxpool",
        "mean": "reducemean globalaveragepool",
        "sum": "reducesum",
        "silu swish": "mul",
        "layer_norm": "layernormalization",
        "group_norm instance_norm": "instancenormalization groupnormalization",
        "embedding": "gather",
        "view reshape": "reshape",
        "permute transpose": "transpose",
    }.items()
    for function in functions.split()
}


@dataclass(frozen=True)
class Scope:
    """Name of a node, taken apart.

    Attributes:
        path: names of the modules from the outermost, without the class of the model.
        operators: ONNX operators that the function becomes, in lower case.
        call: how many calls of the function in this module come before.
    """

    path: tuple[str, ...]
    operators: frozenset[str]
    call: int


def parse(text: str) -> Scope | None:
    """The name taken apart; None if it is none of NNCF's for PyTorch."""
    modules, last = text.split("/")[:-1], text.split("/")[-1]
    function = re.fullmatch(r"(\w+?)_(\d+)", last)
    names = [re.fullmatch(r"[^\[\]]*\[(.+)\]", module) for module in modules[1:]]
    if not modules or function is None or not all(names):
        return None
    return Scope(tuple(name[1] for name in names if name), operators_of(function[1]), int(function[2]))


def operators_of(function: str) -> frozenset[str]:
    """ONNX operators that a function becomes, in lower case."""
    name = function.strip("_")
    return OPERATORS.get(name, frozenset({name.replace("_", "")}))


def expression(text: str) -> str:
    r"""An expression of NNCF's names as one of `path/of/modules/operator`, whatever the modules' classes.

    `{re}Net/Block\[[0-9]*\]/ELU\[act\]/.*` becomes the names of the modules, each whole: `[0-9]*/act/.*`.
    """
    parts = text.replace(EXPRESSION, "").split("/")
    if re.fullmatch(r"\^?\w+", parts[0]) and len(parts) > 1:
        parts[0] = "^"  # the class of the model
    if function := re.fullmatch(r"(\w+?)_(\d+)\$?", parts[-1]):
        parts[-1] = f"(?:{'|'.join(sorted(operators_of(function[1])))})$"
    whole = [re.sub(r"^[^\\]*\\\[(.*)\\\]", r"(?<![^/])(?:\1)(?=/)", part) for part in parts]
    return whole[0] + "/".join(whole[1:]) if whole[0] == "^" else "/".join(whole)
