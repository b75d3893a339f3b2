"""Names that NNCF gives to the nodes of a PyTorch model: the path of modules, the function, and which call of it.

`Net/Sequential[features]/NNCFConv2d[0]/conv2d_0` is the first call of `conv2d` in module `features.0` of a `Net`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onnxqat.errors import InputError

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
        "gelu": "gelu erf",
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
        function: the function, as `plain` gives it.
        call: how many calls of the function in this module come before.
    """

    path: tuple[str, ...]
    function: str
    call: int


def parse(text: str) -> Scope | None:
    """The name taken apart; None if it is none of NNCF's for PyTorch."""
    modules, last = text.split("/")[:-1], text.split("/")[-1]
    function = re.fullmatch(r"(\w+?)_(\d+)", last)
    names = [re.fullmatch(r"[^\[\]]*\[(.+)\]", module) for module in modules[1:]]
    if not modules or function is None or not all(names):
        return None
    return Scope(tuple(name[1] for name in names if name), plain(function[1]), int(function[2]))


def plain(function: str) -> str:
    """The name of a function by which it is known here: without underscores at its ends, which tell how it was called."""
    name = function.strip("_")
    return name if name in OPERATORS else name.replace("_", "")


def operators_of(function: str) -> frozenset[str]:
    """ONNX operators that a function becomes, in lower case."""
    return OPERATORS.get(function, frozenset({function}))


def functions_of(operators: frozenset[str]) -> frozenset[str]:
    """Functions that become one of the operators, without underscores at their ends."""
    return frozenset(name for name, becomes in OPERATORS.items() if becomes & operators) | operators


def spellings(function: str, call: int) -> list[str]:
    """Ways in which NNCF writes a call of a function, of one in place and of an operator of Python among them."""
    return [f"{function}_{call}", f"{function}__{call}", f"__{function}___{call}"]


def is_of_names(text: str) -> bool:
    """Whether an expression is one of NNCF's names, by modules with their classes or by functions, and not of ONNX names."""
    found = re.findall(r"([A-Za-z]\w*?)_+(?:\d|\[|\\d|\.)", text)
    return r"\[" in text or any(name in OPERATORS or f"__{name}__" in text for name in found)


def expression(text: str) -> re.Pattern[str]:
    r"""An expression of NNCF's names as one of `path/of/modules/function_call`, whatever the modules' classes.

    `{re}Net/Block\[[0-9]*\]/ELU\[act\]/.*` becomes the names of the modules, each whole: `[0-9]*/act/.*`.

    Raises:
        InputError: it is no regular expression.
    """
    parts = text.replace(EXPRESSION, "").split("/")
    root = "^" if len(parts) > 1 and re.fullmatch(r"\^?\w+", parts[0]) else ""  # the class of the model
    whole = [re.sub(r"^[^\\]*\\\[(.*)\\\]", r"(?<![^/])(?:\1)(?=/)", part) for part in parts[len(root) :]]
    try:
        return re.compile(root + "/".join(whole))
    except re.error as error:
        raise InputError(f"scope {text!r} is not a regular expression ({error}); fix it") from error
