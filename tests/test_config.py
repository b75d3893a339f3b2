import json

import onnx_ir as ir
import pytest

from onnxqat.config import Config
from onnxqat.config_parts import ORIGINAL_TYPE, Input, Override, Range, Select
from onnxqat.errors import InputError


def node(op_type: str = "Conv", name: str = "layer1/conv") -> ir.Node:
    return ir.node(op_type, [], name=name)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Select(name="layer1/conv"), True),
        (Select(name="layer1"), False),
        (Select(pattern="^layer1"), True),
        (Select(pattern="layer2"), False),
        (Select(type="Conv"), True),
        (Select(type="Gemm"), False),
    ],
    ids=["name", "part of a name", "pattern", "other pattern", "type", "other type"],
)
def test_rules_select_by_name_pattern_or_type(rule, expected):
    assert rule.matches(node()) is expected


def test_rule_by_type_finds_a_node_that_preparation_rewrote():
    rewritten = node("Gemm")
    rewritten.metadata_props[ORIGINAL_TYPE] = "MatMul"
    assert Select(type="MatMul").matches(rewritten)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_bits": 9}, "weight_bits: .*less than or equal to 8"),
        ({"activation_bits": 1}, "activation_bits: .*greater than or equal to 2"),
        ({"weight_bits": "8"}, "weight_bits: .*valid integer"),
        ({"target": "tpu"}, "target: no target is called 'tpu'; use 'openvino' or 'ort-cpu' or 'qnn'"),
        ({"target": "coreml"}, "target: CoreML's provider in ONNX Runtime has no QuantizeLinear.*the float model"),
        ({"target": "nnapi"}, "target: NNAPI takes the models of target 'ort-cpu'; use that"),
        ({"percentile": 50}, "percentile: .*greater than 50"),
        ({"weight_bit": 8}, "weight_bit: no such key"),
        (dict.fromkeys("abcde", 1), r"c: no such key; check its spelling \(is 1\); and 2 more$"),
        ({"activation_range": "max"}, "activation_range: Range: type: .*'min_max'"),
        (
            {"weight_range": {"type": "percentile", "max_percentile": 101}},
            "weight_range: Range: max_percentile: .*less than",
        ),
        ({"overflow_fix": "on"}, "overflow_fix: .*'enable'"),
        ({"correction_samples": 0}, "correction_samples: .*greater than or equal to 1"),
        ({"unified_scales": [[{"nam": "a"}]]}, "unified_scales.0.0: Select: nam: no such key"),
        ({"inputs": [{"shape": [0]}]}, "inputs.0: Input: shape.0: .*greater than or equal to 1"),
        ({"ignore": ({"typ": "Conv"},)}, "ignore.0: Select: typ: no such key"),
        ({"ignore": "Conv"}, "ignore: .*valid tuple"),
        ({"overrides": ({"name": "a", "weight_bits": 1},)}, "overrides.0: Override: weight_bits"),
    ],
)
def test_wrong_settings_are_refused_in_one_line_that_names_them(values, message):
    with pytest.raises(InputError, match=message) as caught:
        Config(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"name": "a", "type": "Conv"}], ids=["none", "two"])
def test_rule_names_nodes_in_exactly_one_way(values):
    with pytest.raises(InputError, match="exactly one of name, pattern, type and scope"):
        Select(**values)


def test_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(InputError, match="not a regular expression"):
        Select(pattern="(")


def test_rules_may_be_given_as_a_list():
    assert Config(ignore=[Select(type="Conv")]).ignore == (Select(type="Conv"),)


def test_override_lists_only_what_it_sets():
    assert Override(name="a", weight_bits=4, weight_symmetric=False).settings == {
        "weight_bits": 4,
        "weight_symmetric": False,
    }


def test_range_may_be_written_as_the_name_of_its_estimator():
    assert Config(activation_range="threesigma").activation_range == Range(type="threesigma")
    assert Override(name="a", weight_range="mse").settings == {"weight_range": Range(type="mse")}


