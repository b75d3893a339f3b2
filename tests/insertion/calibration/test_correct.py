import numpy as np
import onnx
import pytest

from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from onnxqat.verification.run import evaluate
from tests.insertion.cases import INTEGER
from tests.models import array, batches, model, outputs, random

LOW = {"weight_bits": 4, "activation_bits": 8, "first_last_bits": None, "weight_granularity": "per_tensor"}


def bias_of_output(proto: onnx.ModelProto, quantized: onnx.ModelProto) -> np.ndarray:
    """Mean error of each channel of the last layer."""
    differences = [q - f for b in batches(proto) for q, f in zip(outputs(quantized, b), outputs(proto, b), strict=True)]
    return np.mean([d.mean(axis=tuple(i for i in range(d.ndim) if i != 1)) for d in differences], axis=0)


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("name", ["conv", "gemm", "residual", "shared weight", "depthwise with relu6"])
def test_mean_error_of_each_channel_of_the_output_is_taken_off(name, target):
    proto = INTEGER[name]
    plain, corrected = (
        insert(proto, batches(proto), Config(target=target, **LOW, output_correction=kind, correction_samples=12))
        for kind in ("none", "mean")
    )
    before, after = (np.abs(bias_of_output(proto, quantized)) for quantized in (plain, corrected))
    assert before.max() > 1e-3
    # behind the last layer comes a quantizer of 8 bits on ONNX Runtime
    assert after.max() < max(0.2 * before.max(), 2e-3)


def test_correction_of_one_layer_is_the_difference_of_means_that_numpy_finds():
    proto = model("(float[N,6] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=random(6, 3), b=random(3, seed=1))
    settings = {"weight_bits": 3, "quantize_activations": False, "first_last_bits": None}
    data = batches(proto, 5)
    plain, corrected = (
        insert(proto, data, Config(**settings, output_correction=kind, correction_samples=10))
        for kind in ("none", "mean")
    )
    first = {"x": np.concatenate([batch["x"] for batch in data])[:10]}
    shift = (outputs(proto, first)[0] - outputs(plain, first)[0]).mean(axis=0)
    np.testing.assert_allclose(array(corrected, "b") - array(plain, "b"), shift, atol=1e-6)


def test_layer_without_bias_gets_one_and_a_shared_bias_is_split():
    proto = model(
        "(float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) r = Relu(a) k = Conv(r, v, b) s = Relu(k) y = Conv(s, u, b) }",
        w=random(4, 4, 1, 1, seed=1), v=random(4, 4, 1, 1, seed=2), u=random(4, 4, 1, 1, seed=3), b=random(4),
    )  # fmt: skip
    quantized = insert(proto, batches(proto), Config(**LOW, output_correction="mean", correction_samples=12))
    biases = [node.input[2] for node in quantized.graph.node if node.op_type == "Conv"]
    assert len(set(biases)) == 3


def test_matmul_is_corrected_in_the_add_behind_it_and_left_alone_without_one(caplog):
    caplog.set_level("INFO")
    proto = model(
        "(float[N,3,6] x) => (float[N,3,4] y) { [first] a = MatMul(x, w) b = Add(a, c) r = Relu(b) [last] y = MatMul(r, v) }",
        w=random(6, 4, seed=1), v=random(4, 4, seed=2), c=random(4),
    )  # fmt: skip
    plain, corrected = (
        insert(proto, batches(proto), Config(**LOW, output_correction=kind, correction_samples=12))
        for kind in ("none", "mean")
    )
    assert not np.array_equal(array(plain, "c"), array(corrected, "c"))
    assert "layers whose outputs are not corrected (no bias of their own): last" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seen", "judged", "bits", "floor"),
    [
        ("resnet20", fashion_mnist.calibration, fashion_mnist.test, 2, 0.88),
        ("separable", fashion_mnist.calibration_nhwc, fashion_mnist.test_nhwc, 4, 0.87),
    ],
    ids=["resnet20", "separable"],
)
def test_correction_keeps_accuracy_at_few_bits_without_training(name, seen, judged, bits, floor):
    """`tools.benchmark_few_bits` measures it on all images."""
    config = Config(weight_bits=bits, activation_bits=bits, output_correction="affine")
    qdq = insert(fashion_mnist.SLICE.with_name(f"{name}.onnx"), list(seen())[:1], config)
    assert evaluate(qdq, list(judged())[:8]) >= floor


