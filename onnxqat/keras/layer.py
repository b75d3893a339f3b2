"""The layer whose weights are a Q/DQ model's initializers, and whose call is its graph."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import onnx_ir as ir
import tensorflow as tf
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.training.execution import Execution, Options
from onnxqat.training.loop.staging import Stage
from onnxqat.training.running.values import Value, as_value
from onnxqat.training.training_graph.build import load_qdq
from onnxqat.training.training_graph.halves import Halves, cotangent, gradient
from onnxqat.training.wrapped import EPOCH, Wrapped

Array = NDArray[Any]

NO_SAVED_MODEL = (
    "SavedModel: cannot hold a graph that ONNX Runtime runs; deploy onnxqat.fold(onnxqat.keras.to_model(model)), "
    "and keep the model for training with model.save('model.keras')"
)


@keras.saving.register_keras_serializable(package="onnxqat")
class Graph(keras.layers.Layer):  # type: ignore[misc]
    """Runs a Q/DQ model's graph, forward and backward; `as_model` makes one.

    Weights have the initializers' names, with dots for slashes: weights, biases and scales are trainable, zero points are not.
    It takes tensors in the order of the model's inputs, or by name, and returns the list of the outputs.

    Args:
        graph: the model, serialized; or compressed and as text, as `get_config` gives it.
        execution: fields of `onnxqat.Execution` that are not the default's.
        settings: of `keras.layers.Layer`.
    """

    def __init__(self, graph: bytes | str, execution: Options | None = None, **settings: Any) -> None:
        super().__init__(**{**settings, "dtype": "float32", "autocast": False})
        self.supports_jit = False  # XLA cannot call ONNX Runtime
        self._proto = graph if isinstance(graph, bytes) else zlib.decompress(base64.b64decode(graph))
        self._execution, self.lock = execution or Options(), threading.Lock()
        self.wrapped = Wrapped(load_qdq(onnx.ModelProto.FromString(self._proto)), Execution(**self._execution))
        whole = self.wrapped.whole
        initializers = whole.qdq.graph.initializers
        self.inputs = {str(v.name): v for v in whole.qdq.graph.inputs if v.name not in initializers}
        self.outputs = {str(v.name): v for v in whole.qdq.graph.outputs}
        self.parameters = [one.name for one in whole.layout.parameters]
        scales = {one.name for one in whole.layout.parameters if one.kind == "scale"}
        self._parameters = [
            self._add(name, array, constraint=Bounds(self, name) if name in scales else None)
            for name, array in whole.layout.named(whole.initial).items()
        ]
        self._zero_points = [self._add(name, array, trainable=False) for name, array in whole.zero_points.items()]
        self.built = True

    def _add(self, name: str, array: Array, **settings: Any) -> keras.Variable:
        weight = self.add_weight(
            name=keras_name(name),
            shape=array.shape,
            dtype=array.dtype.name,
            initializer=lambda shape, dtype: tf.constant(array),
            aggregation="only_first_replica",  # of what a constraint assigns; gradients are summed before
            **settings,
        )
        self._track_trackable(weight, keras_name(name))  # tf.train.Checkpoint does not look into Keras's lists
        return weight

    def call(self, inputs: Any, training: bool | None = None) -> list[tf.Tensor]:
        """Runs the graph. In training it keeps what the backward pass reads; else that is computed again where it is needed."""
        whole = self.wrapped.whole
        given = inputs if isinstance(inputs, Mapping) else zip(self.inputs, keras.tree.flatten(inputs), strict=True)
        weights = dict(zip(self.parameters, self._parameters, strict=True))
        zero_points = dict(zip(whole.zero_points, self._zero_points, strict=True))
        tensors = {
            name: tf.convert_to_tensor(value) for name, value in {**dict(given), **weights, **zero_points}.items()
        }
        trained = [name for name, weight in weights.items() if weight.trainable]
        floats = [name for name in self.inputs if tensors[name].dtype == tf.float32]
        run = _Run(self, list(tensors), trained, floats, kept=bool(training))
        results = dict(zip(whole.computed, run(*tensors.values()), strict=True))
        for name, tensor in results.items():
            tensor.set_shape(shape_of(self.outputs[name]))
        fixed = {name: tf.constant(array) for name, array in whole.fixed.items()}
        return [{**fixed, **tensors, **results}[name] for name in whole.outputs]

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> list[keras.KerasTensor]:
        """Shapes and types of the outputs, as the graph declares them."""
        return [keras.KerasTensor(shape_of(value), keras_type(value)) for value in self.outputs.values()]

    def variable(self, name: str) -> keras.Variable:
        """The weight that holds an initializer."""
        return self._parameters[self.parameters.index(name)]

    def model(self) -> onnx.ModelProto:
        """The Q/DQ model at the weights that the layer has now.

        Raises:
            InputError: one is not finite.
        """
        zero_points = dict(zip(self.wrapped.whole.zero_points, self._zero_points, strict=True))
        self.wrapped.set_zero_points({name: weight.numpy() for name, weight in zero_points.items()})
        arrays = {name: self.variable(name).numpy() for name in self.parameters}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"weight {name!r}: holds NaN or infinity; go back to an earlier state")
        model = io.load(self.wrapped.whole.model({**arrays, **self.wrapped.within_bounds(arrays)}))
        self.wrapped.schedule.note(model)
        return ir.to_proto(model)

    def get_config(self) -> dict[str, Any]:
        """The whole model, so that a saved Keras model needs no other file."""
        graph = base64.b64encode(zlib.compress(self._proto)).decode()
        return {**super().get_config(), "graph": graph, "execution": dict(self._execution)}

    def save_own_variables(self, store: Any) -> None:
        """Saves the epoch too where quantizers begin later."""
        super().save_own_variables(store)
        if self.wrapped.schedule.is_staged:
            store[EPOCH] = np.asarray(self.wrapped.schedule.epoch)

    def load_own_variables(self, store: Any) -> None:
        """Enters the epoch that was saved."""
        kept = {key: store[key] for key in store.keys()}  # noqa: SIM118 - Keras's stores do not iterate
        epoch = kept.pop(EPOCH, None)
        super().load_own_variables(kept)
        if epoch is not None:
            self.wrapped.schedule.epoch_step(int(np.asarray(epoch)))

    def _trackable_children(self, save_type: str = "checkpoint", **others: Any) -> Any:
        """Refuses `tf.saved_model.save`: what it writes would call into a process that is gone."""
        if save_type == "savedmodel":
            raise InputError(NO_SAVED_MODEL)
        return super()._trackable_children(save_type, **others)


class Bounds(keras.constraints.Constraint):  # type: ignore[misc]
    """Keeps a scale where `onnxqat.Trainer` keeps it: above 2**-14 of its first value, and pair-safe."""

    def __init__(self, layer: Graph, name: str) -> None:
        self._layer, self._name = layer, name

    def __call__(self, scale: tf.Tensor) -> tf.Tensor:
        """The scale, raised or lowered to its bound."""
        layer, name = self._layer, self._name
        read = [one for one in layer.wrapped.whole.safety.bound_by(name) if one in layer.parameters]

        def bounded(*arrays: Array) -> Array:
            given = dict(zip([name, *read], map(np.asarray, arrays), strict=True))
            return np.asarray(layer.wrapped.within_bounds(given).get(name, given[name]), np.float32)

        value = tf.convert_to_tensor(scale)
        others = [tf.convert_to_tensor(layer.variable(one)) for one in read]
        return tf.ensure_shape(tf.numpy_function(bounded, [value, *others], tf.float32), value.shape)


class _Run:
    """One call of the graph from TensorFlow, and its gradient.

    Args:
        layer: whose graph.
        names: of the tensors that it is called with.
        weights: names of those that are trainable weights.
        inputs: names of those that are floating-point inputs.
        kept: whether the forward pass keeps what the backward pass reads.
    """

    def __init__(self, layer: Graph, names: list[str], weights: list[str], inputs: list[str], *, kept: bool) -> None:
        self._layer, self._names, self._inputs = layer, names, inputs
        self._function = layer.wrapped.whole
        # A traced gradient that nobody reads is left out of the graph; one that is computed at once would be computed in vain.
        self._together = tf.executing_eagerly()
        self._wrt = [*weights, *(inputs if self._together else [])]
        self._saved = list(self._crossing()) if kept and self._wrt else []

    def __call__(self, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The computed outputs."""
        results: tuple[tf.Tensor, ...] = tf.custom_gradient(self._with_gradient)(*tensors)
        return results

    def _crossing(self) -> Iterator[tuple[Stage, str, tf.DType]]:
        """Values that go from the forward to the backward half, in each of the stages that training passes through."""
        for stage in self._layer.wrapped.schedule.stages:
            halves = self._halves(stage, self._wrt)
            for name in halves.backward.inputs:
                if name in halves.forward.outputs:
                    yield stage, name, tf.as_dtype(halves.forward.outputs[name].numpy())

    def _halves(self, stage: Stage, wrt: list[str]) -> Halves:
        function = self._layer.wrapped.at(stage)
        unused = set(self._layer.parameters) - {one.name for one in function.layout.parameters}
        return function.halves(frozenset(wrt) - unused)

    def _with_gradient(self, *tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., list[Any]]]:
        outputs = [self._layer.outputs[name] for name in self._function.computed]
        types = [*map(_tf_type, outputs), *(dtype for _, _, dtype in self._saved)]
        results = _in_numpy(self._forward, tensors, types)
        computed, saved = results[: len(outputs)], results[len(outputs) :]

        def gradients(*cotangents: tf.Tensor) -> list[tf.Tensor | None]:
            found = self._backward(self._wrt, tensors, saved, cotangents)
            if not self._together:
                found |= self._backward(self._inputs, tensors, [], cotangents)
            return [found.get(name) for name in self._names]

        return tuple(computed), gradients

    def _forward(self, *arrays: Array) -> list[Array]:
        """The computed outputs, and what is saved: of this stage; what other stages would save is empty."""
        values, stage = self._given(arrays)
        run = self._halves(stage, self._wrt).forward if self._saved else self._layer.wrapped.at(stage).evaluate
        found = run(values)
        saved = [
            found[name].numpy() if of == stage else np.zeros(0, dtype.as_numpy_dtype) for of, name, dtype in self._saved
        ]
        return [*(found[name].numpy() for name in self._function.computed), *saved]

    def _given(self, arrays: Sequence[Array]) -> tuple[dict[str, Value], Stage]:
        """Inputs of the graph, scales within their bounds; and the stage. The graph is set to the zero points given."""
        wrapped = self._layer.wrapped
        given = dict(zip(self._names, map(np.asarray, arrays), strict=True))
        with self._layer.lock:
            wrapped.set_zero_points({name: given.pop(name) for name in wrapped.whole.zero_points})
        given |= wrapped.within_bounds({name: given[name] for name in self._layer.parameters})
        return _values(given), wrapped.schedule.stage

    def _backward(
        self,
        wrt: list[str],
        tensors: Sequence[tf.Tensor],
        saved: Sequence[tf.Tensor],
        cotangents: Sequence[tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Gradients by name; where nothing was saved, the forward half runs again."""
        if not wrt:
            return {}
        given = dict(zip(self._function.computed, cotangents, strict=True))
        floats = {cotangent(name): given[name] for name in self._function.differentiable}
        ends = len(tensors), len(tensors) + len(saved)

        def backward(*arrays: Array) -> list[Array]:
            values, stage = self._given(arrays[: ends[0]])
            halves = self._halves(stage, wrt)
            if saved:
                kept = zip(self._saved, arrays[ends[0] : ends[1]], strict=True)
                values |= _values({name: array for (of, name, _), array in kept if of == stage})
            else:
                values |= halves.forward(values)
            values |= _values(dict(zip(floats, arrays[ends[1] :], strict=True)))
            found = halves.backward(values)
            sizes = dict(zip(self._names, arrays, strict=False))
            unused = {name: np.zeros_like(sizes[name]) for name in wrt if gradient(name) not in found}
            return [unused[name] if name in unused else found[gradient(name)].numpy() for name in wrt]

        read = [*tensors, *saved, *floats.values()]
        results = _in_numpy(backward, read, [tf.float32] * len(wrt))
        shapes = {name: tensor.shape for name, tensor in zip(self._names, tensors, strict=True)}
        return {name: tf.ensure_shape(one, shapes[name]) for name, one in zip(wrt, results, strict=True)}


def _in_numpy(
    function: Callable[..., list[Array]], given: Sequence[tf.Tensor], types: list[tf.DType]
) -> list[tf.Tensor]:
    """Calls a function of arrays, which has no effects: TensorFlow leaves it out where nothing reads what it gives."""
    found = tf.numpy_function(function, given, types, stateful=False)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def keras_name(name: str) -> str:
    """An ONNX name as Keras takes it."""
    return name.replace("/", ".") or "_"


def shape_of(value: ir.Value) -> tuple[int | None, ...]:
    """Its shape as Keras writes it, None for what is not known."""
    if value.shape is None:
        raise InputError(f"output {value.name!r}: its number of axes is not known; export the model with known shapes")
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def keras_type(value: ir.Value) -> str:
    """The name of its type."""
    assert value.dtype is not None
    return str(value.dtype.numpy().name)


def _tf_type(value: ir.Value) -> tf.DType:
    return tf.as_dtype(keras_type(value))


def _values(arrays: Mapping[str, Array]) -> dict[str, Value]:
    return {name: as_value(np.asarray(array)) for name, array in arrays.items()}
