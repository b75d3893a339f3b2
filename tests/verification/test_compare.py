"""Size of one step, place of a difference, and agreement of predictions."""

import numpy as np
import pytest

from onnxqat.data.labels import Decisions, Labelling
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.metrics.table import named
from onnxqat.verification import compare
from onnxqat.verification.divergence import divergence
from onnxqat.verification.host import opened

CHAIN = """
  c = Conv(xd, w1d, b1d)
  [relu] r = Relu(c)
  rq = QuantizeLinear(r, s, z0)
  rd = DequantizeLinear(rq, s, z0)
  [last] d = Conv(rd, w2d, b2d)
  dq = QuantizeLinear(d, s, z)
  y = DequantizeLinear(dq, s, z)
"""
#: The second layer is another one, and nothing before it differs.
CHANGED_LATE = CHAIN.replace("w2d", "w1d")
#: The first layer is another one.
CHANGED_EARLY = CHAIN.replace("Conv(xd, w1d", "Conv(xd, w2d")
CLASSES = "float[N,3] y"


@pytest.fixture(scope="module")
def host():
    with opened("ort") as opened_host:
        yield opened_host


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(0)
    return [{"x": random.normal(size=(4, 2, 4, 4)).astype(np.float32)} for _ in range(3)]


def compared(host, trained, deployed, batches):
    host.load("trained", io.load(trained), simulate=True)
    host.load("deployed", io.load(deployed))
    decisions = Decisions.of(io.load(trained).graph.outputs[0], Labelling())
    return compare.compared(host, batches, named("accuracy", decisions), decisions)


def test_step_of_an_output_from_a_quantizer_is_its_scale(host, network, batches):
    model = network(CHAIN)
    (found,) = compare.differences(compared(host, model, model, batches), io.load(model))
    assert (found.output, found.step_from, found.step) == ("y", "quantizer", pytest.approx(0.05))


@pytest.mark.parametrize(
    ("movement", "output"),
    [
        ("y = Reshape(yd, rows)", "float[N,32] y"),
        ("t = Transpose<perm=[0,2,3,1]>(yd) y = Reshape(t, rows)", "float[N,32] y"),
        ("y = SpaceToDepth<blocksize=2>(yd)", "float[N,8,2,2] y"),
        ("e = SpaceToDepth<blocksize=2>(yd) y = DepthToSpace<blocksize=2>(e)", "float[N,2,4,4] y"),
        ("y = ReduceMax<axes=[1]>(yd)", "float[N,1,4,4] y"),
    ],
    ids=["Reshape", "two", "SpaceToDepth", "DepthToSpace", "ReduceMax"],
)
def test_step_is_found_through_data_movement(host, network, batches, movement, output):
    model = network(CHAIN.replace("  y =", "  yd =") + f" {movement}", output)
    (found,) = compare.differences(compared(host, model, model, batches), io.load(model))
    assert (found.step_from, found.step) == ("quantizer", pytest.approx(0.05))


def test_step_of_a_float_output_is_a_255th_of_its_range(host, network, batches):
    model = network("h = Reshape(xd, rows) wgd = DequantizeLinear(wg, sw, zw) y = Gemm(h, wgd)", CLASSES)
    host.load("alone", io.load(model), simulate=True)
    outputs = np.concatenate([host.run("alone", batch)["y"] for batch in batches])
    (found,) = compare.differences(compared(host, model, model, batches), io.load(model))
    assert found.step_from == "range"
    assert found.step == pytest.approx((outputs.max() - outputs.min()) / 255)


def test_step_of_an_integer_output_is_one(host, network, batches):
    model = network("y = ArgMax<axis = 1>(xd)", "int64[N,1,4,4] y")
    (found,) = compare.differences(compared(host, model, model, batches), io.load(model))
    assert (found.step_from, found.step, found.steps) == ("integer", 1, 0)


def test_largest_difference_is_over_all_batches(host, network, batches):
    result = compared(host, network(CHAIN), network(CHANGED_LATE), batches)
    apart = [np.abs(host.run("trained", b)["y"] - host.run("deployed", b)["y"]).max(axis=(1, 2, 3)) for b in batches]
    batch, row = np.unravel_index(np.argmax(apart), (3, 4))
    assert result.samples == 12
    assert result.largest["y"] == pytest.approx(np.max(apart))
    inputs, worst_row = result.worst["y"]
    assert worst_row == row
    np.testing.assert_array_equal(inputs["x"], batches[batch]["x"])


@pytest.mark.parametrize(
    ("changed", "value", "node"),
    [(CHANGED_EARLY, "rd", ("relu", "Relu")), (CHANGED_LATE, "y", ("last", "Conv"))],
    ids=["first layer", "last layer"],
)
def test_divergence_names_the_first_value_that_differs(host, network, batches, changed, value, node):
    trained, deployed = network(CHAIN), network(changed)
    result = compared(host, trained, deployed, batches)
    found = divergence(host, io.load(trained), io.load(deployed), result.worst["y"])
    assert (found.value, (found.node, found.op_type)) == (value, node)
    assert found.steps > 1
    assert found.compared == 3


