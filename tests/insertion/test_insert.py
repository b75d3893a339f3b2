import logging
import tracemalloc

import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.config_parts import Override, Select
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.estimators.table import ESTIMATORS
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.insertion import insert
from tests.insertion.cases import ALL, CONV, INTEGER, between, image
from tests.models import array, batches, chain, float_kernels, model, operators, outputs, random

BITS = {"8": {}, "4": {"weight_bits": 4, "activation_bits": 4, "first_last_bits": None}}


def inserted(proto: onnx.ModelProto, **settings) -> onnx.ModelProto:
    return insert(proto, batches(proto), Config(**settings))


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("proto", ALL.values(), ids=ALL)
def test_inserted_and_folded_models_are_valid_and_agree(proto, target, bits):
    quantized = inserted(proto, target=target, **bits)
    onnx.checker.check_model(quantized, full_check=True)
    assert [o.name for o in quantized.graph.output] == [o.name for o in proto.graph.output]
    folded = fold(quantized)
    onnx.checker.check_model(folded, full_check=True)
    (batch,) = batches(proto, 1)
    step = max(float(q.scales.max()) for q in qdq.quantizers(io.load(quantized)) if not q.is_weight)
    # biases moved by half a step of their scale may tip a code over, which the next layers amplify
    for before, after in zip(outputs(quantized, batch), outputs(folded, batch), strict=True):
        assert np.abs(before - after).max() <= 4 * step


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("proto", INTEGER.values(), ids=INTEGER)
def test_every_weighted_node_runs_on_integers_in_onnxruntime(proto, bits):
    assert float_kernels(fold(inserted(proto, **bits))) == set()


@pytest.mark.parametrize("proto", INTEGER.values(), ids=INTEGER)
def test_eight_bits_stay_close_to_the_float_model(proto):
    (batch,) = batches(proto, 1)
    quantized = outputs(inserted(proto, activation_range="min_max"), batch)
    for before, after in zip(outputs(proto, batch), quantized, strict=True):
        assert np.abs(before - after).max() <= 0.04 * np.abs(before).max()


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("residual", "ort-cpu", "Q DQ Conv Relu Q DQ Conv Q DQ Add Relu Q DQ Conv Q DQ"),
        ("residual", "openvino", "Q DQ Conv Relu Q DQ Conv Add Relu Q DQ Conv"),
        ("leaky relu", "ort-cpu", "Q DQ Conv Q DQ LeakyRelu Q DQ Conv Q DQ"),
        ("leaky relu", "openvino", "Q DQ Conv LeakyRelu Q DQ Conv"),
        ("hard swish", "ort-cpu", "Q DQ Conv Q DQ HardSwish Q DQ Conv Q DQ"),
        ("hard swish", "openvino", "Q DQ Conv HardSwish Q DQ Conv"),
        ("swish", "ort-cpu", "Q DQ Conv Q DQ Sigmoid Q DQ Mul Q DQ Conv Q DQ"),
        ("swish", "openvino", "Q DQ Conv Sigmoid Mul Q DQ Conv"),
        ("transposed convolution", "openvino", "Q DQ Conv Relu Q DQ ConvTranspose Relu Q DQ Conv"),
        ("head by mean", "ort-cpu", "Q DQ Conv Relu Q DQ GlobalAveragePool Q DQ Reshape Gemm"),
        ("resize, nearest", "ort-cpu", "Q DQ Conv Relu Q DQ Resize Q DQ Conv Q DQ"),
        ("transpose", "ort-cpu", "Q DQ Conv Relu Q DQ Transpose Conv Q DQ"),
    ],
)
def test_quantizers_stand_where_the_target_fuses_them(name, target, expected):
    assert " ".join(chain(inserted(ALL[name], target=target))) == expected


def test_concat_has_scales_of_its_own_on_onnxruntime():
    found = [q for q in qdq.quantizers(io.load(inserted(INTEGER["concat"]))) if not q.is_weight]
    assert len({q.scale.name for q in found}) == len(found)