def test_override_selects_all_but_what_it_excludes():
    rule = Override(type="Conv", exclude=[Select(pattern="layer2")])
    assert rule.matches(node())
    assert not rule.matches(node(name="layer2/conv"))


def test_rules_are_all_that_selects_nodes():
    a, b, c, d, e = (Select(name=name) for name in "abcde")
    override = Override(name="o", weight_bits=4, exclude=[e])
    assert Config(only=[a], ignore=[b], unified_scales=[[c], [d]], overrides=[override]).rules == (
        a,
        b,
        override,
        e,
        c,
        d,
    )


def test_json_file_holds_any_setting(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "target": "openvino",
                "weight_bits": 4,
                "percentile": 99,
                "ignore": [{"pattern": "head"}],
                "overrides": [{"name": "stem", "weight_bits": 8, "exclude": [{"type": "Add"}]}],
                "activation_range": {"type": "percentile", "min_percentile": 0.5, "samples": 300},
                "unified_scales": [[{"name": "a"}, {"name": "b"}]],
                "inputs": [{"shape": [1, 3, 8, 8]}],
            }
        )
    )
    assert Config.from_json(path) == Config(
        target="openvino",
        weight_bits=4,
        percentile=99.0,
        ignore=(Select(pattern="head"),),
        overrides=(Override(name="stem", weight_bits=8, exclude=(Select(type="Add"),)),),
        activation_range=Range(type="percentile", min_percentile=0.5, samples=300),
        unified_scales=((Select(name="a"), Select(name="b")),),
        inputs=(Input(shape=(1, 3, 8, 8)),),
    )


RICH = Config(
    ignore=(Select(type="Conv"),),
    overrides=(Override(name="a", weight_bits=4),),
    weight_range="mse",
    first_last_bits=None,
    unified_scales=((Select(name="a"), Select(name="b")),),
    inputs=(Input(shape=(1, 3, 8, 8)),),
    fixed_inputs={"n": 2},
)


@pytest.mark.parametrize("kind", ["json", "yaml"])
@pytest.mark.parametrize("config", [Config(), RICH], ids=["defaults", "all kinds"])
def test_settings_are_read_as_they_were_written(tmp_path, kind, config):
    path = tmp_path / f"config.{kind}"
    path.write_text(getattr(config, f"to_{kind}")())
    assert Config.read(path) == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"weight_bits": 4, // as the NPU wants it\n /* head */ "ignore": [{"pattern": "head"}],}'),
        ("c.yaml", "weight_bits: 4  # as the NPU wants it\nignore:\n- pattern: head\n"),
        ("c.yml", "{weight_bits: 4, ignore: [{pattern: head}]}"),
    ],
)
def test_file_of_settings_holds_comments(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert Config.read(tmp_path / name) == Config(weight_bits=4, ignore=(Select(pattern="head"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1", "holds no YAML object"),
        ("weight_bits: 20", "weight_bits"),
        ("weight_bits: 8\nweight_bits: 4", "key 'weight_bits' stands twice; leave one out$"),
    ],
)
def test_wrong_yaml_file_is_refused_in_one_line_that_names_it(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"c\.yaml: .*{message}") as caught:
        Config.read(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "holds no JSON object"),
        (b'{"weight_bits": 20}', "weight_bits: .*less than or equal to 8"),
        (b'{"percentile": NaN}', "percentile"),
        (b'{"ignore": [{"name": "a", name: "b"}]}', r"config\.json: key 'name' stands twice; leave one out$"),
        (b"\xff\xfe", "cannot be read"),
    ],
    ids=["empty", "cut off", "array", "out of range", "NaN", "twice", "not text"],
)
def test_wrong_json_file_is_refused_in_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Config.from_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_json_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Config.from_json(tmp_path / "none.json")
