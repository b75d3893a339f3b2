import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from keras import layers

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.keras import export, load
from tests.command_line import status_of

# Keras 3.15 calls NumPy 2 in ways it has deprecated, when it saves and when it exports.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:keras", "ignore:__array__ implementation:DeprecationWarning"
)


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Flatten(name="flat"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(6, activation="tanh", name="hidden"),
            layers.Dense(4, name="logits"),
        ],
        name="sequential",
    )


def residual() -> keras.Model:
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_act")(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    y = layers.ReLU(name="depthwise_act")(layers.BatchNormalization(name="depthwise_norm")(y))
    y = layers.Conv2D(8, 1, name="pointwise")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.SeparableConv2D(12, 3, strides=2, padding="same", activation="relu", name="separable")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, layers.Dense(5, activation="softmax", name="answer")(x), name="residual")


def two_ends() -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    total = layers.Add(name="total")([left, right])
    return keras.Model([left, right], [layers.Dense(3, name="z")(total), layers.Dense(2, name="a")(total)])


def named_inputs() -> keras.Model:
    ends = {name: keras.Input((4,), name=name) for name in ("second", "first")}
    return keras.Model(ends, layers.Subtract(name="difference")([ends["first"], ends["second"]]))


def fully_convolutional() -> keras.Model:
    image = keras.Input((None, None, 1), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="down")(image)
    return keras.Model(image, layers.UpSampling2D(2, name="up")(x))


def embedded() -> keras.Model:
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(5, 6, name="embedding")(tokens)
    return keras.Model(tokens, layers.GlobalAveragePooling1D(name="mean")(layers.LayerNormalization(name="norm")(x)))


def nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inside")], name="inner")
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(2, name="outside")(inner(x)), name="outer")


