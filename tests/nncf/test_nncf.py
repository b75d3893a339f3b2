"""Every key of a legacy NNCF configuration: what it becomes, what it does to a model, and how a wrong one is refused."""

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxqat import Config, InputError, Override, Select, insert
from onnxqat.config_parts import Input, Range
from onnxqat.graph import io, qdq
from onnxqat.nncf.schema import Root, keys
from onnxqat.nncf.unhonoured import REFUSED
from tests.insertion.test_settings import found, net
from tests.models import array, batches


def config(root: dict[str, Any] | None = None, **algorithm: Any) -> Config:
    return Config.from_nncf({"compression": {"algorithm": "quantization", **algorithm}, **(root or {})})


def quantized(root: dict[str, Any] | None = None, **algorithm: Any) -> dict[str, qdq.Quantizer]:
    return found(insert(net(), batches(net()), config(root, **algorithm)))


def test_shortest_configuration_means_what_it_means_in_nncf():
    ranges = Range(type="mixed_min_max", min_percentile=0.1, max_percentile=99.9, samples=256)
    assert config() == Config(
        target="openvino",
        first_last_bits=None,
        activation_symmetric=True,
        weight_range=ranges,
        activation_range=ranges,
        overflow_fix="enable",
        output_correction="mean",
        correction_samples=2000,
    )


def changes(root: dict[str, Any] | None = None, **algorithm: Any) -> dict[str, Any]:
    """The fields that differ from those of the shortest configuration."""
    plain, given = config(), config(root, **algorithm)
    return {name: value for name, value in given if value != getattr(plain, name)}


def ranges(**settings: Any) -> Range:
    return Range(**{"type": "mixed_min_max", "min_percentile": 0.1, "max_percentile": 99.9, "samples": 256, **settings})