def test_concat_has_one_scale_on_openvino():
    quantized = io.load(inserted(INTEGER["concat"], target="openvino"))
    (concat,) = [node for node in quantized.graph if node.op_type == "Concat"]
    produced = qdq.by_output(qdq.quantizers(quantized))
    assert len({produced[value].scale.name for value in concat.inputs}) == 1


def test_concat_that_feeds_no_weight_stays_alone_on_openvino():
    proto = image("a = Conv(x, w, b) c = Conv(x, w, b) y = Concat<axis=1>(a, c)")
    assert chain(inserted(proto, target="openvino")) == ["Q", "DQ", "Conv", "Conv", "Concat"]


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_have_the_width_that_was_asked_for(bits):
    quantized = inserted(between("k = Conv(r, v, d)"), weight_bits=bits, activation_bits=bits, first_last_bits=None)
    found = qdq.quantizers(io.load(quantized))
    widths = {kind: {q.bits for q in found if q.is_weight is kind} for kind in (True, False)}
    # the output is read by no layer
    assert widths == {True: {bits}, False: {bits, 8}}


def test_first_and_last_layers_keep_eight_bits():
    quantized = inserted(named(), weight_bits=3, activation_bits=5)
    found = qdq.quantizers(io.load(quantized))
    assert [q.bits for q in found if q.is_weight] == [8, 3, 8]
    assert [q.bits for q in found if not q.is_weight] == [8, 5, 8, 8]


def test_value_for_a_narrow_layer_and_a_wide_one_is_narrowed_behind_its_first_quantizer():
    quantized = inserted(INTEGER["residual"], activation_bits=4, first_last_bits=None)
    assert " ".join(chain(quantized)).startswith("Q Clip DQ Conv Relu Q DQ Q Clip DQ Conv Q DQ Add Relu")
    (add,) = [n for n in quantized.graph.node if n.op_type == "Add"]
    found = {q.output.name: q.bits for q in qdq.quantizers(io.load(quantized))}
    assert [found[name] for name in add.input] == [8, 8]


@pytest.mark.parametrize("move", ["Flatten", "Transpose<perm=[0,1,3,2]>", "Tile"])
def test_value_is_narrowed_behind_data_movement_too(move):
    tail = {"Flatten": "f = Flatten(r)", "Tile": "f = Tile(r, times)"}.get(move, f"f = {move}(r)")
    proto = between(
        f"{tail} s = Add(f, f) t = Reshape(s, shape) k0 = Conv(t, v, d) g = Reshape(f, shape) k1 = Conv(g, v, d) k = Add(k0, k1)",
        shape=np.array([-1, 4, 8, 8]),
        times=np.array([1, 1, 1, 1]),
    )
    quantized = inserted(proto, activation_bits=4, first_last_bits=None)
    assert float_kernels(fold(quantized)) == set()
    found = qdq.quantizers(io.load(quantized))
    assert all(q.output.uses() or q.output.is_graph_output() for q in found)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weights_are_quantized_as_asked(symmetric, granularity):
    quantized = inserted(INTEGER["conv"], weight_symmetric=symmetric, weight_granularity=granularity)
    (weight,) = [q for q in qdq.quantizers(io.load(quantized)) if q.is_weight]
    assert weight.scales.shape == ((4,) if granularity == "per_channel" else ())
    assert bool((weight.zero_points == 0).all()) is symmetric


@pytest.mark.parametrize(("name", "axis"), [("conv", 0), ("matmul", 1), ("transposed convolution", 1)])
def test_weight_scale_is_per_output_channel(name, axis):
    quantized = qdq.quantizers(io.load(inserted(ALL[name], target="openvino")))
    assert axis in {q.axis for q in quantized if q.is_weight}


def test_weight_that_nodes_read_along_different_axes_gets_one_scale():
    proto = model(
        "(float[N,6] x) => (float[N,6] y) { a = Gemm<transB=1>(x, w) r = Relu(a) y = Gemm(r, w) }", w=random(6, 6)
    )
    (weight,) = [q for q in qdq.quantizers(io.load(inserted(proto))) if q.is_weight]
    assert weight.axis is None


