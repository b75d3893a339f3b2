"""ONNX Runtime for plain inference: calibration, teachers, evaluation. Training reaches it by `training/running/values.py`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError, OnnxqatError, UnsupportedModelError, short_reason
from onnxqat.graph import external, files, io
from onnxqat.graph.qdq import FLOAT8
from onnxqat.graph.validity import check_valid
from onnxqat.graph.without import without_quantizers
from onnxqat.process.unneeded import kept_out

with kept_out("onnxruntime.training.ortmodule"):  # the training build tries it, and so imports torch: seconds
    import onnxruntime as ort

# isort: split
from onnxqat.runtime.devices import CPU, Device

log = logging.getLogger(__name__)

AnyModel = TypeVar("AnyModel", onnx.ModelProto, ir.Model)

#: Bytes of weights up to which the result of a stage is loaded whole; beyond, large weights are left out.
LOADED_WHOLE = 2**28
#: Packages that provide the module `onnxruntime`, and so overwrite each other; of several, the first here is kept.
PACKAGES = tuple(
    f"onnxruntime{kind}"
    for kind in (
        "-training-cpu",
        "-training",
        "-gpu",
        "-directml",
        "-openvino",
        "-qnn",
        "-migraphx",
        "-rocm",
        "-cann",
        "",
    )
)
#: Words of ONNX Runtime for an operator without a kernel, and of it and its providers' libraries for memory that is not there.
_LACKS = re.compile("Could not find an implementation for|is not a registered function/op")
#: Words of 1.19 for what it makes of a MatMul of opset 21.
_NO_INTEGER_KERNEL = re.compile(r"Failed to find kernel for QLinear(\w+)")
_NO_MEMORY = re.compile(
    "out of memory|[Ff]ailed to allocate memory|smaller than requested bytes|ALLOC_FAILED|bad_alloc"
)
TRAINING_VERSION = "1.19.2"
TRAINING_PYTHONS = "3.10 to 3.12"


class Inference:
    """A model loaded for inference; call it with a batch.

    Args:
        model: the model.
        outputs: names of the graph outputs to compute; all if None.
        integer_kernels: whether quantized layers run on integers, as deployed (some processors round in their own way); otherwise
            they run in float, as in training.
        exactly: whether the nodes run as the model has them, none fused.
        called: what messages call it.
        threads: threads inside an operator; 0: one for each core.
        device: device that it runs on.
    """

    def __init__(
        self,
        model: ir.Model | onnx.ModelProto,
        outputs: Sequence[str] | None = None,
        *,
        integer_kernels: bool = False,
        exactly: bool = False,
        called: str = "model",
        threads: int = 0,
        device: Device = CPU,
    ) -> None:
        self._called = called
        options = exact_options() if exactly else ort.SessionOptions()
        options.intra_op_num_threads = threads
        if not exactly:
            options.add_session_config_entry("session.disable_quant_qdq", str(int(not integer_kernels)))
        if not integer_kernels and _reads_quantized_outputs(model):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = session(model, options, device)
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = list(outputs) if outputs is not None else [value.name for value in self._session.get_outputs()]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, for a batch that may hold more than the model's inputs."""
        try:
            values = self._session.run(self.outputs, {name: batch[name] for name in self.inputs})
        except Exception as error:
            raise cannot_run(error, f"{self._called}: ONNX Runtime cannot run it on this batch") from error
        return dict(zip(self.outputs, values, strict=True))


def _reads_quantized_outputs(model: ir.Model | onnx.ModelProto) -> bool:
    """Whether nodes read outputs of a quantized model: ONNX Runtime 1.19 may fuse such an output away and return nothing."""
    if isinstance(model, ir.Model):
        outputs: set[ir.Value | str] = set(model.graph.outputs)
        nodes = [(node.op_type, node.inputs) for node in model.graph]
    else:
        outputs = {value.name for value in model.graph.output}
        nodes = [(node.op_type, node.input) for node in model.graph.node]
    quantized = any(op_type == "DequantizeLinear" for op_type, _ in nodes)
    return quantized and any(not outputs.isdisjoint(inputs) for _, inputs in nodes)


