import numpy as np
import pytest
import torch

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.insertion import insert
from onnxqat.training.optimize.optimizers import LARGEST_LOG_STEP, SGD, AdamW
from onnxqat.training.optimize.update import SMALLEST_SIZE, STRETCH, ZERO_POINT_SHARE, Updater, sizes
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph.parameters import Layout, Parameter
from tests.models import model, random

SIZE = 1000


def layout(kind, size=SIZE, ceiling=float("inf"), floor=float("-inf")):
    bounds = {"weight": (0, 0), "other": (0, 0), "scale": (0, 0), "zero_point": (0, 0)} | {kind: (0, size)}
    return Layout((Parameter("p", kind, 0, (size,), (floor, ceiling)),), bounds, size)


def arrays(seed, size=SIZE):
    random = np.random.default_rng(seed)
    return random.standard_normal(size).astype(np.float32), [
        random.standard_normal(size).astype(np.float32) for _ in range(5)
    ]


def run_ours(optimizer, kind, start, gradients, lr, factor=1.0, *, in_8_bits=False, **options):
    parameters, gradient = start.copy(), np.zeros_like(start)
    update = Updater(optimizer, layout(kind, len(start), **options), parameters, gradient, in_8_bits=in_8_bits)
    for step, array in enumerate(gradients, 1):
        gradient[:] = array
        update(lr, step, factor)
    return parameters


def run_torch(optimizer, start, gradients):
    parameter = torch.tensor(start, requires_grad=True)
    stepper = optimizer([parameter])
    for array in gradients:
        parameter.grad = torch.tensor(array)
        stepper.step()
    return parameter.detach().numpy()


