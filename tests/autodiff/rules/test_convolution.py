import numpy as np
import pytest
import torch
from torch.nn import functional

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

SHAPES = pytest.mark.parametrize("shape", ["2,4,9,7", "N,C,H,W"], ids=["fixed", "dynamic"])
X, BIAS = normal(2, 4, 9, 7), normal(6, seed=2)


def same_pads(mode, stride, kernel, sizes=(7, 9)):
    pads = []
    for size in sizes:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2] if mode == "SAME_UPPER" else [total - total // 2, total // 2]
    return pads


@SHAPES
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (2, 4), (3, 2)])
def test_convolution_with_automatic_padding(shape, mode, stride, kernel):
    text = f"(float[{shape}] x, float[6,4,{kernel},{kernel}] w, float[6] b) => (float[n,c,h,v] y)"
    proto = model(f'{text} {{ e = Tanh (x) y = Conv <auto_pad="{mode}", strides=[{stride},{stride}]> (e, w, b) }}')

    def expected(x, w, b):
        return functional.conv2d(functional.pad(torch.tanh(x), same_pads(mode, stride, kernel)), w, b, stride)

    feeds = {"x": X, "w": normal(6, 4, kernel, kernel, seed=1), "b": BIAS}
    assert_matches_torch(proto, feeds, expected, tolerance=1e-4)


RANKS = {
    1: (functional.conv1d, functional.conv_transpose1d),
    2: (functional.conv2d, functional.conv_transpose2d),
    3: (functional.conv3d, functional.conv_transpose3d),
}


@pytest.mark.parametrize("rank", RANKS)
def test_convolution_of_every_rank(rank):
    names = "hvu"[:rank]
    attributes = f"strides={[2] * rank}, pads={[1] * 2 * rank}, group=2"
    text = f"(float[n,c,{','.join(names)}] x, float[6,2,{','.join('3' * rank)}] w) => (float[a,b,{','.join('ijk'[:rank])}] y)"
    proto = model(f"{text} {{ y = Conv <{attributes}> (x, w) }}")
    feeds = {"x": normal(2, 4, *(7, 6, 5)[:rank]), "w": normal(6, 2, *[3] * rank, seed=1)}
    convolve = RANKS[rank][0]
    assert_matches_torch(proto, feeds, lambda x, w: convolve(x, w, stride=2, padding=1, groups=2), tolerance=1e-4)