def checked(model: AnyModel) -> AnyModel:
    """Returns the model as it is if it passes ONNX's checker and ONNX Runtime loads it; every stage checks its result so.

    It is loaded as users load it, with all optimizations: some models fail only there. ONNX's checker gets no large weights, and
    neither does the runtime beyond `LOADED_WHOLE` bytes, so that this takes a few tenths of a second at any size.

    Raises:
        UnsupportedModelError: it does not.
    """
    bare = external.without_weights(model)
    try:
        check_valid(bare, whole=True)
    except ValueError as error:
        raise UnsupportedModelError(
            f"model: the result is not valid ONNX ({short_reason(error)}); export the model again"
        ) from error
    check_loads(model if external.weight_bytes(model) <= LOADED_WHOLE else bare)
    return model


def check_answers(model: ir.Model, batch: Mapping[str, NDArray[Any]]) -> None:
    """Refuses a quantized model whose outputs are NaN, or infinite where those of the float model are not.

    Inputs and outputs that say no shape, without which ONNX's checker refuses them, get the number of axes that they have here.

    Raises:
        InputError: names the output.
    """
    answers = Inference(model)(batch)
    arrays = {**batch, **answers}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None and isinstance(arrays.get(str(value.name)), np.ndarray):
            value.shape = ir.Shape([None] * arrays[str(value.name)].ndim)
    broken = _not_finite(answers)
    meant = _not_finite(Inference(without_quantizers(model))(batch), nan=False) if broken else {}
    for name, where in broken.items():
        if name not in meant or meant[name].shape != where.shape or (where & ~meant[name]).any():
            raise InputError(
                f"model: its output {name!r} is NaN or infinite on the first batch; check the model's weights and the data"
            )


def _not_finite(outputs: Mapping[str, NDArray[Any]], *, nan: bool = True) -> dict[str, NDArray[np.bool_]]:
    """Returns the places where float outputs are not finite, by name of the outputs that have any."""
    floats = {
        name: array for name, array in outputs.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    }
    found = {name: ~np.isfinite(array) if nan else np.isinf(array) for name, array in floats.items()}
    return {name: where for name, where in found.items() if where.any()}


def check_loads(model: ir.Model | onnx.ModelProto) -> None:
    """Raises UnsupportedModelError with ONNX Runtime's own reason if it cannot load the model with all of its optimizations.

    Where these make an integer kernel that this build lacks, they are left out, which is said: another runtime may have it.
    """
    try:
        session(model, ort.SessionOptions())
    except UnsupportedModelError as error:
        found = _NO_INTEGER_KERNEL.search(str(error.__cause__))
        if found is None:
            raise
        session(model, exact_options())
        log.warning(
            "onnxruntime %s has no integer kernel for %s of opset 21: run the model in a newer one",
            ort.__version__,
            found[1],
        )


@contextmanager
def explained(model: io.ModelLike) -> Iterator[None]:
    """Raises ONNX Runtime's own reason if work on a model fails unexpectedly and the runtime cannot load that model either.

    Raises:
        InputError: it cannot.
    """
    try:
        yield
    except (OnnxqatError, MemoryError):
        raise
    except Exception as error:
        try:
            check_loads(io.load(model, oldest_opset=1))
        except InputError as reason:
            raise reason from error
        raise


def session(
    model: ir.Model | onnx.ModelProto, options: ort.SessionOptions, device: Device = CPU
) -> ort.InferenceSession:
    """A session, for inference and training; worker processes open their own.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load the model; the message says its reason.
        InputError: the device's provider is installed, but does not start.
    """
    check_packages()
    # What goes wrong is in the exception too; the log would repeat it.
    options.log_severity_level = 4
    try:
        loaded = _session(model, options, device)
    except Exception as error:
        remedy = f"; it has none in onnxruntime {ort.__version__}: use a newer one, or leave that operator out"
        remedy = remedy if _LACKS.search(str(error)) else ""
        raise UnsupportedModelError(f"model: ONNX Runtime cannot load it: {short_reason(error)}{remedy}") from error
    device.check_started(loaded.get_providers())
    return loaded


