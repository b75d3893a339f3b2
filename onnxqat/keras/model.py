"""A Q/DQ model as a Keras model, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import onnx
import onnx_ir as ir
import tensorflow as tf

from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.keras.layer import NO_SAVED_MODEL, Graph, keras_name, keras_type, shape_of
from onnxqat.training.execution import Options
from onnxqat.training.wrapped import QuantizationSchedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Strategies whose replicas are other processes or machines.
_APART = (
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.experimental.ParameterServerStrategy,
    tf.distribute.TPUStrategy,
)


def as_model(qdq: io.ModelLike, **execution: Unpack[Options]) -> QdqModel:
    """A Keras model whose trainable weights are the model's weights, biases and scales; for `fit`, or a loop of one's own.

    Args:
        qdq: the model, as `onnxqat.insert` or another quantizer wrote it.
        execution: `threads`, `layout`, `engine`, `memory`, `provider`: see `onnxqat.Execution`.

    Raises:
        InputError: the model has no quantizers or nothing to train; a strategy's replicas are other processes.

    Example:
        ```python
        model = onnxqat.keras.as_model("qdq.onnx")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-5), loss=loss, metrics=["accuracy"])
        model.fit(dataset, epochs=2)
        ```
    """
    return QdqModel(ir.to_proto(io.load(qdq)).SerializeToString(), execution)


def to_model(model: keras.Model) -> onnx.ModelProto:
    """The Q/DQ model with the weights that the Keras model has now: what `fold` and `verify` take.

    Args:
        model: what `as_model` returned, or a Keras model that it is a part of.

    Raises:
        InputError: it holds no such model, or several; a weight is not finite.

    Example:
        ```python
        onnx.save(onnxqat.fold(onnxqat.keras.to_model(model)), "deployed.onnx")
        ```
    """
    return graph_of(model).model()


def graph_of(model: keras.Model) -> Graph:
    """The layer of `as_model` in a Keras model.

    Raises:
        InputError: there is none, or more than one.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"model: is a {type(model).__name__}; give the model that onnxqat.keras.as_model returned")
    graphs = [layer for layer in model._flatten_layers() if isinstance(layer, Graph)]
    if len(graphs) != 1:
        raise InputError(f"{model.name}: holds {len(graphs)} models of onnxqat.keras.as_model; give one of them")
    graph: Graph = graphs[0]
    return graph


@keras.saving.register_keras_serializable(package="onnxqat")
class QdqModel(keras.Model):  # type: ignore[misc]
    """A functional Keras model around a Q/DQ model: its inputs and outputs have the graph's names, in its order.

    Gradients are those of `onnxqat.Trainer.gradients`. Constraints, which Keras's optimizers apply after each step, keep scales
    within their bounds; the graph keeps to these whatever the weights hold. `fit` begins quantization at the start epochs of
    `Config.weight_start_epoch` and `activation_start_epoch`; a loop of one's own calls `model.schedule.epoch_step()`.

    `model.save("model.keras")` keeps the graph too, so that `keras.models.load_model` needs nothing else, where
    `onnxqat.keras` has been imported.

    Args:
        graph: the model, serialized.
        execution: fields of `onnxqat.Execution` that are not the default's.
        settings: of `keras.Model`.

    Example:
        ```python
        model = onnxqat.keras.as_model("qdq.onnx")
        for epoch in range(3):
            for images, labels in dataset:
                with tf.GradientTape() as tape:
                    value = loss(labels, model(images, training=True))
                optimizer.apply(tape.gradient(value, model.trainable_weights), model.trainable_weights)
            model.schedule.epoch_step()
        ```
    """

    def __init__(self, graph: bytes | str, execution: Options | None = None, **settings: Any) -> None:
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, _APART):
            raise InputError(
                f"{type(strategy).__name__}: its replicas are other processes, which this model does not reach; "
                "train with onnxqat.Trainer(distributed=True) under torchrun"
            )
        layer = Graph(graph, execution, name=settings.get("name", "qdq"))
        inputs = [
            keras.Input(batch_shape=shape_of(value), dtype=keras_type(value), name=keras_name(name))
            for name, value in layer.inputs.items()
        ]
        outputs = [
            keras.layers.Identity(name=keras_name(name), dtype=keras_type(layer.outputs[name]))(tensor)
            for name, tensor in zip(layer.outputs, layer(inputs), strict=True)
        ]
        super().__init__(inputs=_alone(inputs), outputs=_alone(outputs), **settings)
        self._graph_layer = layer

    @property
    def schedule(self) -> QuantizationSchedule:
        """Schedule of the start of quantization; `fit` steps it."""
        return self._graph_layer.wrapped.schedule

    def fold(self) -> onnx.ModelProto:
        """The deployed model: `onnxqat.fold` of `to_model`."""
        return fold(to_model(self))

    def fit(self, *arguments: Any, callbacks: Any = None, **settings: Any) -> Any:
        """See `keras.Model.fit`; start epochs are kept."""
        from onnxqat.keras.callbacks import StartEpochs

        given = callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
        given = list(given) if isinstance(given, (list, tuple)) else [given] if given is not None else []
        if self.schedule.is_staged and not any(isinstance(one, StartEpochs) for one in given):
            given.append(StartEpochs(self))
        return super().fit(*arguments, callbacks=given, **settings)

    def export(self, *arguments: Any, **settings: Any) -> None:
        """Refuses to write a SavedModel.

        Raises:
            InputError: always; the message names the way that works.
        """
        raise InputError(NO_SAVED_MODEL)

    def get_config(self) -> dict[str, Any]:
        """The graph, and the settings of the call."""
        kept = self._graph_layer.get_config()
        return {"name": self.name, "trainable": self.trainable, "graph": kept["graph"], "execution": kept["execution"]}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> QdqModel:
        """See `keras.Model.from_config`."""
        return cls(**config)


def _alone(tensors: list[Any]) -> Any:
    """One tensor by itself, several as a list."""
    return tensors[0] if len(tensors) == 1 else tensors