PERCENTILE = {"type": "percentile", "num_init_samples": 9, "params": {"min_percentile": 0.5, "max_percentile": 98}}
OURS = ranges(type="percentile", min_percentile=0.5, max_percentile=98.0, samples=9)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ({"preset": "performance"}, {}),
        ({"preset": "mixed"}, {"activation_symmetric": False}),
        ({"preset": "mixed", "activations": {"mode": "symmetric"}}, {}),
        ({"weights": {"mode": "asymmetric"}}, {"weight_symmetric": False}),
        ({"weights": {"bits": 4}}, {"weight_bits": 4, "output_correction": "affine"}),
        ({"weights": {"per_channel": False}}, {"weight_granularity": "per_tensor"}),
        ({"weights": {"signed": True, "logarithm_scale": True}}, {}),
        ({"activations": {"mode": "asymmetric"}}, {"activation_symmetric": False}),
        ({"activations": {"bits": 4}}, {"activation_bits": 4, "output_correction": "affine"}),
        ({"activations": {"per_channel": True}}, {"activation_granularity": "per_channel"}),
        ({"activations": {"signed": True}}, {"activation_signed": True}),
        (
            {"activations": {"unified_scale_ops": [["a", "{re}b"]]}},
            {"unified_scales": ((Select(scope="a"), Select(pattern="b")),)},
        ),
        ({"ignored_scopes": "a"}, {"ignore": (Select(scope="a"),)}),
        ({"ignored_scopes": ["a", "{re}^b"]}, {"ignore": (Select(scope="a"), Select(pattern="^b"))}),
        ({"target_scopes": ["{re}b"]}, {"only": (Select(pattern="b"),)}),
        ({"weights": {"ignored_scopes": ["a"]}}, {"overrides": (Override(scope="a", quantize_weights=False),)}),
        ({"activations": {"ignored_scopes": ["a"]}}, {"overrides": (Override(scope="a", quantize_activations=False),)}),
        (
            {"weights": {"target_scopes": ["a"]}},
            {"quantize_weights": False, "overrides": (Override(scope="a", quantize_weights=True),)},
        ),
        (
            {"target_scopes": "g", "activations": {"target_scopes": ["a"]}},
            {
                "quantize_weights": False,
                "quantize_activations": False,
                "overrides": (Override(scope="g", quantize_weights=True), Override(scope="a", quantize_activations=True)),
            },
        ),
        ({"quantize_inputs": False}, {"quantize_inputs": False}),
        ({"quantize_outputs": True}, {"quantize_outputs": True}),
        ({"overflow_fix": "disable"}, {"overflow_fix": "disable"}),
        ({"overflow_fix": "first_layer_only"}, {"overflow_fix": "first_layer_only"}),
        ({"export_to_onnx_standard_ops": True}, {}),
        (
            {"initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}},
            {"output_correction": "none", "correction_samples": 512},
        ),
        ({"initializer": {"range": PERCENTILE}}, {"weight_range": OURS, "activation_range": OURS}),
        (
            {"initializer": {"range": [{**PERCENTILE, "target_scopes": ["a", "{re}b"], "target_quantizer_group": "weights"}]}},
            {"overrides": (Override(scope="a", weight_range=OURS), Override(pattern="b", weight_range=OURS))},
        ),
        (
            {"initializer": {"range": [{"type": "min_max", "ignored_scopes": "a"}]}},
            {
                "overrides": (
                    Override(
                        pattern="",
                        exclude=[Select(scope="a")],
                        weight_range=ranges(type="min_max"),
                        activation_range=ranges(type="min_max"),
                    ),
                )
            },
        ),
        (
            {"scope_overrides": {"weights": {"a": {"mode": "asymmetric", "bits": 5, "per_channel": False, "signed": True}}}},
            {"overrides": (Override(scope="a", weight_symmetric=False, weight_bits=5, weight_granularity="per_tensor"),)},
        ),
        (
            {"scope_overrides": {"activations": {"{re}a": {"signed": True, "initializer": {"range": PERCENTILE}}}}},
            {"overrides": (Override(pattern="a", activation_signed=True, activation_range=OURS),)},
        ),
        ({"params": {"activations_quant_start_epoch": 3}}, {"activation_start_epoch": 3, "weight_start_epoch": 1}),
        ({"params": {"activations_quant_start_epoch": 0, "weights_quant_start_epoch": 2}}, {"weight_start_epoch": 2}),
        ({"params": {}}, {}),
    ],
)  # fmt: skip
def test_key_becomes_the_setting_that_does_the_same(algorithm, expected):
    assert changes(None, **algorithm) == expected


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ({"target_device": "CPU"}, {}),
        ({"target_device": "CPU_SPR"}, {"overflow_fix": "disable"}),
        ({"target_device": "TRIAL"}, {"overflow_fix": "disable", "weight_granularity": "per_tensor"}),
        ({"input_info": {"sample_size": [1, 3]}}, {"inputs": (Input(shape=(1, 3)),)}),
        (
            {"input_info": [{"sample_size": [2, 3], "type": "long", "filler": "zeros", "keyword": "x"}]},
            {"inputs": (Input(name="x", shape=(2, 3), dtype="int64", filler="zeros"),)},
        ),
    ],
)
def test_key_of_the_whole_file_becomes_the_setting_that_does_the_same(root, expected):
    assert changes(root) == expected


def test_algorithm_may_stand_in_a_list():
    assert Config.from_nncf({"compression": [{"algorithm": "quantization"}]}) == config()


def test_file_may_hold_comments(tmp_path):
    path = tmp_path / "nncf.json"
    path.write_text(
        '{\n  // of the classifier\n  "compression": {"algorithm": "quantization", /* both */ "preset": "mixed",},\n}'
    )
    assert Config.from_nncf(path) == Config.from_nncf(str(path)) == config(preset="mixed")


