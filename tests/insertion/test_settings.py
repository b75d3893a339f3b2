import numpy as np
import onnx
import pytest

from onnxqat import Trainer
from onnxqat.config import Config
from onnxqat.config_parts import Override, Range, Select
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.graph.constants import constant
from onnxqat.insertion import insert
from tests.insertion.cases import INTEGER
from tests.models import array, batches, chain, model, random


def net(**changes: np.ndarray) -> onnx.ModelProto:
    """stem → relu → body (shared weight with twin) and twin → add → head."""
    weights = {
        "w": random(4, 3, 3, 3, seed=1), "v": random(4, 4, 3, 3, seed=2), "u": random(2, 4, 1, 1, seed=3),
        "b": random(4, seed=4), "c": random(2, seed=5),
    }  # fmt: skip
    return model(
        """(float[N,3,8,8] x) => (float[N,2,8,8] y) {
        [stem] a = Conv<pads=[1,1,1,1]>(x, w, b)
        [relu] r = Relu(a)
        [body] k = Conv<pads=[1,1,1,1]>(r, v, b)
        [twin] t = Conv<pads=[1,1,1,1]>(k, v)
        [sum] s = Add(r, t)
        [head] y = Conv(s, u, c) }""",
        **{**weights, **changes},
    )


def quantized(**settings):
    proto = net()
    return insert(proto, batches(proto), Config(**{"target": "openvino", **settings}))


def found(proto: onnx.ModelProto) -> dict[str, qdq.Quantizer]:
    """Quantizers by what they quantize."""
    return {str(q.source.name): q for q in qdq.quantizers(io.load(proto))}


def test_selected_nodes_alone_are_quantized():
    assert set(found(quantized(only=[Select(name="body")]))) == {"r", "v"}


def test_ignored_nodes_stay_in_float_even_where_selected():
    settings = {"only": [Select(type="Conv")], "ignore": [Select(name="head")]}
    assert set(found(quantized(**settings))) == {"x", "r", "k", "w", "v"}


def test_activation_behind_a_selected_node_still_vanishes_in_it():
    proto = insert(net(), batches(net()), Config(only=[Select(name="stem"), Select(name="body")]))
    assert " ".join(chain(proto)).startswith("Q DQ Conv Relu Q DQ Conv Q DQ")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantize_weights": False}, {"x", "r", "k", "s", "t"}),
        ({"quantize_activations": False}, {"w", "v", "u"}),
        ({"overrides": [Override(name="head", quantize_weights=False)]}, {"x", "r", "k", "s", "w", "v"}),
        ({"overrides": [Override(name="head", quantize_activations=False)]}, {"x", "r", "k", "w", "v", "u"}),
        ({"overrides": [Override(name="sum", quantize_activations=False)]}, {"x", "r", "k", "s", "w", "v", "u"}),
        (
            {"quantize_weights": False, "overrides": [Override(pattern="stem|head", quantize_weights=True)]},
            {"x", "r", "k", "s", "t", "w", "u"},
        ),
        ({"quantize_inputs": False}, {"r", "k", "s", "w", "v", "u"}),
        ({"quantize_outputs": True}, {"x", "r", "k", "s", "y_unquantized", "w", "v", "u"}),
    ],
    ids=[
        "no weights",
        "no activations",
        "not that weight",
        "not what it reads",
        "not the sum",
        "those weights only",
        "no inputs",
        "outputs too",
    ],
)
def test_weights_activations_inputs_and_outputs_are_quantized_as_asked(settings, expected):
    assert set(found(quantized(**settings))) == expected


@pytest.mark.parametrize(
    "settings", [{"quantize_weights": False}, {"quantize_activations": False}, {"quantize_inputs": False}]
)
@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_what_is_left_in_float_folds_all_the_same(target, settings):
    proto = net()
    onnx.checker.check_model(fold(insert(proto, batches(proto), Config(target=target, **settings))), full_check=True)


def test_kernel_without_weight_that_reads_an_input_left_in_float_stays_float():
    proto = model(
        "(float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, w) [sum] y = Add(x, a) }", w=random(3, 3, 1, 1)
    )
    quantized = insert(proto, batches(proto), Config(quantize_inputs=False))
    (add,) = [node for node in io.load(quantized).graph if node.op_type == "Add"]
    assert add.metadata_props["onnxqat.float"] == "the configuration leaves what it reads in float"


@pytest.mark.parametrize(("name", "changed"), [("head", {"s"}), ("twin", {"k"})])
def test_setting_of_an_activation_holds_for_what_the_node_reads(name, changed):
    rule = Override(name=name, activation_symmetric=False)
    points = {name: int(q.zero_points) for name, q in found(quantized(overrides=[rule])).items() if not q.is_weight}
    # r has no negative numbers, so that its zero point is 0 either way
    assert {name for name, point in points.items() if point != 0} == changed


def test_setting_of_a_relu_holds_for_what_it_computes():
    signed = found(quantized(overrides=[Override(name="relu", activation_signed=True)]))
    assert signed["r"].qmin == -128
    assert found(quantized())["r"].qmin == 0


