import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.insertion import insert
from tests.insertion.cases import INTEGER, between, image
from tests.models import (
    FLOAT_KERNELS,
    array,
    batches,
    float_kernels,
    kernels,
    model,
    operators,
    outputs,
    quantized_by_onnxruntime,
    random,
)


def inserted(proto: onnx.ModelProto, **settings) -> onnx.ModelProto:
    return insert(proto, batches(proto), Config(**settings))


def weights_of(proto: onnx.ModelProto, names: list[str]) -> list[np.ndarray]:
    """Returns the weights as the runtime dequantizes them, as further outputs of the model."""
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    (batch,) = batches(proto, 1)
    return outputs(shown, batch)[-len(names) :]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("size", [(8, 8), (67, 64), (5, 821)], ids=["small", "packed", "packed, odd count"])
def test_dequantized_weights_are_bit_for_bit_those_of_the_trained_model(bits, symmetric, granularity, size):
    proto = model(f"(float[N,{size[0]}] x) => (float[N,{size[1]}] y) {{ y = MatMul(x, w) }}", w=random(*size))
    quantized = inserted(
        proto, weight_bits=bits, first_last_bits=None, weight_symmetric=symmetric, weight_granularity=granularity
    )
    (name,) = [q.output.name for q in qdq.quantizers(io.load(quantized)) if q.is_weight]
    folded = fold(quantized)
    onnx.checker.check_model(folded, full_check=True)
    assert np.array_equal(weights_of(folded, [name])[0], weights_of(quantized, [name])[0])


@pytest.mark.parametrize(("bits", "share"), [(8, 0.28), (4, 0.15), (3, 0.15), (2, 0.09)])
def test_file_shrinks_with_the_width(bits, share):
    proto = model("(float[N,200] x) => (float[N,300] y) { y = MatMul(x, w) }", w=random(200, 300))
    folded = fold(inserted(proto, weight_bits=bits, first_last_bits=None))
    assert folded.ByteSize() <= share * proto.ByteSize()


def test_packed_weights_run_as_integer_kernels():
    proto = model("(float[N,80] x) => (float[N,90] y) { y = Gemm(x, w, b) }", w=random(80, 90), b=random(90))
    folded = fold(inserted(proto, weight_bits=4, first_last_bits=None))
    assert "Gather" in operators(folded)
    found = kernels(folded)
    assert found["QGemm"] == 1
    assert found["Gather"] == 0


RUN = """
import json, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[1] + ".optimized"
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(json.dumps([onnxruntime.__version__, session.run(None, {"x": numpy.load(sys.argv[2])})[0].tolist()]))
"""


def stock_python() -> Path:
    default = Path(__file__).parents[2] / ".venv-runtime" / "bin" / "python"
    return Path(os.environ.get("ONNXQAT_RUNTIME_PYTHON", default))


