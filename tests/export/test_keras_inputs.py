"""Models that do not know their inputs, and models of half precision."""

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from keras import layers

from onnxqat.errors import InputError
from onnxqat.export.keras import export
from tests.export.test_keras import Subclassed


def sequential_of_four() -> keras.Model:
    return keras.Sequential([keras.Input((4,), name="four"), layers.Dense(2, name="two")])


class OfTwo(keras.Model):
    """Takes a tuple or a dict, and gives a dict of which one key is an input's too."""

    def __init__(self):
        super().__init__(name="two")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        left, right = inputs.values() if isinstance(inputs, dict) else inputs
        return {"sum": self.dense(left + right), "left": self.dense(left)}


def dataset(*structure: object, batch: bool = True) -> tf.data.Dataset:
    made = tf.data.Dataset.from_tensor_slices(structure[0] if len(structure) == 1 else structure)
    return made.batch(4) if batch else made


ROWS, LABELS = np.ones((8, 4), np.float32), np.zeros(8, np.int64)


@pytest.mark.parametrize(
    ("make", "data", "inputs", "outputs"),
    [
        pytest.param(Subclassed, dataset(ROWS, LABELS), ["input"], ["output"], id="labels"),
        pytest.param(Subclassed, dataset(ROWS).element_spec, ["input"], ["output"], id="inputs alone, as a spec"),
        pytest.param(OfTwo, dataset((ROWS, ROWS), LABELS), ["input_0", "input_1"], ["sum", "left"], id="tuple"),
        pytest.param(
            OfTwo, dataset({"left": ROWS, "right": ROWS}, LABELS), ["left", "right"], ["sum", "left_1"], id="dict"
        ),
        pytest.param(
            lambda: keras.Sequential([layers.Dense(2)]), dataset(ROWS, LABELS), ["input"], ["output"], id="unbuilt"
        ),
        pytest.param(sequential_of_four, dataset(ROWS, LABELS), ["four"], ["two"], id="known inputs"),
    ],
)
def test_dataset_says_what_the_inputs_are(make, data, inputs, outputs):
    model = make()
    proto = export(model, dataset=data)
    assert [value.name for value in proto.graph.input] == inputs
    assert [value.name for value in proto.graph.output] == outputs
    x = np.random.default_rng(0).normal(size=(len(inputs), 3, 4)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(inputs, x, strict=True)))
    want = model(x[0] if len(inputs) == 1 else tuple(x))
    for got, value in zip(found, want.values() if isinstance(want, dict) else [want], strict=True):
        np.testing.assert_allclose(got, value.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (Subclassed, dataset(ROWS, batch=False), "mine: does not take its dataset's elements, .* in batches"),
        (Subclassed, dataset(LABELS, batch=False), r"mine: .* have shape \(\); give it in batches"),
        (Subclassed, [3], "mine: its dataset's elements hold a int; give a tf.data.Dataset of tensors"),
        (sequential_of_four, dataset(ROWS[:, :3]), r"have the shapes \(None, 3\), the model takes \(None, 4\)"),
        (sequential_of_four, dataset(ROWS, batch=False), r"have the shapes \(4,\), the model takes .* in batches"),
    ],
    ids=["one element", "scalars", "no dataset", "another shape", "known, one element"],
)
def test_dataset_whose_elements_do_not_fit_is_named(make, data, message):
    with pytest.raises(InputError, match=message) as caught:
        export(make(), dataset=data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_layers_of_half_precision_are_exported_as_float32(policy, caplog):
    x = keras.Input((5, 4), name="x")
    # TensorFlow has no decomposition in bfloat16, which the initializer that Keras takes by itself needs
    recurrent = layers.GRU(3, return_sequences=True, recurrent_initializer="glorot_uniform", dtype=policy)
    made = [recurrent, layers.MultiHeadAttention(2, 2, dtype=policy)]
    hidden = made[0](x)
    model = keras.Model(x, layers.Dense(2, dtype=policy, name="dense")(made[1](hidden, hidden)), name="half")
    proto = export(model)
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    assert half.isdisjoint(value.data_type for value in proto.graph.initializer)
    assert {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)} == {1}
    assert f"half: exported as float32; its layers are {policy}" in caplog.text
    assert model.get_layer("dense").dtype_policy.name == policy
    assert model.get_layer("dense").kernel.dtype == ("float32" if policy.startswith("mixed") else policy)
    series = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    want = keras.ops.cast(model(series), "float32").numpy()
    np.testing.assert_allclose(session.run(None, {"x": series})[0], want, atol=0.03)  # two digits of bfloat16
