"""Checks `onnxqat.graph.samplewise` on ONNX's own operator tests: `python -m tools.samplewise_coverage`.

Each case whose first input the table lets be cut along its first axis is run by ONNX Runtime on the whole input and on two parts;
the parts, put together as the table says, must give the whole. Prints the operators that were checked, and those that are wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import OnnxqatError
from onnxqat.graph.samplewise.follow import follow
from onnxqat.graph.samplewise.kinds import Coupled, Kind, Mean, Rows, Sizes, Total
from onnxqat.graph.samplewise.rules import RULES
from onnxqat.graph.types import infer
from onnxqat.runtime import run_exactly

Feeds = dict[str, NDArray[Any]]


def cases() -> Iterator[tuple[onnx.ModelProto, Feeds]]:
    """Models of one node, whose operator the table has, with their inputs."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        nodes, inputs = case.model.graph.node, case.data_sets[0][0] if case.data_sets else []
        if len(nodes) == 1 and nodes[0].op_type in RULES and all(isinstance(array, np.ndarray) for array in inputs):
            yield case.model, dict(zip((value.name for value in case.model.graph.input), inputs, strict=True))


def as_samples(proto: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """The model with all inputs constant but the first, whose first axis is free."""
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    found.ir_version, found.opset_import[0].version = 10, min(found.opset_import[0].version, 21)
    for value in list(found.graph.input)[1:]:
        found.graph.input.remove(value)
        found.graph.initializer.append(onnx.numpy_helper.from_array(feeds[value.name], value.name))
    found.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    for value in found.graph.output:
        value.type.tensor_type.ClearField("shape")
    return found


def together(kind: Kind, parts: Sequence[NDArray[Any]], rows: int) -> NDArray[Any]:
    """What the whole must give: the first part is of one sample, the second of the others."""
    if isinstance(kind, Rows):
        return np.concatenate(parts, kind.axis)
    if isinstance(kind, Total):
        return np.asarray(parts[0] + parts[1])
    return np.asarray((parts[0] + parts[1] * (rows - 1)) / rows) if isinstance(kind, Mean) else parts[0]


def right(proto: onnx.ModelProto, x: NDArray[Any]) -> bool | None:
    """Whether the table is right about a model; None where it keeps the batch in one piece, or the model does not run."""
    model, name = ir.from_proto(proto), proto.graph.input[0].name
    try:
        infer(model)
        kinds = follow(model, {name: 0})
        whole = run_exactly(proto, {name: x})
    except (Coupled, OnnxqatError, ValueError):
        return None
    parts = [run_exactly(proto, {name: part}) for part in (x[:1], x[1:])]
    return all(
        np.allclose(
            together(kinds[value], [part[str(value.name)] for part in parts], len(x)),
            whole[str(value.name)],
            rtol=1e-4,
            atol=1e-5,
            equal_nan=True,
        )
        for value in model.graph.outputs
        if not isinstance(kinds[value], Sizes)
    )


def main() -> None:
    """Prints the operators by result."""
    warnings.simplefilter("ignore")
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for proto, feeds in cases():
        x = next(iter(feeds.values()), np.zeros(()))
        if x.ndim and x.size:
            result = right(as_samples(proto, feeds), np.concatenate([x, x[..., ::-1]]) if len(x) == 1 else x)
            if result is not None:
                found[result].add(proto.graph.node[0].op_type)
    print(f"{len(found[True])} operators: {' '.join(sorted(found[True]))}")
    print(f"wrong: {' '.join(sorted(found[False])) or 'none'}")


if __name__ == "__main__":
    main()
