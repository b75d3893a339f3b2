import numpy as np
import pytest
import torch

from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

X = normal(4, 5, 6)
UNKNOWN = "float[p,q,r] y"


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_padding_in_every_mode(mode, dynamic):
    pads = np.array([0, 1, 2, 0, 3, 1])
    shape = "A,B,C" if dynamic else "4,5,6"
    proto = model(f'(float[{shape}] x, int64[6] pads) => ({UNKNOWN}) {{ y = Pad <mode="{mode}"> (x, pads) }}', 19)
    names = {"edge": "replicate", "wrap": "circular"}

    def expected(x, pads):
        return torch.nn.functional.pad(x[None], (2, 1, 1, 3), names.get(mode, mode))[0]

    assert_matches_torch(proto, {"x": X, "pads": pads}, expected, ["x"])


def test_padding_with_a_value_along_stated_axes_and_cropping():
    text = f"(float[A,B,C] x, int64[4] pads, float v, int64[2] axes) => ({UNKNOWN})"
    proto = model(f"{text} {{ y = Pad (x, pads, v, axes) }}", 18)
    feeds = {"x": X, "pads": np.array([2, -1, 1, 3]), "v": np.array(0.7, np.float32), "axes": np.array([-3, 1])}

    def expected(x, pads, v, axes):
        whole = torch.zeros(7, 7, 6)
        whole[2:6, 0:4] = 1
        inside = torch.zeros(7, 7, 6).index_put((torch.arange(2, 6)[:, None], torch.arange(4)[None]), x[:, 1:])
        return inside + (1 - whole) * v

    assert_matches_torch(proto, feeds, expected, ["x", "v"])


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(1, 4, 1), (-3, 2**31, 2), (-1, -(2**31), -1), (4, 0, -2), (2**31, -(2**63), -1)],
    ids=str,
)
@pytest.mark.parametrize("known", [True, False], ids=["constant", "computed"])
def test_slices_forward_and_backward(start, end, step, known):
    names = {"s": [start], "e": [end], "a": [1], "t": [step]}
    constants = " ".join(f"{name} = Constant <value_ints={value}> ()" for name, value in names.items()) if known else ""
    inputs = "" if known else "".join(f", int64[1] {name}" for name in names)
    proto = model(f"(float[A,B,C] x{inputs}) => ({UNKNOWN}) {{ {constants} y = Slice (x, s, e, a, t) }}")
    feeds = {"x": X} | ({} if known else {name: np.array(value) for name, value in names.items()})
    taken = np.arange(5)[slice(max(start, -(2**40)), None if end < -(2**30) else end, step)].copy()
    assert_matches_torch(proto, feeds, lambda x, **_: x[:, taken], ["x"])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_with_negative_and_repeated_indices(axis):
    indices = np.array([[0, -1], [-2, 0]])
    proto = model(f"(float[A,B,C] x, int64[2,2] i) => (float[p,q,r,s] y) {{ y = Gather <axis={axis}> (x, i) }}")

    def expected(x, i):
        flat = x.index_select(axis, i.reshape(-1) % x.shape[axis])
        return flat.unflatten(axis, (2, 2))

    assert_matches_torch(proto, {"x": X, "i": indices}, expected, ["x"])


def test_gather_elements_with_negative_and_repeated_indices():
    indices = np.random.default_rng(0).integers(-5, 5, (4, 3, 6))
    proto = model(f"(float[A,B,C] x, int64[4,3,6] i) => ({UNKNOWN}) {{ y = GatherElements <axis=1> (x, i) }}")
    assert_matches_torch(proto, {"x": X, "i": indices}, lambda x, i: torch.gather(x, 1, i % 5), ["x"])


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@pytest.mark.parametrize("zeros", [False, True], ids=["", "zeros"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_of_duplicates(reduction, zeros):
    text = f"(float[A,B,C] x, int64[4,7,6] i, float[4,7,6] u) => ({UNKNOWN})"
    proto = model(f'{text} {{ y = ScatterElements <axis=1, reduction="{reduction}"> (x, i, u) }}', 18)
    feeds = {"x": X.copy(), "i": np.random.default_rng(0).integers(0, 5, (4, 7, 6)), "u": normal(4, 7, 6, seed=1)}
    if zeros:
        feeds["x"][0] = 0
        feeds["u"][:2, ::3] = 0

    def expected(x, i, u):
        if reduction != "mul":
            return x.scatter_reduce(1, i, u, REDUCTIONS[reduction])
        factors = torch.where(torch.nn.functional.one_hot(i, 5).movedim(-1, 1).bool(), u[:, None], 1.0)
        return x * factors.prod(2)

    assert_matches_torch(proto, feeds, expected, ["x", "u"])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_of_rows(reduction):
    text = f"(float[A,B,C] x, int64[5,1] i, float[5,5,6] u) => ({UNKNOWN})"
    proto = model(f'{text} {{ y = ScatterND <reduction="{reduction}"> (x, i, u) }}', 18)
    feeds = {"x": X, "i": np.array([[0], [2], [0], [3], [0]]), "u": normal(5, 5, 6, seed=1)}

    def expected(x, i, u):
        index = i[:, :, None].expand(5, 5, 6)
        return x.scatter_reduce(0, index, u, REDUCTIONS[reduction])

    assert_matches_torch(proto, feeds, expected, ["x", "u"])


def test_scatter_without_reduction():
    text = f"(float[A,B,C] x, int64[4,2,6] i, float[4,2,6] u) => ({UNKNOWN})"
    proto = model(f"{text} {{ y = ScatterElements <axis=1> (x, i, u) }}", 18)
    feeds = {"x": X, "i": np.tile(np.array([[3], [1]]), (4, 1, 6)), "u": normal(4, 2, 6, seed=1)}
    assert_matches_torch(proto, feeds, lambda x, i, u: x.scatter(1, i, u), ["x", "u"])


def test_the_values_of_a_top_k_and_its_unused_rest():
    text = f"(float[A,B,C] x) => ({UNKNOWN})"
    proto = model(f"{text} {{ k = Constant <value_ints=[2]> () y, i = TopK <axis=1> (x, k) }}")
    assert_matches_torch(proto, {"x": X}, lambda x: torch.topk(x, 2, 1)[0])
