import numpy as np
import pytest
import torch
from torch.nn import functional

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

X = normal(3, 6, 5, 4)
CHANNELS = {"s": normal(6, seed=1), "b": normal(6, seed=2)}
SHAPES = pytest.mark.parametrize("shape", ["3,6,5,4", "N,C,H,W"], ids=["fixed", "dynamic"])
OUTPUT = "float[n,c,h,w] y"


@SHAPES
@pytest.mark.parametrize("wrt", [["x"], ["b"], ["x", "s", "b", "m", "v"]], ids=" ".join)
def test_batch_normalization_for_inference(shape, wrt):
    channels = ", ".join(f"float[6] {name}" for name in "sbmv")
    proto = model(
        f"(float[{shape}] x, {channels}) => ({OUTPUT}) {{ y = BatchNormalization <epsilon=0.01> (x, s, b, m, v) }}"
    )
    feeds = {"x": X, **CHANNELS, "m": normal(6, seed=3), "v": np.abs(normal(6, seed=4)) + 0.5}

    def expected(x, s, b, m, v):
        return (
            functional.batch_norm(x, m, v, s, b, eps=0.01)
            if wrt != ["x", "s", "b", "m", "v"]
            else written(x, s, b, m, v)
        )

    def written(x, s, b, m, v):
        s, b, m, v = (t[:, None, None] for t in (s, b, m, v))
        return (x - m) / torch.sqrt(v + 0.01) * s + b

    assert_matches_torch(proto, feeds, expected, wrt, tolerance=1e-4)


def test_batch_normalization_in_training_mode_is_refused():
    channels = ", ".join(f"float[6] {name}" for name in "sbmv")
    proto = model(
        f"(float[N,6,5,4] x, {channels}) => ({OUTPUT}) {{ [bn] y, a, c = BatchNormalization <training_mode=1> (x, s, b, m, v) }}"
    )
    feeds = {"x": X, **CHANNELS, "m": normal(6), "v": np.ones(6, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"BatchNormalization 'bn'.*training mode"):
        gradients(proto, feeds, ["x"])


@SHAPES
def test_instance_normalization(shape):
    proto = model(f"(float[{shape}] x, float[6] s, float[6] b) => ({OUTPUT}) {{ y = InstanceNormalization (x, s, b) }}")
    expected = lambda x, s, b: functional.instance_norm(x, weight=s, bias=b)  # noqa: E731
    assert_matches_torch(proto, {"x": X, **CHANNELS}, expected, tolerance=1e-4)


@SHAPES
def test_group_normalization(shape):
    text = f"(float[{shape}] x, float[6] s, float[6] b) => ({OUTPUT})"
    proto = model(f"{text} {{ y = GroupNormalization <num_groups=3> (x, s, b) }}", opset=21)
    assert_matches_torch(proto, {"x": X, **CHANNELS}, lambda x, s, b: functional.group_norm(x, 3, s, b), tolerance=1e-4)


@SHAPES
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(shape, axis, bias):
    dims = X.shape[axis:]
    sizes = ",".join(map(str, dims))
    b = f", float[{sizes}] b" if bias else ""
    text = f"(float[{shape}] x, float[{sizes}] s{b}) => ({OUTPUT})"
    proto = model(f"{text} {{ y = LayerNormalization <axis={axis}> (x, s{', b' if bias else ''}) }}")
    feeds = {"x": X, "s": normal(*dims, seed=1)} | ({"b": normal(*dims, seed=2)} if bias else {})
    assert_matches_torch(proto, feeds, lambda x, s, b=None: functional.layer_norm(x, dims, s, b), tolerance=1e-4)


@pytest.mark.parametrize("used", ["y m r", "m", "r", "m r"])
def test_layer_normalization_whose_statistics_are_used(used):
    outputs = ", ".join(f"float[n,c,h,w] {name}" for name in used.split())
    proto = model(
        f"(float[3,6,5,4] x, float[4] s, float[4] b) => ({outputs}) {{ y, m, r = LayerNormalization (x, s, b) }}"
    )

    def expected(x, s, b):
        m = x.mean(-1, keepdim=True)
        r = (((x - m) ** 2).mean(-1, keepdim=True) + 1e-5) ** -0.5
        whole = {"y": (x - m) * r * s + b, "m": m, "r": r}
        zero = 0 * (s.sum() + b.sum())
        return [whole[name] + zero for name in used.split()]

    assert_matches_torch(proto, {"x": X, "s": normal(4, seed=1), "b": normal(4, seed=2)}, expected, tolerance=2e-4)


def test_root_mean_square_normalization_as_exporters_write_it():
    body = """{
        q = Pow (x, two)
        a = ReduceMean <axes=[-1]> (q)
        e = Add (a, eps)
        d = Sqrt (e)
        n = Div (x, d)
        y = Mul (n, s)
    }"""
    proto = model(f"(float[N,C,H,4] x, float[4] s, float two, float eps) => ({OUTPUT}) {body}")
    feeds = {"x": X, "s": normal(4, seed=1), "two": np.float32(2), "eps": np.float32(1e-6)}
    expected = lambda x, s, two, eps: functional.rms_norm(x, (4,), s, 1e-6)  # noqa: E731
    assert_matches_torch(proto, feeds, expected, ["x", "s"], tolerance=1e-4)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [1, -1])
def test_lp_normalization(p, axis):
    proto = model(f"(float[N,C,H,W] x) => ({OUTPUT}) {{ y = LpNormalization <p={p}, axis={axis}> (x) }}")
    expected = lambda x: functional.normalize(x, p=p, dim=axis)  # noqa: E731
    assert_matches_torch(proto, {"x": X}, expected, tolerance=1e-4)


@pytest.mark.parametrize("axes", [[0, 2, 3], [2, 3], [1]], ids=str)
def test_mean_variance_normalization(axes):
    proto = model(f"(float[N,C,H,W] x) => ({OUTPUT}) {{ y = MeanVarianceNormalization <axes={axes}> (x) }}")

    def expected(x):
        return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True, correction=0)

    assert_matches_torch(proto, {"x": X}, expected, tolerance=1e-4)


@SHAPES
@pytest.mark.parametrize("size", [3, 5])
def test_local_response_normalization(shape, size):
    attributes = f"size={size}, alpha=0.3, beta=0.6, bias=1.5"
    proto = model(f"(float[{shape}] x) => ({OUTPUT}) {{ y = LRN <{attributes}> (x) }}")
    expected = lambda x: functional.local_response_norm(x, size, alpha=0.3, beta=0.6, k=1.5)  # noqa: E731
    assert_matches_torch(proto, {"x": X}, expected, tolerance=1e-4)