def test_reading_intermediate_values_leaves_integer_kernels_as_they_are(host, network, batches):
    trained, deployed = network(CHAIN), network(CHANGED_EARLY)
    result = compared(host, trained, deployed, batches)
    assert divergence(host, io.load(trained), io.load(deployed), result.worst["y"]).undisturbed


def test_divergence_of_equal_models_names_no_value(host, network, batches):
    model = network(CHAIN)
    compared(host, model, model, batches)
    found = divergence(host, io.load(model), io.load(model), (batches[0], 0))
    assert (found.value, found.node, found.steps) == (None, None, 0)


def test_agreement_counts_equal_largest_scores(host, network, batches):
    body = "h = Reshape(xd, rows) wgd = DequantizeLinear(wg, sw, zw) y = Gemm(h, wgd)"
    other = network(body.replace("y = Gemm(h, wgd)", "g = Gemm(h, wgd) y = Neg(g)"), CLASSES)
    model = network(body, CLASSES)
    result = compared(host, model, model, batches)
    assert (result.agreeing, result.predictions) == (12, 12)
    assert compared(host, model, other, batches).agreeing == 0


def test_models_of_different_outputs_are_refused(host, network, batches):
    other = network(CHAIN.replace("  y =", "  w ="), "float[N,2,4,4] w")
    with pytest.raises(InputError, match=r"its outputs are \['w'\], the Q/DQ model's \['y'\]"):
        compared(host, network(CHAIN), other, batches)


def test_output_that_is_not_a_number_is_refused(host, network, batches):
    model = network("l = Log(xd) y = Mul(l, l)")
    with pytest.raises(InputError, match="output 'y': is NaN"):
        compared(host, model, model, batches)


MASKED = "g = Greater(xd, low) n = Log(low) y = Where(g, xd, n)"


def test_places_that_both_models_mask_by_infinity_are_equal(host, network, batches):
    model = network(MASKED)
    (found,) = compare.differences(compared(host, model, model, batches), io.load(model))
    assert found.largest == 0
    assert 0 < found.step < 1


def test_places_that_one_model_alone_masks_are_counted(host, network, batches):
    other = network(MASKED.replace("Where(g, xd, n)", "Where(g, n, xd)"))
    (found,) = compare.differences(compared(host, network(MASKED), other, batches), io.load(other))
    assert (found.largest, found.masked) == (0, sum(batch["x"].size for batch in batches))


def test_an_infinity_in_one_of_the_models_is_refused(host, network, batches):
    with pytest.raises(InputError, match="output 'y': is infinite in one of the two models"):
        compared(host, network(MASKED), network(MASKED.replace("Log(low)", "Neg(low)")), batches)


FOUND = "g = Greater(xd, low) y = NonZero(g)"


def test_entries_are_counted_where_sizes_differ(host, network, batches):
    fewer = network(FOUND.replace("low", "six"), "int64[4,K] y")
    result = compared(host, network(FOUND, "int64[4,K] y"), fewer, batches[:2])
    positive = [int((batch["x"] > 0.025).sum()) for batch in batches[:2]]
    (found,) = compare.differences(result, io.load(fewer))
    assert (found.sizes.trained, found.sizes.deployed, found.sizes.shared) == (sum(positive), 0, 0)
    assert (found.sizes.batches, found.batches) == (2, 0)


def test_entries_that_both_models_give_are_counted_wherever_they_stand(host, network, batches):
    body = "g = Greater(xd, t) y = NonZero(g)"
    models = [network(f"t = Mul(six, {scale}) {body}", "int64[4,K] y") for scale in ("s", "s6")]
    (found,) = compare.differences(compared(host, *models, batches[:1]), io.load(models[1]))
    grid = np.clip(np.rint(batches[0]["x"] / 0.05), -128, 127) * np.float32(0.05)
    above = [set(zip(*np.nonzero(grid > np.float32(6) * np.float32(t)), strict=True)) for t in (0.05, 0.0235)]
    assert (found.sizes.trained, found.sizes.deployed) == tuple(map(len, above))
    assert found.sizes.shared == len(above[0] & above[1]) > 0


@pytest.mark.parametrize(("axis", "predictions"), [(-1, 3 * 4 * 2 * 4), (1, 3 * 4 * 4 * 4)], ids=["last", "first"])
def test_predictions_agree_along_the_axis_of_the_softmax(host, network, batches, axis, predictions):
    model = network(f"y = Softmax<axis = {axis}>(xd)", "float[N,2,4,4] y")
    found = compared(host, model, model, batches)
    assert (found.predictions, found.agreeing) == (predictions, predictions)
