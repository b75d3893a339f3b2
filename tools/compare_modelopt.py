"""Placement of the target tensorrt beside NVIDIA's own quantizer: `python -m tools.compare_modelopt --modelopt-python …`.

For each node that either quantizes: which of its inputs are integers, and whether the weight has a scale per channel. Every
difference is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import onnxqat
from onnxqat.checking.structure import Quantizers, is_integer
from onnxqat.graph import io, qdq
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import name_of
from onnxqat.targets import TARGETS
from tools.benchmark_openvino import Subject, subjects

TENSORRT = TARGETS["tensorrt"]
COMPARED = TENSORRT.weighted | TENSORRT.integer | TENSORRT.joins
SAMPLES = 4


def placement(model: onnx.ModelProto) -> dict[str, str]:
    """What is quantized at each node, in words, by the node's name."""
    loaded = io.load(model)
    quantized = qdq.by_output(qdq.quantizers(loaded))
    return {name_of(node): _inputs(node, quantized) for node in loaded.graph if node.op_type in COMPARED}


def _inputs(node: ir.Node, quantized: Quantizers) -> str:
    values = [value for value in node.inputs if value is not None and (value in quantized or constant(value) is None)]
    return f"{node.op_type}({', '.join(_side(value, quantized) for value in values)})"


def _side(value: ir.Value, quantized: Quantizers) -> str:
    if value in quantized and quantized[value].is_weight:
        return f"weight {quantized[value].granularity}"
    return "int8" if is_integer(value, quantized, TENSORRT) else "float"


def differences(ours: dict[str, str], theirs: dict[str, str]) -> Iterator[str]:
    """Yields a line for each node of both models that is quantized differently."""
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"  {name}: {ours[name]} here, {theirs[name]} there"


def by_modelopt(subject: Subject, python: Path, folder: Path) -> onnx.ModelProto:
    """The model that NVIDIA's quantizer makes in its own environment."""
    inputs, output = folder / "inputs.npz", folder / "quantized.onnx"
    np.savez(inputs, **{name: array[:SAMPLES] for name, array in subject.calibration[0].items()})
    script = Path(__file__).with_name("modelopt_ptq.py")
    subprocess.run([python, script, subject.path, inputs, output], check=True, capture_output=True, text=True)
    return onnx.load(output)


def main() -> None:
    """Prints how many nodes agree, and each that does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="titles of models; all unless given")
    parser.add_argument(
        "--modelopt-python", type=Path, required=True, help="interpreter of an environment with modelopt"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for subject in subjects(Path(temporary)):
            if arguments.names and subject.title not in arguments.names:
                continue
            batch = {name: array[:SAMPLES] for name, array in subject.calibration[0].items()}
            ours = placement(onnxqat.insert(subject.path, [batch], onnxqat.Config(target="tensorrt")))
            theirs = placement(by_modelopt(subject, arguments.modelopt_python.absolute(), Path(temporary)))
            found = sorted(differences(ours, theirs))
            shared = len(ours.keys() & theirs.keys())
            print(f"{subject.title}: {shared - len(found)} of {shared} nodes alike", *found, sep="\n", flush=True)


if __name__ == "__main__":
    main()