def test_node_that_stays_in_float_keeps_a_shared_weight_in_float():
    proto = INTEGER["shared weight"]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    quantized = inserted(proto, ignore=(Select(name="n2"),))
    (ignored,) = [n for n in quantized.graph.node if n.name == "n2"]
    assert ignored.input[1] == "w"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_gives_a_working_model(estimator):
    proto = INTEGER["residual"]
    quantized = inserted(proto, weight_range=estimator, activation_range=estimator, percentile=99.9)
    (batch,) = batches(proto, 1)
    error = np.abs(outputs(quantized, batch)[0] - outputs(proto, batch)[0])
    assert error.mean() < 0.05 * np.abs(outputs(proto, batch)[0]).max()


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize(
    "name",
    ["residual", "concat", "flatten", "gather", "gemm", "matmul of rank 3", "squeeze-excite", "leaky relu", "swish"],
)
def test_activations_may_have_a_scale_per_channel(name, target):
    proto = INTEGER[name]
    quantized = inserted(proto, target=target, activation_granularity="per_channel")
    onnx.checker.check_model(quantized, full_check=True)
    (batch,) = batches(proto, 1)
    error = np.abs(outputs(fold(quantized), batch)[0] - outputs(proto, batch)[0]).max()
    assert error <= 0.05 * np.abs(outputs(proto, batch)[0]).max()


def test_symmetric_activations_have_their_zero_in_the_middle_on_onnxruntime():
    found = qdq.quantizers(io.load(inserted(between("k = Conv(r, v, d)"), activation_symmetric=True)))
    assert [(int(q.zero_points), q.qmin) for q in found if not q.is_weight] == [(128, 0), (0, 0), (128, 0), (128, 0)]


def named() -> onnx.ModelProto:
    proto = onnx.ModelProto.FromString(
        between("t = Conv(r, mw, d) k = Relu(t)", mw=random(4, 4, 1, 1, seed=9)).SerializeToString()
    )
    for name, node in zip(["stem", "r0", "middle", "r1", "head"], proto.graph.node, strict=True):
        node.name = name
    return proto


@pytest.mark.parametrize("rule", [{"name": "middle"}, {"pattern": "^mid"}], ids=["name", "pattern"])
def test_override_changes_the_layers_that_it_selects(rule):
    quantized = inserted(
        named(), overrides=(Override(**rule, weight_bits=4, activation_bits=4, weight_symmetric=False),)
    )
    found = qdq.quantizers(io.load(quantized))
    assert [q.bits for q in found if q.is_weight] == [8, 4, 8]
    assert [q.bits for q in found if not q.is_weight] == [8, 4, 8, 8]


def test_override_wins_over_the_exception_for_first_and_last_layers():
    quantized = inserted(named(), weight_bits=4, overrides=(Override(type="Conv", weight_bits=3),))
    assert {q.bits for q in qdq.quantizers(io.load(quantized)) if q.is_weight} == {3}


@pytest.mark.parametrize("rule", [{"name": "middle"}, {"pattern": "iddl"}], ids=["name", "pattern"])
def test_ignored_node_stays_in_float_and_says_so(rule):
    quantized = inserted(named(), ignore=(Select(**rule),))
    (middle,) = [n for n in quantized.graph.node if n.name == "middle"]
    assert middle.input[1] == "mw"
    assert {p.key: p.value for p in middle.metadata_props}["onnxqat.float"] == "ignored by the configuration"


def test_operator_type_that_preparation_rewrites_can_still_be_ignored():
    proto = model(
        "(float[N,8] x) => (float[N,4] y) { m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = Gemm(r, v) }",
        w=random(8, 6),
        b=random(6),
        v=random(6, 4),
    )
    quantized = inserted(proto, ignore=(Select(type="MatMul"),))
    assert len([q for q in qdq.quantizers(io.load(quantized)) if q.is_weight]) == 1