def cannot_run(error: Exception, what: str) -> InputError:
    """The error for a session that did not run, which says `what` failed; memory that is not there has its own remedy."""
    if _NO_MEMORY.search(str(error)):
        remedy = "use a smaller --batch-size, with --accumulate for as many samples in a step, or --memory low"
        return InputError(f"batch: needs more memory than there is ({short_reason(error)}); {remedy}")
    return InputError(f"{what}: {short_reason(error)}")


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a small model as ONNX Runtime's optimizer leaves it for this processor.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    with files.workplace() as folder:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        session(model, options)
        return onnx.load(options.optimized_model_filepath)


def run_exactly(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Runs a model once, its nodes exactly as it has them, and returns its outputs by name.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load the model.
        InputError: it cannot run on these feeds.
    """
    return exactly(model)(feeds)


def exactly(model: onnx.ModelProto) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Returns a function from feeds to outputs by name that runs the nodes exactly as the model has them (see `run_exactly`)."""
    loaded = session(model, exact_options())
    names = [output.name for output in loaded.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        for name, array in arrays.items():
            if array.dtype.name == "bfloat16":
                raise UnsupportedModelError(f"input {name!r}: ONNX Runtime takes no bfloat16 arrays; use float32")
        try:
            results = loaded.run(names, arrays)
        except Exception as error:
            raise InputError(f"model: ONNX Runtime cannot run it on these inputs: {short_reason(error)}") from error
        return dict(zip(names, results, strict=True))

    return run


def exact_options(threads: int = 0) -> ort.SessionOptions:
    """Options under which nodes run exactly as the model has them, in its order; `threads` inside an operator, 0: all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # A memory pattern is planned for the first batch's shapes at the price of a third more memory.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _session(model: ir.Model | onnx.ModelProto, options: ort.SessionOptions, device: Device) -> ort.InferenceSession:
    """A session straight from memory, by way of a file only for a model that protobuf cannot hold in one piece."""
    providers = device.providers
    levels = ort.GraphOptimizationLevel
    if _has_float8(model) and options.graph_optimization_level != levels.ORT_DISABLE_ALL:
        # beyond, up to 1.32.0, it makes integer kernels of E4M3, which do not load, and drops a Relu in front of it
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    if external.weight_bytes(model) <= external.TOO_LARGE:
        proto = model if isinstance(model, onnx.ModelProto) else io.to_proto(model)
        return ort.InferenceSession(proto.SerializeToString(), options, providers=providers)
    with files.workplace() as folder:
        path = folder / "model.onnx"
        external.save_linked(model if isinstance(model, ir.Model) else ir.from_proto(model), path)
        # Weights in the order that kernels like best would be copies of all of them, and so would weights quantized ahead.
        options.add_session_config_entry("session.disable_prepacking", "1")
        return ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=["ConstantFolding"])


def _has_float8(model: ir.Model | onnx.ModelProto) -> bool:
    if isinstance(model, onnx.ModelProto):
        return any(tensor.data_type == FLOAT8 for tensor in model.graph.initializer)
    tensors = (value.const_value for value in model.graph.initializers.values())
    return any(tensor is not None and tensor.dtype == FLOAT8 for tensor in tensors)


def check_packages() -> None:
    """Raises InputError where several packages provide the module `onnxruntime`: each has overwritten part of the other."""
    kept, *others = [name for name in PACKAGES if _installed(name)] or [""]
    if others:
        version = f"=={TRAINING_VERSION}" if "training" in kept else ""
        raise InputError(
            f"{' and '.join([*others[::-1], kept])} are installed side by side and overwrite each other; run "
            f"`pip uninstall -y {' '.join([*others[::-1], kept])} && pip install {kept}{version}`"
        )


def _installed(package: str) -> bool:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return package != "onnxruntime-qnn" or version.startswith("1.")  # since 2.0 it stands beside onnxruntime