PAIRS = [
    pytest.param(SGD(0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), id="SGD"),
    pytest.param(
        SGD(0.1, momentum=0.5, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, weight_decay=0.01),
        id="SGD with decay",
    ),
    pytest.param(AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0), id="AdamW"),
    pytest.param(
        AdamW(0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
        id="AdamW with decay",
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_weights_are_updated_as_by_torch(ours, theirs):
    start, gradients = arrays(0)
    expected = run_torch(theirs, start, gradients)
    # float32 arithmetic in another order
    np.testing.assert_allclose(run_ours(ours, "weight", start, gradients, ours.lr), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_scales_are_updated_as_torch_updates_their_logarithms(ours, theirs):
    start, gradients = np.exp(arrays(1)[0]), [array * 0.01 for array in arrays(1)[1]]
    ours = type(ours)(ours.lr * 0.1)
    theta = torch.tensor(np.log(start), requires_grad=True)
    stepper = (
        torch.optim.SGD([theta], ours.lr, momentum=0.9)
        if isinstance(ours, SGD)
        else torch.optim.AdamW([theta], ours.lr, weight_decay=0)
    )
    for array in gradients:
        theta.grad = torch.tensor(array) * torch.exp(theta.detach())
        stepper.step()
    actual = run_ours(ours, "scale", start, gradients, ours.lr)
    np.testing.assert_allclose(actual, np.exp(theta.detach().numpy()), rtol=1e-4)


@pytest.mark.parametrize("optimizer", [SGD(0.1, weight_decay=0.5), AdamW(0.1, weight_decay=0.5)], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("kind", ["other", "scale"])
def test_only_weights_decay(optimizer, kind):
    start = np.exp(arrays(2)[0])
    actual = run_ours(optimizer, kind, start, [np.zeros_like(start)] * 3, optimizer.lr)
    np.testing.assert_array_equal(actual, start)


def test_a_scale_changes_by_a_tenth_at_most_and_stays_within_its_bounds():
    start = np.ones(SIZE, np.float32)
    huge = np.full(SIZE, 1e6, np.float32)
    once = run_ours(SGD(1.0), "scale", start, [huge], 1.0)
    np.testing.assert_allclose(once, np.exp(-LARGEST_LOG_STEP), rtol=1e-6)
    often = run_ours(SGD(1.0), "scale", start, [huge] * 200, 1.0)
    np.testing.assert_array_equal(often, np.float32(2.0**-14))
    grown = run_ours(SGD(1.0), "scale", start, [-huge] * 20, 1.0, ceiling=1.5)
    np.testing.assert_array_equal(grown, np.float32(1.5))


def test_a_step_moves_a_zero_point_by_a_share_of_the_codes_and_keeps_it_among_them():
    start, gradient = np.full(SIZE, 8.0, np.float32), np.ones(SIZE, np.float32)
    once = run_ours(AdamW(1e-3), "zero_point", start, [gradient], 1e-3, floor=1.0, ceiling=15.0)
    np.testing.assert_allclose(once, 8 - ZERO_POINT_SHARE * 15 * 1e-3, rtol=1e-6)
    often = run_ours(AdamW(1.0), "zero_point", start, [gradient] * 2, 1.0, floor=1.0, ceiling=15.0)
    np.testing.assert_array_equal(often, 1)


def test_the_gradient_factor_scales_the_gradient():
    start, gradients = arrays(3)
    half = run_ours(SGD(0.1), "weight", start, gradients, 0.1, factor=0.5)
    np.testing.assert_allclose(half, run_ours(SGD(0.1), "weight", start, [g * 0.5 for g in gradients], 0.1), rtol=1e-6)


def test_an_array_longer_than_a_stretch_is_updated_throughout():
    size = 2 * STRETCH + 17
    start, gradients = arrays(4, size)
    expected = run_torch(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0), start, gradients[:2])
    actual = run_ours(AdamW(0.01), "weight", start, gradients[:2], 0.01)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: SGD(0.0), lambda: SGD(0.1, momentum=1.0), lambda: AdamW(float("nan")), lambda: AdamW(betas=(0.9, 1.0))],
    ids=["no rate", "momentum 1", "rate not a number", "beta 1"],
)
def test_an_invalid_optimizer_cannot_be_built(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("size", [100.0, 1.0, 1e-2])
def test_relative_steps_are_those_of_torch_at_a_rate_times_the_weights_size(size):
    start, gradients = arrays(2)
    start *= np.float32(size)
    rms = float(np.sqrt(np.mean(start.astype(np.float64) ** 2)))
    ours = run_ours(AdamW(0.01, relative=True), "weight", start, gradients, 0.01)
    theirs = run_torch(lambda p: torch.optim.AdamW(p, 0.01 * rms, weight_decay=0), start, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * size)


def test_relative_steps_move_a_bias_that_begins_at_zero():
    start, gradients = np.zeros(SIZE, np.float32), arrays(2)[1]
    moved = run_ours(AdamW(0.01, relative=True), "other", start, gradients[:1], 0.01)
    np.testing.assert_allclose(np.abs(moved), 0.01 * SMALLEST_SIZE, rtol=1e-3)


def test_each_parameter_has_a_size_of_its_own():
    parameters = (Parameter("a", "weight", 0, (2, 2)), Parameter("b", "weight", 16, (3,)))
    flat = np.ones(32, np.float32)
    flat[:4], flat[16:19] = [3, -3, 3, 3], [0.5, -0.5, 0.5]
    units = sizes(
        Layout(parameters, {"weight": (0, 32), "other": (0, 0), "scale": (0, 0), "zero_point": (0, 0)}, 32), flat
    )
    assert units[:4].tolist() == [3.0] * 4
    assert units[16:19].tolist() == [0.5] * 3


def test_relative_makes_no_difference_to_scales():
    start, gradients = arrays(3)
    plain, relative = (
        run_ours(AdamW(0.01, relative=r), "scale", np.abs(start), gradients, 0.01) for r in (False, True)
    )
    np.testing.assert_array_equal(plain, relative)


BESIDE = """(float[N,8] x) => (float[N,3] y) {
    normal = LayerNormalization (x, gain, shift)
    h = MatMul (normal, w)
    a = Add (h, b)
    r = Relu (a)
    y = Gemm (r, v, d)
}"""


def test_relative_steps_move_layers_without_quantizers_far_less():
    weights = {
        "gain": random(8) + 1,
        "shift": random(8),
        "w": random(8, 6),
        "b": random(6),
        "v": random(6, 3),
        "d": random(3),
    }
    x = random(16, 8, scale=1.0)
    qdq = insert(model(BESIDE, **weights), [{"x": x}], Config(ignore=[{"name": "Gemm"}]))
    trainer = Trainer(qdq, "mse", AdamW(lr=1e-3, relative=True))
    before = {name: array.copy() for name, array in trainer.parameters.items()}
    trainer.step({"x": x, "label": random(16, 3)})
    for name in weights:
        size = np.sqrt(np.mean(before[name] ** 2))
        share = 1e-3 if name in ("w", "b") else 1e-5
        step = np.abs(trainer.parameters[name] - before[name]).max()
        assert step == pytest.approx(share * size, rel=0.02), name