@pytest.mark.skipif(
    not stock_python().exists(), reason="no environment with stock onnxruntime (ONNXQAT_RUNTIME_PYTHON)"
)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_deployed_model_gives_the_same_answers_in_stock_onnxruntime(tmp_path, bits):
    proto = between(
        "c = Conv<pads=[1,1,1,1]>(r, wide, b0) k = Conv(c, thin, d)",
        wide=random(120, 4, 3, 3),
        b0=random(120),
        thin=random(4, 120, 1, 1),
    )
    folded = fold(inserted(proto, weight_bits=bits, activation_bits=max(bits, 4)))
    io.save(folded, tmp_path / "m.onnx")
    (batch,) = batches(proto, 1)
    np.save(tmp_path / "x.npy", batch["x"])
    command = [str(stock_python()), "-c", RUN, str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    version, found = json.loads(done.stdout.splitlines()[-1])
    assert version != onnxruntime.__version__
    step = float(array(folded, next(n for n in folded.graph.node if n.output[0] == "y").input[1]))
    assert np.abs(np.array(found) - outputs(folded, batch)[0]).max() <= 2.01 * step


@pytest.mark.skipif(
    not stock_python().exists(), reason="no environment with stock onnxruntime (ONNXQAT_RUNTIME_PYTHON)"
)
@pytest.mark.parametrize(
    "name", ["residual", "gemm", "matmul", "depthwise with relu6", "squeeze-excite", "head", "concat"]
)
def test_every_weighted_node_runs_on_integers_in_stock_onnxruntime(tmp_path, name):
    folded = fold(inserted(INTEGER[name], weight_bits=4, activation_bits=4))
    io.save(folded, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", batches(INTEGER[name], 1)[0]["x"])
    subprocess.run([str(stock_python()), "-c", RUN, str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")], check=True)
    optimized = onnx.load(tmp_path / "m.onnx.optimized", format="protobuf", load_external_data=False)
    assert not {n.op_type for n in optimized.graph.node} & FLOAT_KERNELS


@pytest.mark.parametrize("target", ["openvino", "ort-cpu"])
@pytest.mark.parametrize("bits", [8, 4])
def test_deployed_model_gives_the_same_answers_in_openvino(tmp_path, target, bits):
    openvino = pytest.importorskip("onnxqat.verification.openvino")
    proto = between(
        "c = Conv<pads=[1,1,1,1]>(r, wide, b0) k = Conv(c, thin, d)",
        wide=random(120, 4, 3, 3),
        b0=random(120),
        thin=random(4, 120, 1, 1),
    )
    folded = fold(inserted(proto, target=target, weight_bits=bits))
    io.save(folded, tmp_path / "m.onnx")
    run = openvino.load(str(tmp_path / "m.onnx"), 2, False)
    (batch,) = batches(proto, 1)
    (found,), expected = run(batch).values(), outputs(folded, batch)[0]
    # a code that tips over at a tie moves an output by about a hundredth of the range
    assert np.abs(found - expected).max() <= 0.04 * np.abs(expected).max()


def test_biases_move_by_half_a_step_at_most():
    proto = INTEGER["gemm"]
    quantized = inserted(proto)
    folded = io.load(fold(quantized))
    stored = {q.source.name: q for q in qdq.quantizers(folded)}
    q = stored["Gemm_bias_quantized"]
    assert q.source.const_value.dtype == ir.DataType.INT32
    error = np.abs(q.source.const_value.numpy() * q.scales.astype(np.float64) - array(proto, "b"))
    assert (error <= q.scales * 0.5000001).all()


def test_bias_scale_is_that_of_data_times_weight():
    proto = between("p = MaxPool<kernel_shape=[2,2]>(r) k = Conv(p, v, d)")
    folded = io.load(fold(inserted(proto)))
    found = qdq.by_output(qdq.quantizers(folded))
    convs = [node for node in folded.graph if node.op_type == "Conv"]
    data = [q for q in found.values() if not q.is_weight]
    for conv, q in zip(convs[::2], [data[0], data[2]], strict=True):
        np.testing.assert_array_equal(found[conv.inputs[2]].scales, q.scales * found[conv.inputs[1]].scales)


def test_shared_bias_gets_a_form_of_its_own_per_node():
    folded = fold(inserted(INTEGER["shared weight"]))
    convs = [n for n in folded.graph.node if n.op_type == "Conv"]
    assert convs[0].input[2] != convs[1].input[2]
    assert float_kernels(folded) == set()


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (3, 4), ()], ids=str)
def test_gemm_bias_of_any_shape_is_folded(shape):
    proto = model("(float[3,6] x) => (float[3,4] y) { y = Gemm(x, w, b) }", w=random(6, 4), b=random(*shape))
    folded = fold(inserted(proto))
    onnx.checker.check_model(folded, full_check=True)
    (batch,) = batches(proto, 1)
    assert np.abs(outputs(folded, batch)[0] - outputs(proto, batch)[0]).max() < 0.05


def test_biases_stay_in_float_where_the_target_wants_them_so():
    folded = fold(inserted(INTEGER["conv"], target="openvino"))
    (conv,) = [n for n in folded.graph.node if n.op_type == "Conv"]
    assert np.array_equal(array(folded, conv.input[2]), array(INTEGER["conv"], "b"))


def changed(proto: onnx.ModelProto, name: str, value: float, index: int = 0) -> onnx.ModelProto:
    """The model with one element of an initializer replaced."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[index] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return proto


def test_bias_that_does_not_fit_int32_is_refused_with_node_and_channel():
    quantized = changed(inserted(INTEGER["conv"]), "b", 1e9, index=2)
    with pytest.raises(InputError, match=r"Conv 'Conv': bias 1e\+09 of channel 2 does not fit int32"):
        fold(quantized)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w", np.nan, "weight 'w': holds NaN"),
        ("w", np.inf, "weight 'w': holds NaN or infinity"),
        ("b", np.nan, "bias nan of channel 0 does not fit"),
        ("w_scale", 0.0, "scale 'w_scale' of 'w': is not a positive"),
        ("w_scale", np.nan, "scale 'w_scale'"),
        ("x_scale", -0.1, "scale 'x_scale' of 'x'"),
    ],
)
def test_values_that_training_spoiled_are_refused(name, value, message):
    with pytest.raises(InputError, match=message):
        fold(changed(inserted(INTEGER["conv"]), name, value))


def test_scale_too_small_for_its_bias_is_refused():
    quantized = inserted(INTEGER["conv"], weight_granularity="per_tensor")
    with pytest.raises(InputError, match="does not fit int32"):
        fold(changed(quantized, "w_scale", 1e-38))


def test_model_without_quantizers_is_refused():
    with pytest.raises(InputError, match="has no quantizers; run `onnxqat insert` first"):
        fold(INTEGER["conv"])


def test_model_is_not_changed():
    quantized = inserted(INTEGER["conv"])
    before = quantized.SerializeToString()
    fold(quantized)
    assert quantized.SerializeToString() == before


def test_nothing_of_the_float_weights_is_left():
    folded = fold(inserted(INTEGER["residual"], weight_bits=4))
    floats = [t for t in folded.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(t.name.endswith("_scale") for t in floats)


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
@pytest.mark.parametrize(
    "activation", ["Relu(a)", "Clip(a, lo, hi)", "Clip(a, lo)", "Clip(a, , hi)", "Clip(a, mid, hi)"]
)
@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize("scale", [0.001, 0.0235, 0.0236, 0.4])
def test_activation_carried_out_on_codes_changes_no_answer(bits, activation, scale, zero_point):
    limits = {"lo": np.float32(0), "hi": np.float32(0.7), "mid": np.float32(-0.2)}
    used = {name: limit for name, limit in limits.items() if f" {name}" in activation}
    # without biases, which folding rounds
    proto = image(f"a = Conv(x, w) r = {activation} y = Conv(r, v)", **used)
    quantized = inserted(proto, activation_bits=bits, first_last_bits=None, output_correction="none")
    quantizer = next(q for q in qdq.quantizers(io.load(quantized)) if q.scale.name in ("r_scale", "a_scale"))
    changed(quantized, str(quantizer.scale.name), scale)
    changed(quantized, str(quantizer.zero_point.name), zero_point)
    folded = fold(quantized)
    floats = {"a", "r"}
    assert not [
        n for n in folded.graph.node if n.op_type in ("Relu", "Clip") and n.input[0] in floats and n.output[0] == "r"
    ]
    (batch,) = batches(proto, 1)
    assert np.array_equal(outputs(folded, batch)[0], outputs(quantized, batch)[0])


def test_activation_behind_a_value_that_is_read_elsewhere_stays():
    proto = image("a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, d)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["N", "C", "H", "W"]))
    folded = fold(inserted(proto))
    assert [o.name for o in folded.graph.output] == ["y", "r"]


@pytest.mark.parametrize("per_channel", [False, True])
def test_model_of_another_quantizer_passes_through_unharmed(tmp_path, per_channel):
    proto = INTEGER["residual"]
    foreign = quantized_by_onnxruntime(proto, tmp_path, per_channel=per_channel)
    (batch,) = batches(proto, 1)
    assert np.array_equal(outputs(fold(foreign), batch)[0], outputs(foreign, batch)[0])


def test_folding_twice_changes_nothing_more():
    once = fold(inserted(INTEGER["residual"], weight_bits=4))
    assert fold(once).graph == once.graph


@pytest.mark.parametrize("scale", [0.02352, 0.0236, 0.03])
@pytest.mark.parametrize("bits", [8, 4])
def test_convolution_runs_on_integers_whatever_scale_training_gave_its_relu6(bits, scale):
    limits = {"lo": np.float32(0), "hi": np.float32(6)}
    proto = image("a = Conv(x, w, b) r = Clip(a, lo, hi) y = Conv(r, v, d)", **limits)
    quantized = inserted(proto, activation_bits=bits, first_last_bits=None)
    assert float_kernels(fold(changed(quantized, "r_scale", scale))) == set()


def test_equal_zero_points_are_one_initializer():
    body = "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, v) }"
    folded = fold(inserted(model(body, w=random(8, 8), v=random(8, 8, seed=1))))
    points = {n.input[2] for n in folded.graph.node if n.op_type == "QuantizeLinear"}
    values = [array(folded, name) for name in points]
    assert len({(v.dtype, int(v)) for v in values}) == len(points)
    assert len(points) < sum(n.op_type == "QuantizeLinear" for n in folded.graph.node)


@pytest.mark.parametrize("opset", [13, 20, 21])
def test_quantized_matmul_loads_in_the_runtime_from_any_opset(opset):
    proto = model(
        "(float[N,4,8] x) => (float[N,4,4] y) { q = MatMul(x, w) y = MatMul(q, q2) }",
        opset=opset,
        w=random(8, 6),
        q2=random(6, 4),
    )
    deployed = fold(inserted(proto))
    assert float_kernels(deployed) == set()
    (batch,) = batches(proto, 1)
    assert np.isfinite(outputs(deployed, batch, plain=False)[0]).all()


def test_lone_scale_may_be_written_with_an_axis():
    """ONNX Runtime fuses an Add only where scale and zero point are both scalars."""
    proto = model(
        "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) b = MatMul(a, v) y = Add(a, b) }",
        w=random(4, 4),
        v=random(4, 4),
    )
    quantized = inserted(proto)
    before = outputs(fold(quantized), batches(proto, 1)[0], plain=False)
    for tensor in quantized.graph.initializer:
        if tensor.name in ("a_scale", "b_scale"):
            tensor.dims.append(1)
    np.testing.assert_array_equal(outputs(fold(quantized), batches(proto, 1)[0], plain=False), before)