@pytest.mark.parametrize("where", ["ignore", "overrides"])
def test_rule_that_selects_nothing_is_refused(where):
    rule = {"ignore": Select(name="tail"), "overrides": Override(pattern="tail", weight_bits=4)}[where]
    with pytest.raises(InputError, match="'tail' matches no node"):
        inserted(named(), **{where: (rule,)})


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"), "no Conv, Gemm, MatMul"),
        (
            model("(float[N,3] x, float[3,2] w) => (float[N,2] y) { y = Gemm(x, w) }"),
            "weight 'w' is computed at run time",
        ),
        (
            model("(double[N,3] x) => (double[N,2] y) { y = MatMul(x, w) }", w=random(3, 2).astype(np.float64)),
            "data 'x' is not float32.*give a float32 model",
        ),
    ],
    ids=["no weights", "computed", "float64"],
)
def test_model_without_weights_to_quantize_is_refused_with_the_reason(proto, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        insert(proto, [{}])
    assert "\n" not in str(caught.value)


def test_everything_ignored_is_refused_in_a_short_message():
    proto = image("a = Conv(x, v, d) b1 = Conv(a, v, d) c = Conv(b1, v, d) e = Conv(c, v, d) y = Conv(e, v, d)")
    with pytest.raises(UnsupportedModelError, match="ignored by the configuration; and 2 more"):
        inserted(proto, ignore=(Select(type="Conv"),))


def test_quantized_model_is_refused():
    quantized = inserted(INTEGER["conv"])
    with pytest.raises(InputError, match="quantized already"):
        insert(quantized, batches(INTEGER["conv"]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batches came"),
        ([{"z": random(1, 4, 8, 8)}], "holds 'z', the model takes 'x'"),
        ([random(1, 3, 8, 8)], "shape"),
        ([random(1, 4, 8, 8) * np.float32(np.nan)], "NaN"),
        ("none.npz", "no such file"),
    ],
    ids=["empty", "name", "shape", "NaN", "file"],
)
def test_calibration_data_that_does_not_fit_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        insert(INTEGER["conv"], data)


def test_value_that_overflows_in_calibration_is_named():
    proto = image("a = Conv(x, big, b) r = Relu(a) y = Conv(r, v, d)", big=np.full((4, 4, 3, 3), 3e38, np.float32))
    with pytest.raises(InputError, match=r"is (NaN|infinite) on batch 0"):
        inserted(proto)


def test_model_is_not_changed():
    proto = INTEGER["batch normalization"]
    before = proto.SerializeToString()
    inserted(proto)
    assert proto.SerializeToString() == before


def test_values_and_nodes_that_have_the_names_of_quantizers_are_left_alone():
    proto = image("a_scale = Conv(x, w, b) r_zero_point = Relu(a_scale) y = Conv(r_zero_point, v, d)")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "r_zero_point_scale"
    onnx.checker.check_model(inserted(proto), full_check=True)


def test_weights_that_are_listed_as_inputs_are_constants():
    proto = onnx.ModelProto.FromString(INTEGER["conv"].SerializeToString())
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 3, 3]))
    assert float_kernels(fold(insert(proto, batches(INTEGER["conv"])))) == set()


def test_calibration_memory_does_not_grow_with_the_number_of_batches():
    def peak(count: int) -> int:
        tracemalloc.start()
        insert(INTEGER["residual"], (random(8, 4, 8, 8, seed=n) for n in range(count)))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    # the other 190 batches are 1.5 MB; when the garbage of a run is collected makes some 60 kB
    assert peak(200) < peak(10) + 300_000


def test_reason_why_a_node_stays_in_float_is_in_the_model():
    quantized = inserted(INTEGER["relu before batch normalization"])
    reasons = {n.op_type: p.value for n in quantized.graph.node for p in n.metadata_props if p.key == "onnxqat.float"}
    assert "constant" in reasons["Mul"]


def test_bias_behind_a_matmul_is_not_reported_as_float():
    quantized = inserted(INTEGER["matmul of rank 3"])
    assert not [n.name for n in quantized.graph.node for p in n.metadata_props if p.key == "onnxqat.float"]


def test_one_info_line_says_what_was_inserted(caplog):
    with caplog.at_level(logging.INFO, "onnxqat.insertion"):
        inserted(INTEGER["conv"])
    assert "inserted 1 weight and 2 activation quantizers" in caplog.text


def test_weights_stay_as_they_were():
    assert np.array_equal(array(inserted(INTEGER["conv"]), "w"), CONV["w"])
    assert operators(inserted(INTEGER["conv"]))["DequantizeLinear"] == 3
