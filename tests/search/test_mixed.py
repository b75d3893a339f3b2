"""Mixed precision, against enumeration, exact quadratic forms and the models that it makes."""

import itertools
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat import Config, InputError
from onnxqat.graph.qdq import quantizers
from onnxqat.search.mixed import Budget
from onnxqat.search.mixed.assign import assigned
from onnxqat.search.mixed.fisher import losses
from tests.classifier import LABELS, ROWS, write
from tests.models import model, random

NET = """(float[N,8] x) => (float[N,3] y) {
  a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, v) s = Relu(c) d = Gemm(s, u) t = Relu(d) y = Gemm(t, z)
}"""
WEIGHTS = {
    "w": random(8, 6),
    "b": random(6),
    "v": random(6, 10, scale=1.0),
    "u": random(10, 4, scale=0.1),
    "z": random(4, 3, scale=1.0),
}
DATA = [{"x": ROWS, "label": LABELS}]
SCIPY = pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def network():
    return model(NET, **WEIGHTS)


def widths(qdq, *, of_weights=True):
    return {q.source.name: q.bits for q in quantizers(ir.from_proto(qdq)) if q.is_weight == of_weights}


@pytest.mark.parametrize("seed", range(3))
def test_program_finds_the_best_of_all_assignments(seed):
    numbers = np.random.default_rng(seed)
    sizes = {name: int(numbers.integers(10, 500)) for name in "abcde"}
    costs = {name: {bits: float(numbers.random() * 4.0**-bits) for bits in (2, 3, 4, 8)} for name in sizes}
    most = 4.1 * sum(sizes.values())
    choices = (dict(zip(sizes, bits, strict=True)) for bits in itertools.product((2, 3, 4, 8), repeat=5))
    fitting = [one for one in choices if sum(sizes[n] * b for n, b in one.items()) <= most]
    best = min(fitting, key=lambda one: sum(costs[n][b] for n, b in one.items()))
    spent = {name: {bits: sizes[name] * bits for bits in widths} for name, widths in costs.items()}
    assert assigned(costs, spent, most) == best


def test_loss_of_a_weight_is_the_quadratic_form_of_the_fisher_information():
    weight, error = random(8, 3, scale=1.0), random(8, 3, seed=1, scale=0.1)
    proto = model("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", w=weight)
    parts = [{"x": ROWS[i % 16][None]} for i in range(4096)]
    found = losses(ir.from_proto(proto), {"w": {4: error.astype(np.float64)}}, parts)["w"][4] / len(parts)
    chance = np.exp(ROWS @ weight)
    chance /= chance.sum(axis=1, keepdims=True)
    change = ROWS @ error
    exact = 0.5 * ((chance * change**2).sum(axis=1) - (chance * change).sum(axis=1) ** 2).mean()
    assert found == pytest.approx(exact, rel=0.1)  # the mean of 4,096 random squares


def test_widths_meet_the_budget_lose_less_than_uniform_ones_and_are_those_of_the_model(network):
    config = Config(first_last_bits=None, activation_bits=6)
    mixed = onnxqat.mixed_precision(network, DATA, config, bits=5.0, samples=16)
    uniform = onnxqat.mixed_precision(network, DATA, config, bits=5.0, widths=[5], samples=16)
    assert set(uniform.widths.values()) == {5}
    assert mixed.bits <= 5.0
    assert mixed.loss < uniform.loss
    made, plain = (onnxqat.insert(network, DATA, settings) for settings in (mixed.config, config))
    assert widths(made) == mixed.widths
    assert widths(made, of_weights=False) == widths(plain, of_weights=False)  # activations keep theirs
    assert 6 in widths(made, of_weights=False).values()


def test_size_counts_everything_and_float_is_a_width(network):
    config = Config(first_last_bits=None)
    found = onnxqat.mixed_precision(network, DATA, config, size=0.5, widths=[8, 32], samples=16)
    elements = {name: array.size for name, array in WEIGHTS.items()}
    bits = sum(elements[name] * found.widths.get(name, 32) for name in elements)
    assert found.size == pytest.approx(bits / (32 * sum(elements.values())))
    assert 0.3 < found.size <= 0.5
    floats = {name for name, width in found.widths.items() if width == 32}
    assert floats
    assert widths(onnxqat.insert(network, DATA, found.config)) == {n: 8 for n in found.widths if n not in floats}


def test_first_and_last_layers_keep_their_bits(network):
    found = onnxqat.mixed_precision(network, DATA, bits=6.0, samples=16)
    assert (found.widths["w"], found.widths["z"]) == (8, 8)