def test_convolutions_that_onnxruntime_would_fuse_with_their_sum_are_corrected():
    weights = {name: random(16, 16, 3, 3, seed=seed) for seed, name in enumerate("wvu")}
    proto = model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) c = Conv<pads=[1,1,1,1]>(x, v, b) "
        "s = Add(a, c) t = Relu(s) y = Conv<pads=[1,1,1,1]>(t, u) }",
        **weights,
        b=random(16),
    )
    plain, corrected = (
        insert(proto, batches(proto), Config(target="openvino", **LOW, output_correction=kind, correction_samples=12))
        for kind in ("none", "mean")
    )
    assert np.abs(bias_of_output(proto, corrected)).max() < 0.2 * np.abs(bias_of_output(proto, plain)).max()


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_bias_of_a_matmul_by_a_vector_is_one_number_however_the_rows_are_cut(shape):
    proto = model(
        "(float[N,8] x) => (float[N] y) { r = Relu(x) m = MatMul(r, v) y = Add(m, c) }",
        v=random(8), c=random(1).reshape(shape),
    )  # fmt: skip
    rows = random(24, 8, seed=3, scale=1.0)
    settings = {"weight_bits": 3, "quantize_activations": False, "first_last_bits": None}
    plain = insert(proto, [{"x": rows}], Config(**settings))
    shift = (outputs(proto, {"x": rows[:20]})[0] - outputs(plain, {"x": rows[:20]})[0]).mean()
    for cuts in ([], [8, 16], [16, 17]):
        data = [{"x": part} for part in np.split(rows, cuts)]
        corrected = array(insert(proto, data, Config(**settings, output_correction="mean", correction_samples=20)), "c")
        assert corrected.shape == shape
        np.testing.assert_allclose(corrected - array(plain, "c"), shift, atol=1e-6)


def test_bias_of_one_element_becomes_one_of_each_channel():
    proto = model(
        "(float[N,3,6] x) => (float[N,3,4] y) { m = MatMul(x, w) y = Add(m, c) }", w=random(6, 4), c=random(1)
    )
    settings = {"weight_bits": 3, "quantize_activations": False, "first_last_bits": None}
    data = batches(proto)
    plain, corrected = (
        insert(proto, data, Config(**settings, output_correction=kind, correction_samples=12))
        for kind in ("none", "mean")
    )
    shift = np.mean([outputs(proto, b)[0] - outputs(plain, b)[0] for b in data], axis=(0, 1, 2))
    np.testing.assert_allclose(array(corrected, "c") - array(plain, "c"), shift, atol=1e-6)