@pytest.mark.parametrize(
    ("algorithm", "test"),
    [
        ({}, lambda q: q["x"].zero_points == 0 and (q["v"].qmin, q["v"].qmax) == (-64, 63)),
        ({"preset": "mixed"}, lambda q: q["x"].zero_points != 0),
        ({"overflow_fix": "disable"}, lambda q: (q["v"].qmin, q["v"].qmax) == (-127, 127)),
        ({"overflow_fix": "first_layer_only"}, lambda q: [q[n].qmin for n in "wvu"] == [-64, -127, -127]),
        ({"weights": {"bits": 4}}, lambda q: {q[n].bits for n in "wvu"} == {4}),
        ({"weights": {"per_channel": False}}, lambda q: q["v"].axis is None),
        ({"weights": {"target_scopes": "head", "ignored_scopes": []}}, lambda q: {"w", "v", "u"} & set(q) == {"u"}),
        ({"activations": {"ignored_scopes": "{re}^st"}}, lambda q: "x" not in q and "w" in q),
        ({"activations": {"unified_scale_ops": [["stem", "twin"]]}}, lambda q: q["x"].scale is q["k"].scale),
        ({"ignored_scopes": ["{re}body|twin"]}, lambda q: "v" not in q and "k" not in q),
        ({"target_scopes": ["body"]}, lambda q: set(q) == {"r", "v"}),
        ({"quantize_inputs": False}, lambda q: "x" not in q),
        ({"quantize_outputs": True}, lambda q: "y_unquantized" in q),
        ({"scope_overrides": {"activations": {"twin": {"mode": "asymmetric"}}}}, lambda q: q["k"].zero_points != 0),
        (
            {"scope_overrides": {"weights": {"{re}hea": {"mode": "asymmetric"}}}},
            lambda q: np.any(q["u"].zero_points != 0),
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_key_changes_the_model_as_it_says(algorithm, test):
    assert test(quantized(None, **algorithm))


def test_ranges_are_those_of_the_estimator_that_is_named():
    data = np.concatenate([batch["x"] for batch in batches(net())]).reshape(12, -1)

    def step(x: np.ndarray) -> float:
        return max(x.max() / 127, -x.min() / 128)

    whole = {"initializer": {"range": {"type": "min_max"}}}
    assert quantized(None, **whole)["x"].scales == pytest.approx(step(data))
    assert quantized()["x"].scales == pytest.approx(np.abs(data).max(axis=1).mean() / 127)
    few = {"initializer": {"range": {"type": "min_max", "num_init_samples": 4}}}
    assert quantized(None, **few)["x"].scales == pytest.approx(step(data[:4]))
    scoped = {"type": "min_max", "target_scopes": "stem", "target_quantizer_group": "activations"}
    assert quantized(None, initializer={"range": [scoped]})["x"].scales == quantized(None, **whole)["x"].scales


def test_biases_are_corrected_in_place_of_batch_normalization():
    none = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    plain, corrected = (
        insert(net(), batches(net()), config(weights={"bits": 3}, **more)) for more in ({"initializer": none}, {})
    )
    assert np.array_equal(array(plain, "c"), array(net(), "c"))
    assert not np.array_equal(array(corrected, "c"), array(net(), "c"))


def test_input_info_is_checked_against_the_model():
    info = {"input_info": {"sample_size": [1, 3, 8, 9]}}
    with pytest.raises(InputError, match=r"inputs: 'x' has shape \[1, 3, 8, 9\], the model takes \[any, 3, 8, 8\]"):
        quantized(info)


def test_start_epochs_are_left_in_the_model():
    proto = insert(net(), batches(net()), config(params={"activations_quant_start_epoch": 2}))
    held = io.load(proto).metadata_props
    assert (held["onnxqat.activation_start_epoch"], held["onnxqat.weight_start_epoch"]) == ("2", "1")


@pytest.mark.parametrize(
    ("root", "algorithm", "message"),
    [
        ({"target_devise": "CPU"}, {}, "target_devise: no such key, but there is 'target_device'; check its spelling"),
        ({}, {"weight": {}}, "compression.weight: no such key"),
        ({}, {"mode": "symmetric"}, "compression.mode: no such key"),
        ({}, {"preset": "accuracy"}, "compression.preset: .*'performance' or 'mixed' .is 'accuracy'"),
        ({}, {"algorithm": "filter_pruning"}, "compression: algorithm 'filter_pruning' is not honoured"),
        ({}, {"weights": {"bits": 1}}, "weights.bits: .*greater than or equal to 2 .is 1"),
        ({}, {"weights": {"bits": "8"}}, "weights.bits: .*valid integer .is '8'"),
        ({}, {"weights": {"signed": False}}, "compression.weights.signed: is false"),
        ({}, {"weights": {"logarithm_scale": False}}, "weights.logarithm_scale: is false, which is not honoured"),
        ({}, {"export_to_onnx_standard_ops": False}, "export_to_onnx_standard_ops: is false, which is not honoured"),
        ({}, {"initializer": {"range": {"type": "max"}}}, "initializer.range.type: .*'mixed_min_max'.* .is 'max'"),
        (
            {},
            {"initializer": {"range": {"num_init_samples": -1}}},
            "range.num_init_samples: .*greater than or equal to 0",
        ),
        ({}, {"initializer": {"range": {"type": "min_max", "params": {"max_percentile": 99}}}}, "takes no percentiles"),
        ({}, {"initializer": {"range": [{"type": "min_max"}]}}, "range.0: .*give target_scopes or ignored_scopes"),
        ({}, {"initializer": {"range": {"target_scopes": "a"}}}, "range.target_scopes: no such key"),
        ({}, {"params": {"weights_quant_start_epoch": -1}}, "weights_quant_start_epoch: .*greater than or equal to 0"),
        ({}, {"scope_overrides": {"weights": {"a": {"signed": False}}}}, "scope_overrides.weights.a.signed: is false"),
        ({}, {"ignored_scopes": ["{re}("]}, "pattern '\\(' is not a regular expression"),
        ({}, {"ignored_scopes": [r"{re}Block\[2\]/("]}, "scope '{re}Block.*is not a regular expression"),
        ({"target_device": "TPU"}, {}, "target_device: .*'ANY', 'CPU'"),
        ({"target_device": "TRIAL"}, {"overflow_fix": "enable"}, "overflow_fix: 'enable' has no effect on .*'TRIAL'"),
        ({"input_info": {}}, {}, "input_info.0.sample_size: Field required"),
        ({"input_info": {"sample_size": [1], "type": "half"}}, {}, "input_info.0.type: .*'float' or 'long'"),
    ],
)
def test_wrong_configuration_is_refused_in_one_line_that_names_the_key(root, algorithm, message):
    with pytest.raises(InputError, match=message) as caught:
        config(root, **algorithm)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("NNCF configuration: ")


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        ([{"algorithm": "quantization"}] * 2, "holds 2 algorithms"),
        ([{"algorithm": "quantization"}, {"algorithm": "rb_sparsity"}], "algorithm 'rb_sparsity' is not honoured"),
        ([], "holds 0 algorithms"),
        ({}, "compression.algorithm: Field required"),
        ("quantization", "compression: .*valid dictionary"),
    ],
)
def test_anything_but_one_quantization_is_refused(compression, message):
    with pytest.raises(InputError, match=message):
        Config.from_nncf({"compression": compression})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "valid dictionary"),
        (None, "cannot be read"),
        (b"{}", "compression"),
    ],
    ids=["cut off", "not text", "a list", "missing", "empty"],
)
def test_file_that_holds_no_configuration_is_refused_in_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "nncf.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Config.from_nncf(path)
    assert str(caught.value).startswith(f"{path}: NNCF configuration: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"ignored_scopes": ["nothing"]},
        {"weights": {"target_scopes": ["nothing"]}},
        {"scope_overrides": {"activations": {"{re}nothing": {"bits": 8}}}},
        {"activations": {"unified_scale_ops": [["stem", "nothing"]]}},
        {"initializer": {"range": [{"ignored_scopes": ["nothing"]}]}},
    ],
    ids=json.dumps,
)
def test_scope_that_names_no_node_is_refused(algorithm):
    with pytest.raises(InputError, match="'nothing' matches no node"):
        quantized(None, **algorithm)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"scope_overrides": {"weights": {"relu": {"bits": 4}}}},
        {"scope_overrides": {"activations": {"sum": {"bits": 4}}}},
        {"weights": {"ignored_scopes": ["sum"]}},
    ],
    ids=json.dumps,
)
def test_scope_of_a_node_without_such_a_quantizer_is_refused(algorithm):
    with pytest.raises(InputError, match="where there is nothing to set; name nodes that are quantized"):
        quantized(None, **algorithm)


def test_keys_are_those_of_the_schema():
    assert {"input_info", "compression", "weights", "unified_scale_ops", "max_percentile"} <= keys()
    assert keys(Root).isdisjoint(REFUSED)


def test_translated_configuration_can_be_written_as_json_and_read_again(tmp_path):
    given = config(initializer={"range": PERCENTILE}, activations={"unified_scale_ops": [["a", "b"]]})
    path = tmp_path / "ours.json"
    path.write_text(given.model_dump_json())
    assert Config.from_json(path) == given


def test_names_are_those_of_the_users_own_nodes_after_preparation():
    names = {node.name for node in io.load(insert(net(), batches(net()), config())).graph if isinstance(node, ir.Node)}
    assert {"stem", "relu", "body", "twin", "sum", "head"} <= names


def test_every_estimator_of_nncf_gives_a_valid_model():
    for kind in ("mixed_min_max", "min_max", "mean_min_max", "threesigma", "percentile", "mean_percentile"):
        proto = insert(net(), batches(net()), config(initializer={"range": {"type": kind}}))
        onnx.checker.check_model(proto, full_check=True)