def test_the_same_call_chooses_the_same(network):
    calls = [onnxqat.mixed_precision(network, DATA, Config(first_last_bits=None), bits=3.5, samples=16) for _ in "ab"]
    assert calls[0] == calls[1]


def test_a_budget_that_cannot_be_reached_names_the_nearest(network):
    config = Config(first_last_bits=None)
    with pytest.raises(
        InputError, match=r"budget: bits=1 cannot be reached; the nearest is bits=2, with the fewest bits"
    ):
        onnxqat.mixed_precision(network, DATA, config, bits=1, samples=4)
    with pytest.raises(InputError, match=r"budget: size=0.01 cannot be reached; the nearest is size=0\.0\d+"):
        onnxqat.mixed_precision(network, DATA, config, size=0.01, samples=4)
    with pytest.raises(InputError, match=r"in every layer, but 8 in the first and the last \(first_last_bits"):
        onnxqat.mixed_precision(network, DATA, bits=3, samples=4)


def test_drop_gives_the_smallest_model_that_loses_no_more(network):
    config, own = Config(first_last_bits=None), [{"x": random(256, 8, scale=1.0)}]
    found = onnxqat.mixed_precision(network, own, config, drop=8.0, samples=64)
    assert 2 < found.bits < 8
    qdq = onnxqat.insert(network, own, found.config)
    assert onnxqat.verify(qdq, onnxqat.fold(qdq), own, float_model=network).verdict.drop <= 8.0
    with pytest.raises(InputError, match="cannot be reached by weights alone; the nearest is"):
        onnxqat.mixed_precision(network, own, Config(activation_bits=2, first_last_bits=None), drop=0.0, samples=4)


def test_fewest_layers_in_float_that_hold_a_drop_are_the_noisiest(network):
    own, config = [{"x": random(256, 8, scale=1.0)}], Config(weight_bits=3, activation_bits=3, first_last_bits=None)
    found = onnxqat.mixed_precision(network, own, config, drop=6.0, widths=[3, 32])
    costs = onnxqat.sensitivity(network, own, config, widths=[3]).ranked
    floats = {str(rule.name) for rule in found.config.ignore}
    assert 0 < len(floats) < 4
    assert costs[0].nodes[0] in floats
    assert {n for n, bits in found.widths.items() if bits == 32} == set(found.widths) - set(
        widths(onnxqat.insert(network, own, found.config))
    )
    with pytest.raises(InputError, match="cannot be reached with layers in float; the nearest is"):
        onnxqat.mixed_precision(network, own, config, drop=0.0, widths=[3, 32])


def test_nothing_is_measured_layer_by_layer_where_a_drop_holds_with_nothing_in_float(network, caplog):
    with caplog.at_level("INFO", logger="onnxqat"):
        found = onnxqat.mixed_precision(network, [{"x": random(256, 8, scale=1.0)}], drop=50, widths=[8, 32])
    assert (set(found.widths.values()), found.loss) == ({8}, None)
    assert "with 0 of the layers in float" in caplog.text
    assert "sensitivity" not in caplog.text


def test_command_writes_a_configuration_that_makes_the_same_model(tmp_path, call):
    folder = write(tmp_path)
    calibration = ("--calibration", folder / "data.npz")
    chosen = ("--budget", "bits=8", "--write-config", folder / "c.json", "-o", folder / "a.onnx")
    status, said, _ = call("insert", folder / "float.onnx", *calibration, *chosen)
    assert status == 0
    assert "mixed precision: 8.00 bits a weight" in said
    assert len(json.loads((folder / "c.json").read_text())["overrides"]) == 2
    assert (
        call("insert", folder / "float.onnx", *calibration, "--config", folder / "c.json", "-o", folder / "b.onnx")[0]
        == 0
    )
    assert onnx.load(folder / "a.onnx") == onnx.load(folder / "b.onnx")


@pytest.mark.parametrize("text", ["size", "bits=few", "speed=2", "bits=-1", "size=nan", "latency=1.2"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="budget"):
        Budget.parsed(text)


@pytest.mark.parametrize("options", [["--budget", "drop=1"], ["--budget", "bits=4"], ["--preset", "int8-mixed"]])
def test_widths_of_weights_in_blocks_are_not_chosen(tmp_path, call, options):
    folder = write(tmp_path)
    blocks = ("--weight-block-size", 32, "--calibration", folder / "data.npz")
    status, said, errors = call("insert", folder / "float.onnx", *blocks, *options, "-o", folder / "a.onnx")
    assert (status, said) == (2, "")
    assert errors == (
        "error: configuration: weight_block_size is 32, and neither a budget nor the preset int8-mixed chooses widths of weights "
        "in blocks, which have 4 bits; leave one of the two out\n"
    )
