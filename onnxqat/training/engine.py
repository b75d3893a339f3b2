"""The door to ONNX Runtime for training: sessions whose parameters and gradients are bound in place.

Parameters are views of one flat array, gradients of another. A session reads and writes them where they lie, so nothing is
copied between steps, and an optimizer, an all-reduce or a checkpoint touches one array. A `Program`, in contrast, is given its
arrays again on each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxqat.errors import InputError, short_reason
from onnxqat.runtime import exact_options, session
from onnxqat.training.training_graph.losses import LOSS
from onnxqat.training.training_graph.parameters import Layout

Array = NDArray[Any]
Floats = NDArray[np.float32]
Value: TypeAlias = ort.OrtValue
Loaded: TypeAlias = ort.InferenceSession
Binding: TypeAlias = ort.IOBinding

#: ONNX Runtime's words for types of tensors.
_TYPES = {
    f"tensor({words})": dtype
    for words, dtype in {
        "float": ir.DataType.FLOAT,
        "double": ir.DataType.DOUBLE,
        "float16": ir.DataType.FLOAT16,
        "bfloat16": ir.DataType.BFLOAT16,
        "bool": ir.DataType.BOOL,
        **{
            f"{sign}int{bits}": ir.DataType[f"{sign}int{bits}".upper()]
            for sign in ("", "u")
            for bits in (8, 16, 32, 64)
        },
    }.items()
}


class Session:
    """A training or evaluation graph on the CPU.

    Args:
        model: graph whose nodes stand in the order in which they are to run.
        threads: number of threads inside an operator; 0: one for each core.
    """

    def __init__(self, model: ir.Model, threads: int = 0) -> None:
        self._session = session(model, exact_options(threads))
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        self._bound: dict[
            str, tuple[Array, Any]
        ] = {}  # a binding keeps no reference, and a freed array crashes the process

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array] | None = None) -> None:
        """Binds arrays for all runs to come, aliased, not copied."""
        for name, array in inputs.items():
            if name in self.inputs:
                self._binding.bind_ortvalue_input(name, self._keep(f"in {name}", array))
        for name, array in (outputs or {}).items():
            if name in self.outputs:
                self._binding.bind_ortvalue_output(name, self._keep(f"out {name}", array))

    def run(self, fetch: Sequence[str] = ()) -> list[Array]:
        """Runs the graph on what is bound; returns the outputs `fetch`, whose arrays ONNX Runtime makes."""
        for name in fetch:
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise InputError(f"batch: ONNX Runtime cannot run the model on it: {short_reason(error)}") from error
        values = self._binding.get_outputs() if fetch else []
        return [value.numpy() for value in values[-len(fetch) :]] if fetch else []

    def _keep(self, key: str, array: Array) -> Any:
        held = self._bound.get(key)
        if held is not None and held[0] is array:
            return held[1]
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._bound[key] = (array, value)
        return value


class Program:
    """A graph that keeps nothing between runs, so that any number of callers may share it; arguments as for `Session`."""

    def __init__(self, model: ir.Model, threads: int = 0) -> None:
        self._session = session(model, exact_options(threads))
        self.inputs = [value.name for value in self._session.get_inputs()]
        #: Types of the outputs as ONNX Runtime infers them.
        self.outputs = {value.name: _TYPES[value.type] for value in self._session.get_outputs()}

    def __call__(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The outputs by name, in memory that belongs to them; `values` may hold more than the graph reads."""
        feeds = {name: values[name] for name in self.inputs}
        try:
            results = self._session.run_with_ort_values(list(self.outputs), feeds)
        except Exception as error:
            raise InputError(f"batch: ONNX Runtime cannot run the model on it: {short_reason(error)}") from error
        return dict(zip(self.outputs, results, strict=True))


class Engine:
    """Runs training steps and evaluations over one flat array of parameters.

    Attributes:
        parameters: the flat array; changing it changes the next run.
        gradients: the flat array of gradients that the last `step` wrote.
        training: the graph that `step` runs.
        results: the gradients and, after them, the loss: what several processes average, in one piece.
    """

    def __init__(
        self, training: ir.Model, evaluation: ir.Model, layout: Layout, initial: Floats, threads: int = 0
    ) -> None:
        self.layout = layout
        self.parameters = aligned(layout.size)
        self.parameters[:] = initial
        self.results = aligned(layout.size + 1)
        self.gradients = self.results[:-1]
        self._loss = self.results[-1:].reshape(())
        self._evaluation_model: ir.Model | None = evaluation
        self._evaluation: Session | None = None
        self._threads = threads
        self.use(training)

    def use(self, training: ir.Model) -> None:
        """Runs this training graph from the next step on; gradients of parameters that it does not have are 0."""
        self.gradients[:] = 0
        self.training = training
        self._session = Session(training, self._threads)
        gradients = {f"{name}_grad": view for name, view in self.layout.named(self.gradients).items()}
        self._session.bind(self.layout.named(self.parameters), {**gradients, LOSS: self._loss})

    def step(self, batch: Mapping[str, Array]) -> float:
        """Forward and backward: returns the loss and leaves the gradients in `gradients`."""
        self._session.bind(batch)
        self._session.run()
        return self.loss

    @property
    def loss(self) -> float:
        """The loss in `results`."""
        return float(self._loss)

    def evaluate(self, batch: Mapping[str, Array], fetch: Sequence[str]) -> list[Array]:
        """Forward only; returns the named outputs (the loss is one of them)."""
        if self._evaluation is None:
            assert self._evaluation_model is not None
            session = Session(self._evaluation_model, self._threads)
            session.bind(self.layout.named(self.parameters))
            self._evaluation, self._evaluation_model = session, None  # Ctrl-C before this leaves nothing half made
        self._evaluation.bind(batch)
        return self._evaluation.run(fetch)


def as_value(array: Array) -> Value:
    """A value of ONNX Runtime's that lies where the array does and keeps it alive."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def dlpack(value: Value) -> Any:
    """The value as what the array libraries' `from_dlpack` take over without a copy."""
    return value._ortvalue


def aligned(size: int) -> Floats:
    """Zeros that begin on a cache line, as vector instructions and ONNX Runtime's own buffers do."""
    raw = np.zeros(size + 16, np.float32)
    start = (-raw.ctypes.data // 4) % 16
    return raw[start : start + size]
