"""What each quantizer alone costs, against models with that quantizer alone."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat import Config, InputError
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.graph.without import without_quantizers
from onnxqat.runtime.toggles import Toggles
from onnxqat.search.sensitivity.pieces import cuts, pieces
from tests.classifier import LABELS, NET, ROWS, WEIGHTS, write
from tests.models import model, outputs, random

DATA = [{"x": ROWS, "label": LABELS}]


@pytest.fixture(scope="module")
def network():
    return model(NET, **WEIGHTS)


@pytest.fixture(scope="module")
def found(network):
    return onnxqat.sensitivity(network, DATA, widths=[8, 3], metric="accuracy", samples=16)


def test_each_switch_is_a_model_with_that_quantizer_alone(network):
    qdq = ir.from_proto(
        onnxqat.insert(network, DATA, Config(weight_bits=3, activation_bits=3, output_correction="none"))
    )
    toggles = Toggles(qdq)
    assert toggles.names == [q.source.name for q in quantizers(qdq)]
    for name in [None, *toggles.names]:
        alone = without_quantizers(qdq, lambda q, name=name: q.source.name != name)
        on = [] if name is None else [name]
        np.testing.assert_allclose(
            toggles(on, {"x": ROWS})["y"], outputs(io.to_proto(alone), {"x": ROWS})[0], atol=1e-6
        )


#: A weight of two layers, a skip, an input that is read late, and two outputs.
DEEP = """(float[N,8] x, float[N,8] late) => (float[N,8] y, float[N,8] z) {
    a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = MatMul(c, w)  e = Relu(d)
    f = MatMul(e, u)  g = Add(f, e)  h = Mul(g, late)  i = MatMul(h, t)  y = Softmax(i)  z = Relu(i)
}"""


def test_pieces_give_what_the_whole_model_does():
    batch = {"x": ROWS, "late": ROWS[::-1]}
    proto = model(DEEP, **{name: random(8, 8, seed=ord(name)) for name in "tuvw"})
    qdq = ir.from_proto(onnxqat.insert(proto, [batch], Config(first_last_bits=None)))
    alive = cuts(qdq, without_quantizers(qdq))
    assert alive == [["d", "late"], ["e", "late"], ["g", "late"], ["h"], ["i"]]
    toggles, found = Toggles(qdq), []
    for piece in pieces(qdq, [{name: rows[:8] for name, rows in batch.items()}, batch]):
        for name in piece.names:
            np.testing.assert_allclose(piece.outputs(name)[1], list(toggles([name], batch).values()), atol=1e-6)
        found += piece.names
    assert len(found) == len(set(found))
    assert set(found) == set(toggles.names)


@pytest.mark.parametrize(
    "between",
    [
        "s = SplitToSequence<axis = 1>(b)  c = ConcatFromSequence<axis = 1>(s)",
        "r = RandomNormal<shape = [8]>()  r0 = Mul(r, zero)  r1 = Exp(r0)  r2 = Neg(r1)  r3 = Abs(r2)  c = Mul(b, r3)",
    ],
    ids=["a sequence", "a chain without input"],
)
def test_a_model_is_cut_only_where_there_are_new_tensors(between):
    text = f"(float[N,8] x) => (float[N,8] y) {{ a = MatMul(x, w)  b = Relu(a)  {between}  d = MatMul(c, v)  y = Relu(d) }}"
    proto = model(text, w=random(8, 8, seed=1), v=random(8, 8, seed=2), zero=np.float32(0))
    qdq = ir.from_proto(onnxqat.insert(proto, [{"x": ROWS}]))
    toggles = Toggles(qdq)
    for piece in pieces(qdq, [{"x": ROWS}]):
        for name in piece.names:
            np.testing.assert_allclose(piece.outputs(name)[0][0], toggles([name], {"x": ROWS})["y"], atol=1e-6)


def test_every_value_is_measured_at_every_width_and_fewer_bits_cost_more(found):
    by_value = {}
    for cost in found.costs:
        by_value.setdefault(cost.value, {})[cost.bits] = cost.snr
    assert {"x", "w", "r", "v"} <= set(by_value)
    assert all(snr[3] < snr[8] - 15 for snr in by_value.values())


def test_snr_is_that_of_the_output_with_the_value_alone_quantized(network, found):
    expected = outputs(network, {"x": ROWS})[0]
    qdq = ir.from_proto(
        onnxqat.insert(
            network, DATA, Config(weight_bits=3, activation_bits=3, first_last_bits=None, output_correction="none")
        )
    )
    actual = outputs(io.to_proto(without_quantizers(qdq, lambda q: q.source.name != "w")), {"x": ROWS})[0]
    snr = 10 * np.log10((expected**2).sum() / ((actual - expected) ** 2).sum())
    cost = next(one for one in found.costs if (one.value, one.bits) == ("w", 3))
    assert cost.snr == pytest.approx(snr, abs=0.02)
    assert cost.score == np.mean(actual.argmax(axis=1) == LABELS)
    assert cost.part == "weights"


def test_the_costliest_comes_first(found):
    drops = [found.score - cost.score for cost in found.ranked]
    assert drops == sorted(drops, reverse=True)


def test_sparing_gives_more_bits_or_float_only_to_what_costs_too_much(network):
    asked = Config(weight_bits=3, activation_bits=3, first_last_bits=None)
    found = onnxqat.sensitivity(network, DATA, asked, widths=[8])
    snrs = sorted(cost.snr for cost in found.costs if cost.bits == 3)
    assert found.sparing(snrs[0] - 1) == asked
    one = found.sparing((snrs[0] + snrs[1]) / 2)
    assert len(one.overrides) == 1
    assert 8 in (one.overrides[0].weight_bits, one.overrides[0].activation_bits)
    assert {rule.name for rule in found.sparing(150.0).ignore} == {cost.nodes[0] for cost in found.costs}


def test_command_prints_writes_and_its_configuration_is_one_for_insert(tmp_path, call):
    folder = write(tmp_path)
    data = ("--data", folder / "data.npz")
    files = {"--json": folder / "s.json", "--report": folder / "s.html", "--write-config": folder / "c.json"}
    options = [part for pair in files.items() for part in pair]
    status, said, log = call(
        "sensitivity", folder / "float.onnx", *data, "--width", 8, "--weight-bits", 3, "--activation-bits", 3, *options
    )
    assert status == 0
    assert "weights" in said
    assert "sensitivity: 4 values at 8, 3 bits, at most about" in log
    assert json.loads((folder / "s.json").read_text())["costs"][0]["snr"] < 30
    assert "Sensitivity" in (folder / "s.html").read_text()
    calibration = ("--calibration", folder / "data.npz", "--config", folder / "c.json")
    assert call("insert", folder / "float.onnx", *calibration, "-o", folder / "spared.onnx")[0] == 0


def test_it_prints_as_a_table(found):
    assert str(found).startswith("16 samples")
    assert found.ranked[0].value in str(found)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"target": "qnn", "fixed_inputs": {"N": 1}}, {"weights": {8, 4}, "activations": {8}}),
        ({"quantize_activations": False, "weight_bits": 4, "weight_block_size": 16}, {"weights": {8, 4}}),
    ],
    ids=["of the target", "of blocks"],
)
def test_widths_that_cannot_be_are_left_out(settings, bits):
    proto = model("(float[N,16] x) => (float[N,16] y) { a = MatMul(x, w)  y = Relu(a) }", w=random(16, 16))
    found = onnxqat.sensitivity(proto, [{"x": random(8, 16)}], Config(**settings), widths=[8, 4])
    given = {}
    for cost in found.costs:
        given.setdefault(cost.part, set()).add(cost.bits)
    assert given == bits


def test_what_only_the_second_output_depends_on_costs_there():
    text = "(float[N,8] x) => (float[N,8] boxes, float[N,8] scores, int64[N] best) { a = MatMul(x, w)  b = Relu(a)"
    text += "boxes = MatMul(b, u)  scores = MatMul(b, v)  best = ArgMax <axis = 1, keepdims = 0> (scores) }"
    proto = model(text, w=random(8, 8, seed=1), u=random(8, 8, seed=2), v=random(8, 8, seed=3))
    found = onnxqat.sensitivity(proto, [{"x": ROWS}], widths=[8])
    assert len(found.costs) == 5
    assert all(30 < cost.snr < 70 for cost in found.costs)


def test_a_bound_that_is_no_number_is_refused_before_any_work(tmp_path, call):
    folder = write(tmp_path)
    status, _, said = call("sensitivity", folder / "float.onnx", "--data", folder / "data.npz", "--least", "nan")
    assert (status, said) == (2, "error: least is nan; it must be a number of dB, such as 20\n")


@pytest.mark.parametrize(("settings", "words"), [({"widths": [9]}, "from 2 to 8"), ({"samples": 0}, "1 or more")])
def test_wrong_settings_are_refused_before_any_work(network, settings, words):
    with pytest.raises(InputError, match=words):
        onnxqat.sensitivity(network, "no_such_module:data", **settings)