def trained(model: keras.Model) -> keras.Model:
    """The model with parameters and running statistics that are not all alike, as after training."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32" and "seed" not in variable.path:
            shape = variable.shape
            positive = "variance" in variable.path
            variable.assign(random.uniform(0.5, 1.5, shape) if positive else random.normal(0, 0.5, shape))
    return model


def drawn(model: keras.Model, rows: int) -> list[np.ndarray]:
    random = np.random.default_rng(rows)
    shapes = [(rows, *(size or 10 for size in value.shape[1:])) for value in model.inputs]
    whole = [value.dtype == "int32" for value in model.inputs]
    return [
        random.integers(0, 5, shape, np.int32) if integer else random.normal(size=shape).astype(np.float32)
        for shape, integer in zip(shapes, whole, strict=True)
    ]


def assert_answers_as(model: onnx.ModelProto, expected: keras.Model, rows: int) -> None:
    inputs = drawn(expected, rows)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))
    packed = (
        inputs[0] if isinstance(expected, keras.Sequential) else keras.tree.pack_sequence_as(expected.input, inputs)
    )
    want = keras.tree.flatten(expected(packed, training=False))
    assert len(found) == len(want)
    for got, value in zip(found, want, strict=True):
        np.testing.assert_allclose(got, value.numpy(), rtol=1e-4, atol=1e-4)


MAKERS = [sequential, residual, two_ends, named_inputs, fully_convolutional, embedded, nested]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_model_answers_as_keras_at_other_batch_sizes(make):
    model = trained(make())
    exported = export(model)
    for rows in (1, 5):
        assert_answers_as(exported, model, rows)


@pytest.mark.parametrize("make", [sequential, residual], ids=lambda make: make.__name__)
def test_keras_file_gives_the_same_graph_as_the_model(tmp_path, make):
    model = trained(make())
    model.save(tmp_path / "model.keras")
    from_file, from_model = export(tmp_path / "model.keras"), export(model)
    assert [(n.op_type, n.name) for n in from_file.graph.node] == [(n.op_type, n.name) for n in from_model.graph.node]
    assert_answers_as(from_file, model, 4)


@pytest.mark.parametrize("make", [sequential, residual], ids=lambda make: make.__name__)
def test_saved_model_answers_as_the_model_it_came_from(tmp_path, make):
    model = trained(make())
    model.export(tmp_path / "saved", verbose=False)
    assert_answers_as(export(str(tmp_path / "saved")), model, 4)


def test_graph_is_named_after_the_layers_and_keeps_the_channel_last():
    model = export(trained(residual()))
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == ["image", "answer"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 16, 16, 3]
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    assert [node.name for node in weighted] == [
        "stem/convolution",
        "depthwise/depthwise",
        "pointwise/BiasAdd",
        "separable/separable_conv2d/depthwise",
        "separable/BiasAdd",
        "answer/MatMul",
    ]
    assert [node.input[1] for node in weighted] == [f"{node.name}/weight" for node in weighted]


def test_layers_whose_names_differ_by_a_number_are_not_mixed_up():
    stack = [layers.Dense(size, name=name) for size, name in ((5, "dense"), (6, "dense_1"), (7, "dense_2"))]
    model = export(keras.Sequential([keras.Input((4,)), *stack]))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert shapes["dense/MatMul/weight"] == (4, 5)
    assert shapes["dense_1/MatMul/weight"] == (5, 6)
    assert shapes["dense_2/MatMul/weight"] == (6, 7)


def test_two_exports_give_the_same_names():
    model = trained(residual())
    first, second = export(model), export(model)
    assert {tensor.name for tensor in first.graph.initializer} == {tensor.name for tensor in second.graph.initializer}


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_file_has_the_opset_asked_for_and_an_ir_that_training_reads(tmp_path, opset):
    export(sequential(), tmp_path / "model.onnx", opset=opset)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version <= 10
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def spectrum() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, keras.ops.fft((x, x))[0])


def fixed_batch() -> keras.Model:
    x = keras.Input((8,), batch_size=3)
    return keras.Model(x, layers.Dense(2)(x))


class Noisy(layers.Layer):
    def call(self, x):
        return x + keras.random.normal((8,))


def noisy() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, Noisy()(x))


REFUSED = [
    pytest.param(noisy, "is off by .* remove randomness", id="random"),
    pytest.param(Subclassed, r"mine: is a subclassed model.*give the dataset", id="subclassed"),
    pytest.param(spectrum, "operators without an ONNX form, .*FFT of .*; replace the layers", id="no-onnx-operator"),
    pytest.param(fixed_batch, r"has shape \(3, 8\), so no free batch axis", id="fixed-batch"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_model_that_has_no_onnx_form_is_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export(make(), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.keras: no such file or folder"):
        export(tmp_path / "absent.keras")


def test_folder_without_saved_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no saved_model\.pb; write it with model\.export"):
        export(tmp_path)


@pytest.mark.parametrize("name", ["model.keras", "saved_model.pb"])
def test_damaged_model_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot load it"):
        export(tmp_path / name if name.endswith("keras") else tmp_path)


def custom() -> keras.Model:
    x = keras.Input((8,), name="x")
    return keras.Model(x, layers.Dense(2, name="dense")(layers.Lambda(lambda v: v * 2)(x)))


def test_command_line_calls_a_function_for_what_no_file_can_hold(tmp_path, capfd):
    assert status_of("export", "keras", f"{__name__}:custom", "-o", tmp_path / "model.onnx") == 0
    assert capfd.readouterr().err == ""
    assert onnx.load(tmp_path / "model.onnx").graph.output[0].name == "dense"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.export.test_keras:drawn", "cannot be called without arguments"),
        ("tests.export.test_keras:REFUSED", "gives a list, not a Keras model; name a function that makes one"),
        ("nowhere:model", "no module 'nowhere'"),
    ],
    ids=["arguments", "no model", "no module"],
)
def test_function_that_gives_no_model_is_named(name, message):
    with pytest.raises(InputError, match=message):
        load(name)


def test_file_of_a_subclassed_model_is_named(tmp_path):
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    model.save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras: Keras cannot load it .*; give a file|is a subclassed model"):
        export(tmp_path / "model.keras")


def test_argument_that_is_no_model_is_named():
    with pytest.raises(InputError, match="model: is a int; give a Keras model"):
        export(3)


def test_sequential_without_input_shape_is_named():
    with pytest.raises(InputError, match=r"begin it with keras\.Input\(shape\)"):
        export(keras.Sequential([layers.Dense(2)]))


def test_opset_that_tf2onnx_does_not_write_is_named():
    with pytest.raises(InputError, match="opset 19: this exporter writes 13 to 18"):
        export(sequential(), opset=19)


def test_missing_tensorflow_names_the_extra():
    code = "import sys; sys.modules['tensorflow'] = None; import onnxqat.export.keras"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "is not installed; run `pip install 'onnxqat[keras]'`" in run.stderr


def wrapper() -> keras.Model:
    """A model whose outputs are those of a model inside it, which are all called as that is."""
    inside = keras.Input((6,))
    hidden = layers.Dense(5, activation="relu", name="hidden")(inside)
    inner = keras.Model(inside, [layers.Dense(3, name="z")(hidden), layers.Dense(2, name="a")(hidden)], name="inner")
    outside = keras.Input((6,), name="x")
    return keras.Model(outside, inner(layers.Dense(6, name="first")(outside)), name="outer")


def wrapper_of_equal_shapes() -> keras.Model:
    inside = keras.Input((6,))
    inner = keras.Model(inside, [layers.Dense(3, name="z")(inside), layers.Dense(3, name="a")(inside)], name="inner")
    outside = keras.Input((6,), name="x")
    first, second = inner(outside)
    return keras.Model(outside, [second, first, layers.Dense(3, name="inner_1")(outside)], name="outer")


def one_output_twice() -> keras.Model:
    x = keras.Input((6,), name="x")
    y = layers.Dense(3, name="z")(x)
    return keras.Model(x, [y, y], name="twice")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (wrapper, ["inner", "inner_1"]),
        (wrapper_of_equal_shapes, ["inner", "inner_2", "inner_1"]),
        (one_output_twice, ["z", "z_1"]),
    ],
)
def test_every_output_is_written_under_a_name_of_its_own(make, names):
    model = make()
    proto = export(model)
    assert [value.name for value in proto.graph.output] == names
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for want, got in zip(model(x), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