def moments(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    return rows.mean(axis=0), rows.std(axis=0)


#: Layers at the end of a small net, their axis of channels, and the groups that share a scale's channels.
LAYERS = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(r, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}, 1, 1),
    "conv without bias": ("y = Conv<pads=[1,1,1,1]>(r, w)", {"w": (6, 4, 3, 3)}, 1, 1),
    "grouped conv": ("y = Conv<pads=[1,1,1,1], group=2>(r, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}, 1, 1),
    "depthwise conv": ("y = Conv<pads=[1,1,1,1], group=4>(r, w, b)", {"w": (4, 1, 3, 3), "b": (4,)}, 1, 1),
    "transposed conv": ("y = ConvTranspose(r, w, b)", {"w": (4, 5, 2, 2), "b": (5,)}, 1, 1),
    "grouped transposed conv": ("y = ConvTranspose<group=2>(r, w, b)", {"w": (4, 3, 2, 2), "b": (6,)}, 1, 2),
    "conv over one axis": ("s = ReduceMax<axes=[2], keepdims=0>(r) y = Conv(s, w, b)", {"w": (6, 4, 3), "b": (6,)}, 1, 1),
    "conv over three axes": (
        "two = Constant<value_ints=[2]>() s = Unsqueeze(r, two) y = Conv(s, w)", {"w": (6, 4, 1, 3, 3)}, 1, 1,
    ),
    "matmul": ("m = MatMul(r, w) y = Add(m, b)", {"w": (8, 7), "b": (7,)}, -1, 1),
    "product of matrices": ("f = Flatten(r) y = MatMul(f, w)", {"w": (256, 7)}, -1, 1),
    "gemm": ("f = Flatten(r) y = Gemm(f, w, b)", {"w": (256, 7), "b": (7,)}, -1, 1),
    "transposed gemm without bias": ("f = Flatten(r) y = Gemm<transB=1>(f, w)", {"w": (7, 256)}, -1, 1),
}  # fmt: skip


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("name", LAYERS)
def test_output_has_the_mean_and_the_deviation_of_the_float_model(name, granularity):
    text, shapes, axis, groups = LAYERS[name]
    proto = model(
        f"(float[N,4,8,8] x) => (float[] y) {{ r = Relu(x) {text} }}",
        **{key: random(*shape, seed=seed + 2) for seed, (key, shape) in enumerate(shapes.items())},
    )
    data = [{"x": random(24, 4, 8, 8, seed=seed, scale=1.0)} for seed in range(3)]
    settings = {"weight_bits": 2, "first_last_bits": None, "weight_granularity": granularity, "activation_bits": 3}
    plain, corrected = (
        insert(proto, data, Config(**settings, target="openvino", output_correction=kind))
        for kind in ("none", "affine")
    )
    whole, before, after = (
        np.concatenate([outputs(each, batch)[0] for batch in data]) for each in (proto, plain, corrected)
    )
    (mean, deviation), (_, worse), (found, better) = (moments(each, axis) for each in (whole, before, after))
    np.testing.assert_allclose(found, mean, atol=1e-4)
    shared = len(mean) if granularity == "per_tensor" else groups
    pooled = [np.square(each).reshape(shared, -1).mean(axis=0) for each in (deviation, worse, better)]
    np.testing.assert_allclose(pooled[2], pooled[0], rtol=1e-3)
    assert np.abs(pooled[1] / pooled[0] - 1).max() > 0.02


def test_affine_correction_leaves_the_codes_as_they_are():
    proto = INTEGER["residual"]
    data = [{name: np.concatenate([array] * 8) for name, array in batch.items()} for batch in batches(proto)]
    settings = {**LOW, "weight_granularity": "per_channel"}
    plain, corrected = (insert(proto, data, Config(**settings, output_correction=kind)) for kind in ("none", "affine"))
    changed = 0
    for quantizer, other in zip(quantizers(io.load(plain)), quantizers(io.load(corrected)), strict=True):
        if quantizer.is_weight:
            weight, scaled = (one.source.const_value.numpy() for one in (quantizer, other))
            along = [-1 if axis == quantizer.axis else 1 for axis in range(weight.ndim)]
            codes = [np.rint(w / s.scales.reshape(along)) for w, s in ((weight, quantizer), (scaled, other))]
            np.testing.assert_array_equal(*codes)
            changed += not np.array_equal(weight, scaled)
    assert changed


def test_shared_weights_keep_their_scale_and_get_the_mean():
    shared = INTEGER["shared weight"]
    data = [{name: np.concatenate([array] * 8) for name, array in batch.items()} for batch in batches(shared)]
    plain, corrected = (insert(shared, data, Config(**LOW, output_correction=kind)) for kind in ("none", "affine"))
    weights = [q for q in quantizers(io.load(corrected)) if q.is_weight]
    assert weights
    for quantizer in weights:
        np.testing.assert_array_equal(quantizer.source.const_value.numpy(), array(plain, str(quantizer.source.name)))


