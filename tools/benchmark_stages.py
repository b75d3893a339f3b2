"""Seconds that insert (without the calibration data's cost) and fold take on a graph of many nodes."""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxqat.folding import fold
from onnxqat.insertion import insert

CHANNELS = 8


def network(nodes: int) -> onnx.ModelProto:
    """Residual blocks of Conv, BatchNormalization, Relu, Conv, Add and Relu: at least `nodes` nodes."""
    random = np.random.default_rng(0)
    graph = helper.make_graph([], "blocks", [_image("x")], [_image("y")])
    value, count = "x", 0
    while len(graph.node) < nodes:
        value = _block(graph, value, count, random)
        count += 1
    graph.node[-1].output[0] = "y"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _block(graph: onnx.GraphProto, value: str, number: int, random: np.random.Generator) -> str:
    names = {kind: f"{kind}{number}" for kind in ("c", "n", "r", "d", "s", "t", "w", "b", "v", "e", "g", "o")}
    small = (CHANNELS, CHANNELS, 3, 3)
    arrays = {
        "w": random.standard_normal(small) * 0.1,
        "v": random.standard_normal(small) * 0.02,
        "b": np.zeros(CHANNELS),
        "e": np.zeros(CHANNELS),
        "g": np.ones(CHANNELS),
        "o": np.ones(CHANNELS),
    }
    graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), names[k]) for k, a in arrays.items())
    for operator, inputs, output in (
        ("Conv", "wb", "c"),
        ("BatchNormalization", "gbeo", "n"),
        ("Relu", "", "r"),
        ("Conv", "ve", "d"),
    ):
        attributes = {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}
        source = value if output == "c" else graph.node[-1].output[0]
        graph.node.append(
            helper.make_node(operator, [source, *(names[k] for k in inputs)], [names[output]], **attributes)
        )
    graph.node.append(helper.make_node("Add", [names["d"], value], [names["s"]]))
    graph.node.append(helper.make_node("Relu", [names["s"]], [names["t"]]))
    return names["t"]


def _image(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", CHANNELS, 8, 8])


def main() -> None:
    """Prints the seconds of each stage, best of the repetitions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    proto = network(arguments.nodes)
    batch = [{"x": np.ones((1, CHANNELS, 8, 8), np.float32)}]
    insertions, folds = [], []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        quantized = insert(proto, batch)
        middle = time.perf_counter()
        fold(quantized)
        insertions.append(middle - start)
        folds.append(time.perf_counter() - middle)
    print(f"{len(proto.graph.node)} nodes: insert {min(insertions):.2f} s, fold {min(folds):.2f} s")


if __name__ == "__main__":
    main()
