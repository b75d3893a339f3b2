"""Every layer of Keras that answers the same each time, exported and compared; several layers share a model, to be quick."""

import inspect
from collections import Counter
from collections.abc import Callable
from functools import cache

import keras
import numpy as np
import pytest
from keras import layers

from onnxqat.errors import UnsupportedModelError
from onnxqat.export.keras import export
from tests.export.test_keras import assert_answers_as, trained


def each(shape: tuple[int, ...], *made: layers.Layer, dtype: str = "float32") -> keras.Model:
    """A model that gives an input to each layer, and every layer's answer."""
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, [layer(x) for layer in made])


def activations() -> keras.Model:
    absent = {"deserialize", "get", "serialize", "threshold"}
    names = [name for name in dir(keras.activations) if not name.startswith("_") and name not in absent]
    more = (layers.ELU(), layers.LeakyReLU(), layers.PReLU(), layers.Softmax(), layers.ReLU(6.0, 0.1, 0.2))
    return each((6,), *[layers.Activation(name, name=f"{name}_function") for name in names], *more)


def of_one_axis() -> keras.Model:
    return each(
        (8, 4),
        layers.Conv1D(4, 3, groups=2),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        layers.Conv1DTranspose(4, 3, strides=2, padding="same"),
        layers.DepthwiseConv1D(3),
        layers.SeparableConv1D(4, 3),
        layers.MaxPooling1D(3, 2, padding="same"),
        layers.AveragePooling1D(3, 2, padding="same"),
        layers.GlobalMaxPooling1D(),
        layers.GlobalAveragePooling1D(),
        layers.AdaptiveMaxPooling1D(3),
        layers.AdaptiveAveragePooling1D(3),
        layers.UpSampling1D(2),
        layers.ZeroPadding1D(1),
        layers.Cropping1D(1),
        layers.SpatialDropout1D(0.5),
    )


def of_two_axes() -> keras.Model:
    return each(
        (8, 8, 4),
        layers.Conv2D(4, 3, strides=2, padding="same"),
        layers.Conv2D(4, 3, groups=2, dilation_rate=2),
        layers.Conv2D(4, 3, data_format="channels_first"),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.SeparableConv2D(4, 3),
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.AveragePooling2D(3, 2, padding="same"),
        layers.GlobalMaxPooling2D(),
        layers.GlobalAveragePooling2D(),
        layers.AdaptiveMaxPooling2D(3),
        layers.AdaptiveAveragePooling2D(3),
        layers.UpSampling2D(2),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.UpSampling2D(2, interpolation="bicubic"),
        layers.ZeroPadding2D(1),
        layers.Cropping2D(1),
        layers.SpatialDropout2D(0.5),
    )


def of_three_axes() -> keras.Model:
    return each(
        (4, 4, 4, 2),
        layers.Conv3D(4, 3, groups=2),
        layers.Conv3DTranspose(4, 3, strides=2, padding="same"),
        layers.MaxPooling3D(3, 2, padding="same"),
        layers.AveragePooling3D(3, 2, padding="same"),
        layers.GlobalMaxPooling3D(),
        layers.GlobalAveragePooling3D(),
        layers.AdaptiveMaxPooling3D(3),
        layers.AdaptiveAveragePooling3D(3),
        layers.UpSampling3D(2),
        layers.ZeroPadding3D(1),
        layers.Cropping3D(1),
        layers.SpatialDropout3D(0.5),
    )


def of_vectors() -> keras.Model:
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(1).normal(5, 3, (100, 4)).astype(np.float32))
    return each(
        (6, 4),
        adapted,
        layers.ActivityRegularization(0.1),
        layers.AlphaDropout(0.5),
        layers.BatchNormalization(),
        layers.Dense(3),
        layers.Discretization([-0.5, 0.0, 0.5]),
        layers.Dropout(0.5),
        layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3), bias_axes="de"),
        layers.Flatten(),
        layers.GaussianDropout(0.5),
        layers.GaussianNoise(0.5),
        layers.GroupNormalization(2),
        layers.Identity(),
        layers.Lambda(lambda x: x + 1),
        layers.LayerNormalization(),
        layers.Masking(),
        layers.Permute((2, 1)),
        layers.Rescaling(1 / 255),
        layers.Reshape((3, 8)),
        layers.RMSNormalization(),
        layers.SpectralNormalization(layers.Dense(3)),
        layers.TimeDistributed(layers.Dense(3)),
        layers.UnitNormalization(),
    )


def of_signals() -> keras.Model:
    repeated, x = layers.RepeatVector(3), keras.Input((200,), name="x")
    spectrum = layers.MelSpectrogram(fft_length=32, sequence_stride=16, num_mel_bins=4)
    return keras.Model(x, [repeated(x), spectrum(x)])


def of_tokens() -> keras.Model:
    x, reversible = keras.Input((5,), dtype="int32", name="x"), layers.ReversibleEmbedding(10, 4)
    return keras.Model(x, [reversible(reversible(x), reverse=True), layers.CategoryEncoding(5, "multi_hot")(x)])