def test_layers_of_whose_outputs_too_little_is_known_are_named_and_left(caplog):
    proto = model("(float[N,6] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=random(6, 3), b=random(3, seed=1))
    insert(proto, batches(proto, 5), Config(weight_bits=4, first_last_bits=None, output_correction="affine"))
    assert "not corrected (fewer than 64 values of a channel; give more samples)" in caplog.text


def test_correction_says_nothing_on_the_terminal_but_what_the_log_says(capfd):
    proto = INTEGER["residual"]
    insert(proto, batches(proto), Config(**LOW, output_correction="mean"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "same_as"),
    [
        ({}, "none"),
        ({"weight_bits": 4, "first_last_bits": None}, "affine"),
        ({"overrides": [{"type": "Gemm", "weight_bits": 3}], "first_last_bits": None}, "affine"),
        ({"weight_bits": 4, "first_last_bits": None, "activation_range": {"type": "min_max", "samples": 0}}, "none"),
    ],
)
def test_outputs_are_corrected_by_default_where_there_are_few_bits(settings, same_as):
    proto = model("(float[N,6] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=random(6, 3), b=random(3, seed=1))
    data = batches(proto, 20)
    assert insert(proto, data, Config(**settings)) == insert(proto, data, Config(**settings, output_correction=same_as))


def test_correction_that_leads_away_from_the_float_model_is_taken_back(caplog):
    proto = model(
        """(float[N,16,6] x, float[N,16,1] mask) => (float[N,4] y) {
            m = MatMul(x, w) a = Add(m, b) k = Mul(a, mask) axis = Constant<value_ints=[1]>()
            y = ReduceSum<keepdims=0>(k, axis) }""",
        w=random(6, 4), b=random(4, seed=1),
    )  # fmt: skip
    data = [
        {"x": random(8, 16, 6, seed=seed, scale=1.0), "mask": np.zeros((8, 16, 1), np.float32)} for seed in range(4)
    ]
    for batch in data:
        batch["mask"][:, :2] = 1
        batch["x"][:, 2:] = random(6, seed=9, scale=3.0)  # padding
    settings = {"weight_bits": 2, "first_last_bits": None, "weight_granularity": "per_tensor"}
    plain, corrected, default = (
        insert(proto, data, Config(**settings, output_correction=kind)) for kind in ("none", "affine", None)
    )
    assert default == plain != corrected
    assert "outputs are not corrected: that would take the model's further from float" in caplog.text
    trainer = Trainer(default, "distill")
    assert trainer.step(data[0]) > 0


def test_model_that_answers_in_integers_is_corrected():
    text = "(float[N,6] x) => (int64[N] y) { h = Gemm(x, w, b) y = ArgMax<axis=1, keepdims=0>(h) }"
    proto = model(text, w=random(6, 3), b=random(3, seed=1))
    data, settings = batches(proto, 20), {"weight_bits": 3, "first_last_bits": None}
    assert insert(proto, data, Config(**settings)) == insert(
        proto, data, Config(**settings, output_correction="affine")
    )


def test_values_that_memory_has_no_room_for_lie_in_files(monkeypatch):
    proto, config = INTEGER["residual"], Config(**LOW, output_correction="affine", correction_samples=12)
    found = insert(proto, batches(proto), config)
    monkeypatch.setattr("onnxqat.insertion.calibration.parts.IN_MEMORY", 1000)
    assert insert(proto, batches(proto), config) == found


def test_data_that_can_be_read_once_is_enough():
    proto = model("(float[N,6] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=random(6, 3), b=random(3, seed=1))
    config = Config(weight_bits=4, first_last_bits=None, output_correction="affine")
    assert insert(proto, iter(batches(proto, 20)), config) == insert(proto, batches(proto, 20), config)