#: Shapes of data and weight, and what a node says besides: the gradient of the weight is written in a way of its own for each.
WEIGHTS = {
    "few positions": ((2, 4, 5, 4), (13, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "many outputs": ((2, 4, 13, 12), (15, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "few outputs": ((2, 4, 13, 12), (3, 4, 3, 3), {}),
    "window of one": ((2, 4, 13, 12), (3, 4, 1, 1), {}),
    "window of one, stride": ((2, 4, 26, 25), (9, 4, 1, 1), {"strides": [2, 2]}),
    "window of one, few positions": ((2, 4, 5, 4), (3, 4, 1, 1), {"pads": [1, 1, 1, 1]}),
    "dilated rows, uneven padding": ((2, 4, 13, 12), (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    "stride of rows": ((2, 4, 14, 12), (6, 4, 3, 2), {"strides": [3, 1]}),
    "stride of columns": ((2, 4, 13, 12), (6, 4, 2, 3), {"strides": [1, 2], "dilations": [1, 2]}),
    "one axis": ((2, 4, 150), (3, 4, 5), {"pads": [2, 2]}),
    "three axes": ((2, 3, 6, 7, 5), (4, 3, 2, 3, 2), {"strides": [1, 2, 1], "pads": [1, 0, 0, 0, 1, 0]}),
}


@pytest.mark.parametrize("known", [True, False], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_of_convolutions_of_all_geometries(name, known):
    data, weight, attributes = WEIGHTS[name]
    rank = len(data) - 2
    sizes = ",".join(map(str, data)) if known else ",".join("nchvu"[: rank + 2])
    text = f"(float[{sizes}] x, float[{','.join(map(str, weight))}] w) => (float[{','.join('abijk'[: rank + 2])}] y)"
    stated = ", ".join(f"{key}={value}" for key, value in attributes.items())
    proto = model(f"{text} {{ y = Conv{f' <{stated}>' if stated else ''} (x, w) }}")
    pads = attributes.get("pads", [0] * 2 * rank)
    around = [pads[axis + end] for axis in reversed(range(rank)) for end in (0, rank)]
    options = {"stride": attributes.get("strides", 1), "dilation": attributes.get("dilations", 1)}
    feeds = {"x": normal(*data), "w": normal(*weight, seed=1)}
    assert_matches_torch(
        proto, feeds, lambda x, w: RANKS[rank][0](functional.pad(x, around), w, **options), tolerance=1e-4
    )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ({}, {}),
        ({"strides": 2}, {"stride": 2}),
        ({"strides": 3, "pads": 1, "output_padding": 2}, {"stride": 3, "padding": 1, "output_padding": 2}),
        ({"dilations": 2, "pads": 2}, {"dilation": 2, "padding": 2}),
        ({"strides": 2, "group": 2, "pads": 1}, {"stride": 2, "groups": 2, "padding": 1}),
    ],
    ids=["plain", "strides", "output padding", "dilations", "groups"],
)
def test_transposed_convolution(rank, attributes, options):
    written = {
        name: value if name == "group" else [value] * (2 * rank if name == "pads" else rank)
        for name, value in attributes.items()
    }
    stated = ", ".join(f"{name}={value}" for name, value in written.items())
    names = ",".join("hvu"[:rank])
    text = f"(float[n,c,{names}] x, float[4,3,{','.join('3' * rank)}] w, float[m] b) => (float[p,q,{','.join('ijk'[:rank])}] y)"
    proto = model(f"{text} {{ y = ConvTranspose{f' <{stated}>' if stated else ''} (x, w, b) }}")
    feeds = {
        "x": normal(2, 4, *(5, 4, 3)[:rank]),
        "w": normal(4, 3, *[3] * rank, seed=1),
        "b": normal(3 * attributes.get("group", 1), seed=2),
    }
    convolve = RANKS[rank][1]
    assert_matches_torch(proto, feeds, lambda x, w, b: convolve(x, w, b, **options), tolerance=1e-4)


@SHAPES
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_transposed_convolution_with_automatic_padding(shape, mode):
    text = f"(float[{shape}] x, float[4,3,4,3] w) => (float[n,c,h,v] y)"
    proto = model(f'{text} {{ y = ConvTranspose <auto_pad="{mode}", strides=[2,2]> (x, w) }}')

    def expected(x, w):
        whole = functional.conv_transpose2d(x, w, stride=2)
        top, left = (1, 0) if mode == "SAME_UPPER" else (1, 1)
        return whole[:, :, top : top + 18, left : left + 14]

    assert_matches_torch(proto, {"x": X, "w": normal(4, 3, 4, 3, seed=1)}, expected, tolerance=1e-4)


def test_transposed_convolution_to_a_stated_shape():
    text = "(float[2,4,9,7] x, float[4,3,3,3] w) => (float[n,c,h,v] y)"
    proto = model(f"{text} {{ y = ConvTranspose <strides=[2,2], output_shape=[18,15]> (x, w) }}")

    def expected(x, w):
        return functional.conv_transpose2d(x, w, stride=2)[:, :, 1:, :]

    assert_matches_torch(proto, {"x": X, "w": normal(4, 3, 3, 3, seed=1)}, expected, tolerance=1e-4)


def test_a_stated_shape_of_an_input_of_unknown_size_is_refused():
    text = "(float[2,4,H,W] x, float[4,3,3,3] w) => (float[n,c,h,v] y)"
    proto = model(f"{text} {{ [up] y = ConvTranspose <strides=[2,2], output_shape=[18,15]> (x, w) }}")
    with pytest.raises(UnsupportedModelError, match=r"ConvTranspose 'up'.*state pads"):
        gradients(proto, {"x": X, "w": np.zeros((4, 3, 3, 3), np.float32)}, ["x"])