def test_signed_codes_without_a_fixed_zero_point_are_refused():
    with pytest.raises(InputError, match="activation_signed is set for 'stem', whose zero point is fitted"):
        quantized(activation_symmetric=False, overrides=[Override(name="stem", activation_signed=True)])


def test_activation_of_a_single_layer_may_have_a_scale_per_channel():
    quantizers = found(quantized(overrides=[Override(name="twin", activation_granularity="per_channel")]))
    assert quantizers["k"].axis == 1
    assert all(q.axis is None for name, q in quantizers.items() if name in "xrst")


def test_range_of_a_single_layer_is_found_its_own_way():
    growing = [{"x": (n + 1) * batch["x"]} for n, batch in enumerate(batches(net()))]
    rule = Override(name="head", weight_range="percentile", activation_range=Range(type="min_max", samples=4))
    plain = {"target": "openvino", "activation_range": "min_max", "overflow_fix": "disable"}
    quantizers = found(insert(net(), growing, Config(**plain, percentile=90.0, overrides=[rule])))
    tops = np.abs(np.percentile(array(net(), "u").reshape(2, -1), [10, 90], axis=1)).max(axis=0)
    np.testing.assert_allclose(quantizers["u"].scales, tops / 127, rtol=1e-6)
    first, whole = (found(insert(net(), growing[:count], Config(**plain))) for count in (1, 3))
    assert quantizers["s"].scales == first["s"].scales < whole["s"].scales
    assert quantizers["k"].scales == whole["k"].scales


def test_excluded_nodes_keep_the_settings_of_the_whole():
    rule = Override(type="Conv", exclude=[Select(name="body"), Select(pattern="^h")], weight_bits=5)
    assert {name: q.bits for name, q in found(quantized(overrides=[rule])).items() if q.is_weight} == {
        "w": 5,
        "v": 8,
        "u": 8,
    }


def test_named_nodes_read_with_one_scale():
    quantizers = found(quantized(unified_scales=[[Select(name="stem"), Select(name="twin")]]))
    assert quantizers["x"].scale is quantizers["k"].scale
    assert quantizers["x"].scale is not quantizers["r"].scale


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["relu", "twin"]], "name 'relu' reads nothing as integers"),
        ([["stem", "twin"], ["twin", "head"]], "node 'twin' is in two groups"),
        ([["nothing"]], "name 'nothing' matches no node"),
    ],
)
def test_groups_for_one_scale_must_hold_quantized_nodes_once(groups, message):
    with pytest.raises(InputError, match=message):
        quantized(unified_scales=[[Select(name=name) for name in group] for group in groups])


@pytest.mark.parametrize(
    "settings", [{"only": [Select(name="no")]}, {"overrides": [Override(type="Conv", exclude=[Select(name="no")])]}]
)
def test_rule_that_matches_no_node_is_refused(settings):
    with pytest.raises(InputError, match="the rule for name 'no' matches no node"):
        quantized(**settings)


def codes(deployed: onnx.ModelProto) -> dict[str, np.ndarray]:
    stored = [q for q in qdq.quantizers(io.load(deployed)) if q.is_weight and q.qmin >= -128]
    return {str(q.source.name).removesuffix("_quantized"): constant(q.source) for q in stored}


@pytest.mark.parametrize(
    ("mode", "narrow"), [("enable", {"w", "v", "u"}), ("disable", set()), ("first_layer_only", {"w"})]
)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_codes_that_must_not_overflow_never_leave_seven_bits(target, symmetric, mode, narrow):
    proto = net()
    inserted = insert(proto, batches(proto), Config(target=target, overflow_fix=mode, weight_symmetric=symmetric))
    before = codes(fold(inserted))
    trainer = Trainer(inserted, loss="mse")
    trainer.optimizer.__dict__["lr"] = 0.05
    labels = {"label": random(4, 2, 8, 8, seed=9, scale=30.0)}
    for batch in batches(proto, 20):
        trainer.step(batch | labels)
    after = codes(fold(trainer.model()))
    assert any(not np.array_equal(before[name], after[name]) for name in after)
    for stage in (before, after):
        assert {name for name, held in stage.items() if held.min() >= -64 and held.max() <= 63} == narrow


def test_weight_shared_with_the_first_layer_has_seven_bits_for_all():
    proto = model(
        "(float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, w) }", w=random(4, 4, 1, 1)
    )
    (weight,) = [
        q
        for q in qdq.quantizers(io.load(insert(proto, batches(proto), Config(overflow_fix="first_layer_only"))))
        if q.is_weight
    ]
    assert (weight.qmin, weight.qmax) == (-64, 63)


def test_first_layers_are_those_that_an_input_reaches_first():
    proto = INTEGER["residual"]
    narrow = insert(proto, batches(proto), Config(overflow_fix="first_layer_only"))
    widths = [q.bits for q in qdq.quantizers(io.load(narrow)) if q.is_weight]
    assert widths.count(7) == 1


def test_narrower_weights_are_as_narrow_as_asked_for_whether_they_could_overflow_or_not():
    quantizers = found(quantized(weight_bits=4, first_last_bits=None, overflow_fix="enable"))
    assert {q.bits for q in quantizers.values() if q.is_weight} == {4}
