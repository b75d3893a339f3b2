"""Recurrent layers of Keras as LSTM, GRU and RNN nodes of ONNX.

Keras writes them as loops over time, of which tf2onnx knows an LSTM's again, but not a GRU's or a masked one's. While a
model is traced, each layer gives the node itself instead: a PyFunc that nobody runs, which `tensorflow_operators` replaces.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from onnxqat.export.tensorflow_operators import MARK

#: Last output, all outputs, and the states, as `inner_loop` of Keras's layers returns them.
Result = tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]

#: Names of Keras's activations in ONNX, with the parameter alpha (and beta) where there is one.
_ACTIVATIONS: dict[str, tuple[str, float, float]] = {
    "tanh": ("Tanh", 0.0, 0.0),
    "sigmoid": ("Sigmoid", 0.0, 0.0),
    "relu": ("Relu", 0.0, 0.0),
    "softsign": ("Softsign", 0.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
}


@dataclass(frozen=True)
class _Weights:
    """Parameters of a node.

    Attributes:
        operator: LSTM, GRU or RNN.
        kernel: of shape [inputs, gates * units], gates in ONNX's order.
        recurrent: of shape [units, gates * units].
        bias: of the inputs, then of the states: [2 * gates * units].
        activations: Keras's names, in the order of ONNX.
        attributes: further attributes of the node.
    """

    operator: str
    kernel: tf.Tensor
    recurrent: tf.Tensor
    bias: tf.Tensor
    activations: tuple[str, ...]
    attributes: dict[str, Any]


@contextlib.contextmanager
def as_nodes() -> Iterator[None]:
    """Inside, recurrent layers that ONNX has a node for give that node; the result is for tracing only."""
    layers = (keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU)
    originals = {layer: layer.inner_loop for layer in layers}
    for layer, original in originals.items():
        layer.inner_loop = _replacing(original)
    try:
        yield
    finally:
        for layer, original in originals.items():
            layer.inner_loop = original


def _replacing(original: Callable[..., Result]) -> Callable[..., Result]:
    def inner_loop(
        layer: keras.layers.RNN, sequences: tf.Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> Result:
        read = _CELLS.get(type(layer.cell))
        weights = read(layer.cell, sequences.dtype) if read else None
        if weights is None or not set(weights.activations) <= _ACTIVATIONS.keys():
            return original(layer, sequences, initial_state, mask, training=training)
        states = [tf.convert_to_tensor(state) for state in initial_state]
        valid = keras.tree.flatten(mask)[0] if mask is not None else None
        if valid is None:
            return _unmasked(layer, weights, sequences, states)
        return _masked(layer, weights, sequences, states, tf.cast(valid, tf.bool))

    return inner_loop


def _unmasked(layer: keras.layers.RNN, weights: _Weights, sequences: tf.Tensor, initial: list[tf.Tensor]) -> Result:
    outputs, states = _node(layer, weights, sequences, None, initial, backwards=layer.go_backwards)
    if layer.go_backwards:
        outputs = tf.reverse(outputs, [1])  # Keras gives them in the order in which it made them
    return states[0], outputs, states


def _masked(
    layer: keras.layers.RNN, weights: _Weights, sequences: tf.Tensor, initial: list[tf.Tensor], valid: tf.Tensor
) -> Result:
    """A masked step keeps the state: the layer runs over the steps that are valid, moved to the front in their order."""
    if layer.go_backwards:
        sequences, valid = tf.reverse(sequences, [1]), tf.reverse(valid, [1])
    count = tf.cast(valid, tf.int32)
    steps = tf.shape(valid)[1]
    rank = tf.cumsum(count, axis=1)
    _, order = tf.math.top_k(steps * count - tf.range(steps), k=steps)
    lengths = tf.reduce_sum(count, axis=1)
    front = tf.gather(sequences, order, batch_dims=1)
    compact, states = _node(layer, weights, front, lengths, initial, backwards=False)
    some = lengths[:, tf.newaxis] > 0
    states = [tf.where(some, state, first) for state, first in zip(states, initial, strict=True)]
    # Before the first valid step the output is 0, later on the one of the last valid step.
    shown = valid if layer.zero_output_for_mask else rank > 0
    outputs = tf.gather(compact, tf.maximum(rank - 1, 0), batch_dims=1)
    outputs = tf.where(shown[:, :, tf.newaxis], outputs, tf.zeros_like(outputs))
    last = tf.where(shown[:, -1:], states[0], tf.zeros_like(states[0]))
    return last, outputs, states


def _node(
    layer: keras.layers.RNN,
    weights: _Weights,
    sequences: tf.Tensor,
    lengths: tf.Tensor | None,
    initial: list[tf.Tensor],
    *,
    backwards: bool,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The node's outputs, batch first, and its last states; all outputs in the order of the inputs."""
    units = layer.cell.units
    first = [None if _is_zero(state) else state[tf.newaxis] for state in initial]
    given = [
        tf.transpose(sequences, [1, 0, 2]),
        tf.transpose(weights.kernel)[tf.newaxis],
        tf.transpose(weights.recurrent)[tf.newaxis],
        weights.bias[tf.newaxis],
        lengths,
        *first,
    ]
    kinds = [_ACTIVATIONS[name] for name in weights.activations]
    attributes = {
        "hidden_size": units,
        "direction": "reverse" if backwards else "forward",
        "activations": [name for name, _, _ in kinds],
        **weights.attributes,
    }
    if any(alpha for _, alpha, _ in kinds):
        attributes["activation_alpha"] = [alpha for _, alpha, _ in kinds if alpha]
        attributes["activation_beta"] = [beta for _, alpha, beta in kinds if alpha]
    found = _marked(weights.operator, given, attributes, len(initial) + 1)
    steps, batch = sequences.shape[1], sequences.shape[0]
    outputs = tf.ensure_shape(found[0], [steps, 1, batch, units])
    states = [tf.ensure_shape(state, [1, batch, units]) for state in found[1:]]
    return tf.transpose(tf.squeeze(outputs, [1]), [1, 0, 2]), [tf.squeeze(state, [0]) for state in states]


