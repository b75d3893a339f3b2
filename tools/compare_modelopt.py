"""Placement of the target tensorrt beside NVIDIA's own quantizer: `python -m tools.compare_modelopt --modelopt-python …`.

For each node that either quantizes: which of its inputs are integers, and whether the weight has a scale per channel. Every
difference is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import onnxqat
from models import fashion_mnist
from onnxqat.checking.structure import Quantizers, is_integer
from onnxqat.graph import io, qdq
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import name_of
from onnxqat.targets import TARGETS
from tools.benchmark_openvino import FOLDER, LAYOUTS
from tools.networks import NETWORKS, OTHERS
from tools.real_models.model import Batch
from tools.real_models.recipes import MODELS, RealModel

TENSORRT = TARGETS["tensorrt"]
COMPARED = TENSORRT.operators.kernels | TENSORRT.operators.joins
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
        # a MatMul may have become a Gemm with its bias
        if ours[name].partition("(")[2] != theirs[name].partition("(")[2]:
            yield f"  {name}: {ours[name]} here, {theirs[name]} there"


def by_modelopt(path: Path, batch: Batch, python: Path, folder: Path) -> onnx.ModelProto:
    """The model that NVIDIA's quantizer makes in its own environment."""
    inputs, output = folder / "inputs.npz", folder / "quantized.onnx"
    np.savez(inputs, **batch)
    script = Path(__file__).with_name("modelopt_ptq.py")
    subprocess.run([python, script, path, inputs, output], check=True, capture_output=True, text=True)
    return onnx.load(output)


def subjects(folder: Path) -> dict[str, Callable[[], tuple[Path, Batch]]]:
    """Path of a float model and a batch for it, by its title: of this repository, known structures, six pretrained models."""
    demo = {name: partial(_demo, name) for name in LAYOUTS}
    random = {
        name: partial(_random, network, folder / "float.onnx") for name, network in {**NETWORKS, **OTHERS}.items()
    }
    return {**demo, **random, **{real.title: partial(_real, real) for real in MODELS}}


def _demo(name: str) -> tuple[Path, Batch]:
    images = next(iter(getattr(fashion_mnist, f"calibration{LAYOUTS[name]}")()))["image"]
    return FOLDER / f"{name}.onnx", {"image": images[:SAMPLES]}


def _random(network: Callable[[], onnx.ModelProto], path: Path) -> tuple[Path, Batch]:
    model = network()
    onnx.save(model, path)
    value = model.graph.input[0]
    shape = [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
    return path, {value.name: np.random.default_rng(0).standard_normal((SAMPLES, *shape), dtype=np.float32)}


def _real(real: RealModel) -> tuple[Path, Batch]:
    batch = real.data(SAMPLES, SAMPLES).inputs()[0]
    return real.path, {name: array[:SAMPLES] for name, array in batch.items()}


def main() -> None:
    """Prints how many nodes agree, and each that does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="titles of models; all unless given")
    parser.add_argument(
        "--modelopt-python", type=Path, required=True, help="interpreter of an environment with modelopt"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, python = Path(temporary), arguments.modelopt_python.absolute()
        for title, made in subjects(folder).items():
            if arguments.names and title not in arguments.names:
                continue
            path, batch = made()
            ours = placement(onnxqat.insert(path, [batch], onnxqat.Config(target="tensorrt")))
            theirs = placement(by_modelopt(path, batch, python, folder))
            found = sorted(differences(ours, theirs))
            shared = len(ours.keys() & theirs.keys())
            print(f"{title}: {shared - len(found)} of {shared} nodes alike", *found, sep="\n", flush=True)


if __name__ == "__main__":
    main()
