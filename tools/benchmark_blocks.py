"""The sentence embedding model with weights in blocks: `python -m tools.benchmark_blocks --interpreter PYTHON [--readme]`.

Weights of 4 bits in blocks, embeddings of 8 bits and activations in float, without training, as the interpreter's onnxruntime
runs them: at its own accuracy level, at which MatMulNBits rounds its input to int8, and in float. `--readme` writes the table
into docs/benchmarks.md. The model is fetched by `python -m tools.fetch_models sentences`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxqat
from onnxqat.process.processor import processor
from tools.readme import BENCHMARKS, line, replace_section
from tools.real_models.model import Data, deviation_of_difference, labels_of, outputs_of
from tools.real_models.recipes import MODELS
from tools.real_models.run import CALIBRATION_BATCHES, first_output

BLOCKS = (32, 64, 128)
HEADER = (
    "| weights | layers in MatMulNBits | size | latency | score | against float | at `accuracy_level` 1 | largest difference |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: |"
)
#: Runs in the interpreter: MODEL INPUTS OUTPUTS LEVEL, the inputs of all batches in one file.
_RUN = """
import sys, numpy, onnxruntime
model, inputs, outputs, level = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given = numpy.load(inputs)
names = [one.name for one in session.get_inputs()]
batches = range(len(given.files) // len(names))
found = {str(n): session.run(None, {name: given[f"{name}:{n}"] for name in names})[0] for n in batches}
numpy.savez(outputs, **found)
"""


def main() -> None:
    """Measures, prints the table, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--interpreter", type=Path, required=True, help="Python of an environment with onnxruntime 1.32 or newer"
    )
    parser.add_argument("--readme", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    (model,) = (one for one in MODELS if one.name == "sentences")
    proto, data = onnx.load(model.path), model.data()
    whole = outputs_of(first_output(proto), data.test)
    score = data.score(whole, labels_of(data.test))
    rows, runtime = [line(["float", "", "1", "1", f"{score:.1f} %", "", "", ""])], ""
    for block in BLOCKS:
        config = onnxqat.Config(
            weight_bits=4,
            weight_block_size=block,
            embedding_bits=8,
            quantize_activations=False,
            output_correction="none",
        )
        qdq = onnxqat.insert(proto, data.inputs()[:CALIBRATION_BATCHES], config)
        report, rounded, exact = _measured(qdq, proto, data, arguments.interpreter)
        rows.append(_row(block, report, data, [whole, rounded, exact]))
        runtime = report.runtime
        print(rows[-1], flush=True)
    text = "\n".join([HEADER, *rows, "", f"Measured with {runtime} on {processor()}."])
    print(text)
    if arguments.readme:
        replace_section("blocks", text, BENCHMARKS)


def _measured(
    qdq: onnx.ModelProto, proto: onnx.ModelProto, data: Data, interpreter: Path
) -> tuple[onnxqat.Report, list[NDArray[Any]], list[NDArray[Any]]]:
    """The report, and the deployed model's outputs at the runtime's own accuracy level and in float."""
    deployed = onnxqat.fold(qdq)
    batches = [examples.inputs for examples in data.test]
    report = onnxqat.verify(qdq, deployed, batches[:4], interpreter=interpreter, float_model=proto)
    with tempfile.TemporaryDirectory() as name:
        model, inputs, outputs = (Path(name) / file for file in ("model.onnx", "inputs.npz", "outputs.npz"))
        onnx.save(deployed, model)
        np.savez(inputs, **{f"{key}:{n}": array for n, batch in enumerate(batches) for key, array in batch.items()})
        found = []
        for level in ("4", "1"):
            subprocess.run([interpreter, "-c", _RUN, model, inputs, outputs, level], check=True)
            with np.load(outputs) as read:
                found.append([read[str(n)] for n in range(len(batches))])
    return report, found[0], found[1]


def _row(block: int, report: onnxqat.Report, data: Data, outputs: list[list[NDArray[Any]]]) -> str:
    """A line of the table, given the outputs of the float model, and of the deployed one as it is and in float."""
    whole, rounded, exact = outputs
    labels = labels_of(data.test)
    full, score, level = (data.score(each, labels) for each in outputs)
    error = deviation_of_difference(data, whole, rounded)
    kernels = Counter(kernel.kernel for kernel in report.kernels if kernel.is_weighted and kernel.kind == "weight-only")
    most = max(float(np.abs(one - other).max()) for one, other in zip(rounded, exact, strict=True))
    layers = sum(kernel.is_weighted for kernel in report.kernels)
    return line(
        [
            f"4 bits in blocks of {block}",
            f"{kernels['MatMulNBits']} of {layers}",
            f"{report.size.ratio:.2f}",
            f"{report.latency.ratio:.2f}",
            f"{score:.1f} %",
            f"{score - full:+.1f} ± {error:.1f}",
            f"{level:.1f} %",
            f"{most:.3f}",
        ]
    )


if __name__ == "__main__":
    main()
