"""Builds TensorRT engines of the models in a folder and runs them on their data: `python tensorrt_engines.py FOLDER`.

This file stands alone: it needs TensorRT, PyTorch and NumPy, so that a board with a GPU needs no more. Each subfolder holds
models and data as `tools.check_tensorrt` makes them: `strong.int8.onnx` and `strong.float.onnx` for strongly typed networks
(TensorRT 10 and 11), `weak.int8.onnx` and `weak.float.onnx` for TensorRT 8, which is told that it may use float16. Beside them
are written `outputs.npz`, the first output of the quantized model on every batch, and `engine.json`: the layers' types, and
both times.

With `--build`, and TensorRT-RTX, which compiles for GPUs that are not there, engines are built and not run.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx_bindings as trt  # the wheels tensorrt-rtx-cu13-bindings and -libs
try:
    import torch
except ImportError:
    torch = None  # building alone needs no GPU

Batch = dict[str, NDArray[Any]]
RUNS = 200
CREATION = trt.NetworkDefinitionCreationFlag
#: Whether types are a matter of flags: TensorRT 8. What came later has strongly typed networks, 11 and TensorRT-RTX no others.
WEAK = hasattr(trt.BuilderFlag, "INT8") and not hasattr(CREATION, "STRONGLY_TYPED")
KIND = "weak" if WEAK else "strong"


def batches(file: Path) -> list[Batch]:
    """The batches of an archive whose arrays are called `number:input`."""
    found: dict[int, Batch] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for key in arrays.files:
            number, name = key.split(":", 1)
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]


def built(file: Path, data: list[Batch], *, elsewhere: bool = False) -> Any:
    """The serialized engine of a model.

    Args:
        file: of the model.
        data: batches that it takes; their shapes span the profile.
        elsewhere: whether it is for a GPU of the Ada generation, wherever that is.

    Raises:
        RuntimeError: TensorRT does not take the model.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = CREATION.EXPLICIT_BATCH if WEAK else getattr(CREATION, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if elsewhere:
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(trt.ComputeCapability.SM89, 0)
    if WEAK:
        settings.set_flag(trt.BuilderFlag.FP16)
        if file.stem.endswith("int8"):
            settings.set_flag(trt.BuilderFlag.INT8)
    for name in data[0]:
        shapes = np.array([batch[name].shape for batch in data])
        profile.set_shape(name, tuple(shapes.min(0)), data[0][name].shape, tuple(shapes.max(0)))
    settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise RuntimeError("TensorRT made no engine; its log above says why")
    return engine


class Engine:
    """The engine of a model, on the GPU that is here; see `built`."""

    def __init__(self, file: Path, data: list[Batch]) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(built(file, data))
        if self._engine is None:
            raise RuntimeError("TensorRT does not run its engine on this GPU; its log above says why")
        self._context, self._stream = self._engine.create_execution_context(), torch.cuda.Stream()

    def layers(self) -> dict[str, str]:
        """Name of each layer, and the types of what it reads and writes."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # whose shapes are known
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return {
            one["Name"]: _types(one)
            for one in json.loads(text, strict=False).get("Layers", [])
            if isinstance(one, dict)
        }

    def run(self, batch: Batch, runs: int = 0) -> tuple[NDArray[np.float32], float]:
        """The first output; with `runs`, also the milliseconds of one of so many."""
        tensors = {name: torch.from_numpy(array).cuda() for name, array in batch.items()}
        for name, tensor in tensors.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        outputs = [name for name in names if name not in tensors]
        for name in outputs:
            tensors[name] = torch.empty(
                tuple(self._context.get_tensor_shape(name)), device="cuda", dtype=self._dtype(name)
            )
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()
        self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return tensors[outputs[0]].float().cpu().numpy(), self._milliseconds(runs) if runs else 0.0

    def _milliseconds(self, runs: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for turn in range(2 * runs):
            if turn == runs:
                start.record(self._stream)
            self._context.execute_async_v3(self._stream.cuda_stream)
        end.record(self._stream)
        self._stream.synchronize()
        return float(start.elapsed_time(end)) / runs

    def _dtype(self, name: str) -> Any:
        return getattr(torch, np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name)


def _types(layer: dict[str, Any]) -> str:
    """Types that a layer reads, and those that it writes: "Int8+Int8 -> Half"."""
    sides = (
        [_type(str(one.get("Format/Datatype", one))) for one in layer.get(key, [])] for key in ("Inputs", "Outputs")
    )
    return " -> ".join("+".join(side) for side in sides)


def _type(text: str) -> str:
    found = re.search(r"int8|int4|int32|int64|fp8|fp16|half|bf16|fp32|float|bool", text, re.IGNORECASE)
    return found.group().lower() if found else text


def measure(folder: Path) -> dict[str, Any]:
    """Runs both models of a folder; what TensorRT refuses has the reason alone."""
    data = batches(folder / "data.npz")
    try:
        engine = Engine(folder / f"{KIND}.int8.onnx", data)
        outputs = {str(number): engine.run(batch)[0] for number, batch in enumerate(data)}
    except RuntimeError as error:
        return {"refused": str(error)}
    np.savez(folder / "outputs.npz", **outputs)
    found = {"milliseconds": engine.run(data[0], RUNS)[1], "layers": engine.layers()}
    plain = Engine(folder / f"{KIND}.float.onnx", data)
    found |= {"float_milliseconds": plain.run(data[0], RUNS)[1], "float_layers": plain.layers()}
    found["milliseconds_again"] = engine.run(data[0], RUNS)[1]  # a clock that changed meanwhile shows
    return found


def build(folder: Path) -> dict[str, Any]:
    """Builds both models of a folder, and runs none."""
    data = batches(folder / "data.npz")
    try:
        sizes = {name: built(folder / f"{KIND}.{name}.onnx", data, elsewhere=True).nbytes for name in ("int8", "float")}
    except RuntimeError as error:
        return {"refused": str(error)}
    return {"built": sizes}


def main() -> None:
    """Measures the folders that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true", help="build the engines alone, without a GPU")
    asked = parser.parse_args()
    refused = 0
    for folder in sorted(path for path in asked.folder.iterdir() if (path / f"{KIND}.int8.onnx").exists()):
        if asked.build:
            found = build(folder)
        else:
            found = measure(folder) | {"tensorrt": trt.__version__, "gpu": torch.cuda.get_device_name()}
            (folder / "engine.json").write_text(json.dumps(found, indent=1))
        told = {key: value for key, value in found.items() if "layers" not in key}
        print(folder.name, told, dict(Counter(found.get("layers", {}).values()).most_common(6)), flush=True)
        refused += "refused" in found
    raise SystemExit(min(refused, 1))


if __name__ == "__main__":
    main()
