"""Names that the command line and the library share; they stand alone so that `--help` loads nothing else."""

import pkgutil
from pathlib import Path
from typing import Literal

#: Files of `onnxqat.targets` that are no target.
_SHARED = {"facts"}
#: Targets that exist: each file of `onnxqat.targets` is one, called as the file is, with hyphens.
TARGETS = tuple(
    sorted(
        file.name.replace("_", "-")
        for file in pkgutil.iter_modules([str(Path(__file__).parent / "targets")])
        if file.name not in _SHARED
    )
)
#: Runtimes that users name as targets and that are none, with what to do.
NO_TARGETS = {
    "coreml": "CoreML's provider in ONNX Runtime has no QuantizeLinear and no DequantizeLinear, and would leave the model in "
    "pieces on the CPU; deploy the float model there",
    "nnapi": "NNAPI takes the models of target 'ort-cpu'; use that",
    "wasm": "WebAssembly runs the models of target 'ort-cpu'; use that",
}
RuntimeName = Literal["ort", "openvino", "qnn"]
#: What runs a training graph; see `runtime.engines`.
EngineName = Literal["auto", "training", "runtime"]
#: What operators a training graph is written in: those of an engine, or of the ONNX standard alone.
OperatorsOf = Literal["auto", "training", "runtime", "standard"]
OptimizerName = Literal["adamw", "sgd"]
#: How training lays out the data of convolutions.
LayoutName = Literal["auto", "plain"]
#: What training keeps from the forward to the backward pass.
MemoryName = Literal["auto", "low"]
#: How deployed weights are stored: as integers, or as the floats that these stand for.
WeightForm = Literal["int8", "float"]