def of_several() -> keras.Model:
    left, right = keras.Input((5, 8), name="left"), keras.Input((5, 8), name="right")
    merging = [
        layers.Add(),
        layers.Average(),
        layers.Concatenate(),
        layers.Dot(2),
        layers.Maximum(),
        layers.Minimum(),
        layers.Multiply(),
        layers.Subtract(),
        layers.Attention(use_scale=True),
        layers.AdditiveAttention(),
    ]
    grouped = layers.GroupQueryAttention(4, 4, 2)(left, right)
    causal = layers.MultiHeadAttention(2, 4)(left, right, use_causal_mask=True)
    return keras.Model([left, right], [*(layer([left, right]) for layer in merging), grouped, causal])


def of_images() -> keras.Model:
    drawn = [value for name, value in vars(layers).items() if name.startswith("Random")]
    given = {
        "RandomCrop": {"height": 6, "width": 6},
        "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
        "RandomZoom": {"height_factor": 0.2},
        "RandomPosterization": {"factor": 4},
    }

    def made(kind: type[layers.Layer]) -> layers.Layer:
        has_factor = "factor" in inspect.signature(kind).parameters
        return kind(**given.get(kind.__name__, {"factor": 0.2} if has_factor else {}))

    return each(
        (6, 6, 3),
        *[made(kind) for kind in drawn],
        *[kind() for kind in (layers.AugMix, layers.CutMix, layers.MixUp, layers.RandAugment)],
        layers.AutoContrast(),
        layers.CenterCrop(4, 4),
        layers.Resizing(9, 5),
        layers.Resizing(9, 5, interpolation="nearest"),
        layers.Resizing(9, 5, interpolation="bicubic"),
        layers.Resizing(3, 3, interpolation="area"),
        layers.Solarization(),
    )


def recurrent() -> keras.Model:
    kinds = (layers.LSTM, layers.GRU, layers.SimpleRNN)
    made = [
        layer
        for kind in kinds
        for layer in (
            kind(3, unroll=True),
            layers.Bidirectional(kind(3, return_sequences=True)),
            kind(3, go_backwards=True, return_sequences=True, use_bias=False),
            layers.Bidirectional(kind(3), merge_mode="sum"),
        )
    ]
    others = [
        layers.LSTM(3, activation="relu", recurrent_activation="hard_sigmoid", return_sequences=True),
        layers.GRU(3, reset_after=False, activation="softsign"),
        layers.RNN(layers.GRUCell(3)),
    ]
    x, state = keras.Input((5, 4), name="x"), keras.Input((3,), name="state")
    given = layers.GRU(3, return_state=True)(x, initial_state=state)
    return keras.Model([x, state], [*(layer(x) for layer in [*made, *others]), *given])


def masked() -> keras.Model:
    """Masks of any steps, those of a whole sequence too: tokens are 0 or 1 in the exporter's own comparison."""
    x = keras.Input((3,), dtype="int32", name="x")
    embedded = layers.Embedding(5, 4, mask_zero=True)(x)
    series = layers.LSTM(3), layers.Bidirectional(layers.GRU(3, return_sequences=True)), layers.SimpleRNN(3)
    return keras.Model(x, [layer(embedded) for layer in series])


def looped() -> keras.Model:
    return each((2, 4, 2), layers.ConvLSTM1D(2, 3))


MADE = [
    activations,
    of_one_axis,
    of_two_axes,
    of_three_axes,
    of_vectors,
    of_signals,
    of_tokens,
    of_several,
    of_images,
    recurrent,
    masked,
    looped,
]


@cache
def built(make: Callable[[], keras.Model]) -> keras.Model:
    return trained(make())


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_layers_answer_as_in_keras(make):
    model = built(make)
    proto = export(model)
    assert_answers_as(proto, model, 5)
    loops = Counter(node.op_type for node in proto.graph.node)["Loop"]
    assert loops == (1 if make is looped else 0)


#: Layers of no answer of their own, of other frameworks, or that a model of numbers cannot hold.
APART = {
    *("Layer", "Wrapper", "InputLayer", "Pipeline", "LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells"),
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    *("HashedCrossing", "StringLookup", "TextVectorization", "MaxNumBoundingBoxes"),
    "STFTSpectrogram",  # needs SciPy
    "Equalization",  # Keras 3.15 builds no Functional model of it
    *("ConvLSTM2D", "ConvLSTM3D"),  # as ConvLSTM1D, in ten times its time
    "ContrastLimitedAdaptiveHistogramEqualization",  # of bounds that ties decide
}
REFUSED = {
    "IntegerLookup": (lambda: layers.IntegerLookup(vocabulary=[0, 1, 5], name="found"), "int32", "LookupTable.*found"),
    "Hashing": (lambda: layers.Hashing(4, name="found"), "int32", "StringToHash.* of 'found/"),
    "lanczos": (
        lambda: layers.Resizing(4, 4, interpolation="lanczos3", name="found"),
        "float32",
        "ScaleAndTranslate of 'found/",
    ),
}


def test_every_layer_of_keras_is_compared_or_refused():
    classes = {v.__name__ for v in vars(layers).values() if inspect.isclass(v) and issubclass(v, layers.Layer)}
    compared = {type(layer).__name__ for make in MADE for layer in built(make)._flatten_layers()}
    assert classes - compared - APART - REFUSED.keys() == set()


@pytest.mark.parametrize("name", REFUSED)
def test_layer_without_onnx_form_is_refused_by_name(name):
    make, kind, message = REFUSED[name]
    shape = (6, 6, 3) if name == "lanczos" else (3,)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export(each(shape, make(), dtype=kind))
    assert "\n" not in str(caught.value)