def _marked(
    operator: str, inputs: Sequence[tf.Tensor | None], attributes: dict[str, Any], count: int
) -> list[tf.Tensor]:
    asked = {"operator": operator, "attributes": attributes, "inputs": [value is not None for value in inputs]}
    given = [value for value in inputs if value is not None]
    result: list[tf.Tensor] = tf.raw_ops.PyFunc(
        input=given, token=MARK + json.dumps(asked), Tout=[given[0].dtype] * count, name=operator
    )
    return result


def _is_zero(state: tf.Tensor) -> bool:
    """Whether the state is the zeros that Keras makes where none is given; ONNX begins with them by itself."""
    made = state.op
    while made.type in ("Cast", "Identity"):
        made = made.inputs[0].op
    return bool(made.type == "Fill" and tf.get_static_value(made.inputs[1]) == 0)


def _parameter(variable: keras.Variable, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), dtype)


def _reordered(value: tf.Tensor, gates: Sequence[int]) -> tf.Tensor:
    parts = tf.split(value, len(gates), axis=-1)
    return tf.concat([parts[gate] for gate in gates], axis=-1)


def _lstm(cell: Any, dtype: tf.DType) -> _Weights:
    order = (0, 3, 1, 2)  # input, forget, cell, output to input, output, forget, cell
    kernel, recurrent = _parameter(cell.kernel, dtype), _parameter(cell.recurrent_kernel, dtype)
    size = 4 * cell.units
    bias = _parameter(cell.bias, dtype) if cell.use_bias else tf.zeros([size], dtype)
    return _Weights(
        "LSTM",
        _reordered(kernel, order),
        _reordered(recurrent, order),
        tf.concat([_reordered(bias, order), tf.zeros([size], dtype)], axis=0),
        (cell.recurrent_activation.__name__, cell.activation.__name__, cell.activation.__name__),
        {},
    )


def _gru(cell: Any, dtype: tf.DType) -> _Weights:
    kernel, recurrent = _parameter(cell.kernel, dtype), _parameter(cell.recurrent_kernel, dtype)
    size = 3 * cell.units
    bias = _parameter(cell.bias, dtype) if cell.use_bias else tf.zeros([size], dtype)
    bias = tf.reshape(bias, [-1])
    return _Weights(
        "GRU",
        kernel,
        recurrent,
        bias if bias.shape[0] == 2 * size else tf.concat([bias, tf.zeros([size], dtype)], axis=0),
        (cell.recurrent_activation.__name__, cell.activation.__name__),
        {"linear_before_reset": int(cell.reset_after)},
    )


def _rnn(cell: Any, dtype: tf.DType) -> _Weights:
    kernel, recurrent = _parameter(cell.kernel, dtype), _parameter(cell.recurrent_kernel, dtype)
    zeros = tf.zeros([cell.units], dtype)
    bias = _parameter(cell.bias, dtype) if cell.use_bias else zeros
    return _Weights("RNN", kernel, recurrent, tf.concat([bias, zeros], axis=0), (cell.activation.__name__,), {})


#: Readers of the cells that ONNX has a node for; not of the user's subclasses, which may compute anything.
_CELLS: dict[type, Callable[[Any, tf.DType], _Weights]] = {
    keras.layers.LSTMCell: _lstm,
    keras.layers.GRUCell: _gru,
    keras.layers.SimpleRNNCell: _rnn,
}
