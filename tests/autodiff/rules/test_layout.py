from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal


def test_depth_to_space_crd_is_torch_pixel_shuffle() -> None:
    proto = model('(float[n,8,h,w] x) => (float[n,2,a,b] y) { y = DepthToSpace <blocksize=2, mode="CRD"> (x) }')
    assert_matches_torch(proto, {"x": normal(2, 8, 3, 5)}, lambda x: F.pixel_shuffle(x, 2))


def test_depth_to_space_dcr_undoes_space_to_depth() -> None:
    proto = model(
        "(float[n,2,h,w] x) => (float[n,2,h,w] y) "
        "{ deep = SpaceToDepth <blocksize=2> (x) big = Mul (deep, deep) y = DepthToSpace <blocksize=2> (big) }"
    )
    assert_matches_torch(proto, {"x": normal(2, 2, 4, 6)}, lambda x: x * x)


@pytest.mark.parametrize(("upper", "k"), [(1, 0), (1, -1), (0, 0), (0, 2)])
def test_trilu_is_torch_triu_and_tril(upper: int, k: int) -> None:
    proto = model(f"(float[2,4,5] x) => (float[2,4,5] y) <int64 k = {{{k}}}> {{ y = Trilu <upper={upper}> (x, k) }}")
    function = torch.triu if upper else torch.tril
    assert_matches_torch(proto, {"x": normal(2, 4, 5)}, lambda x: function(x, k))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumsum_is_torch_cumsum(exclusive: int, reverse: int) -> None:
    proto = model(
        "(float[3,4] x) => (float[3,4] y) <int64 axis = {1}> "
        f"{{ y = CumSum <exclusive={exclusive}, reverse={reverse}> (x, axis) }}"
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        flipped = x.flip(1) if reverse else x
        total = torch.cumsum(flipped, 1) - (flipped if exclusive else 0)
        return total.flip(1) if reverse else total

    assert_matches_torch(proto, {"x": normal(3, 4)}, function)


def test_compress_scatters_its_gradient_along_the_axis() -> None:
    proto = model("(float[3,4,2] x) => (float[3,m,2] y) <bool[3] kept = {0, 1, 1}> { y = Compress <axis=1> (x, kept) }")
    assert_matches_torch(proto, {"x": normal(3, 4, 2)}, lambda x: x[:, 1:3])


def test_compress_without_axis_scatters_into_the_flattened_input() -> None:
    proto = model("(float[2,3] x) => (float[m] y) <bool[5] kept = {0, 1, 0, 0, 1}> { y = Compress (x, kept) }")
    assert_matches_torch(proto, {"x": normal(2, 3)}, lambda x: x.reshape(-1)[[1, 4]])


def test_col2im_is_torch_fold() -> None:
    proto = model(
        "(float[2,12,20] x) => (float[2,2,h,w] y) <int64[2] size = {5, 5}, int64[2] block = {2, 3}> "
        "{ y = Col2Im <pads=[1,1,0,1], dilations=[2,1], strides=[1,1]> (x, size, block) }",
        18,
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.fold(x, (6, 7), (2, 3), dilation=(2, 1))[:, :, 1:, 1:-1]

    assert_matches_torch(proto, {"x": normal(2, 12, 20)}, function)


def test_reverse_sequence_accepts_empty_sequences() -> None:
    proto = model("(float[3,2] x, int64[2] n) => (float[3,2] y) { y = ReverseSequence (x, n) }")
    feeds = {"x": normal(3, 2), "n": np.array([0, 2])}
    assert_matches_torch(
        proto, feeds, lambda x, n: torch.stack([x[:, 0], torch.cat([x[:2, 1].flip(0), x[2:, 1]])], 1), ["x"]
    )


def test_center_crop_pad_gives_the_cropped_part_no_gradient() -> None:
    proto = model(
        "(float[5,3] x) => (float[2,6] y) <int64[2] size = {2, 6}> { y = CenterCropPad <axes=[0,1]> (x, size) }", 18
    )
    assert_matches_torch(proto, {"x": normal(5, 3)}, lambda x: F.pad(x[1:3], (1, 2)))


def test_one_hot_sums_the_gradient_of_its_two_values() -> None:
    proto = model(
        "(int64[4] i, float[2] values) => (float[4,3] y) <int64 depth = {3}> { y = OneHot (i, depth, values) }"
    )
    feeds = {"i": np.array([0, 2, 1, 1]), "values": normal(2)}

    def function(i: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        hot = F.one_hot(i, 3)
        return values[1] * hot + values[0] * (1 - hot)

    assert_matches_torch(proto, feeds, function, ["values"])


def test_range_has_gradients_for_start_and_delta() -> None:
    proto = model(
        "(float start, float delta) => (float[m] y) <float limit = {5.0}> { y = Range (start, limit, delta) }"
    )
    feeds = {"start": np.float32(0.5), "delta": np.float32(1.3)}
    assert_matches_torch(proto, feeds, lambda start, delta: start + delta * torch.arange(4))


def test_max_unpool_gathers_its_gradient() -> None:
    proto = model(
        "(float[1,1,4,4] x) => (float[1,1,4,4] y) { p, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) "
        "q = Mul (p, p) y = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (q, i) }"
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(pooled * pooled, indices, 2)

    assert_matches_torch(proto, {"x": normal(1, 1, 4, 4)}, function)


def test_max_unpool_of_overlapping_windows_is_refused() -> None:
    proto = model(
        "(float[1,1,2,2] x, int64[1,1,2,2] i) => (float[a,b,c,d] y) { y = MaxUnpool <kernel_shape=[2,2]> (x, i) }"
    )
    with pytest.raises(UnsupportedModelError, match="windows overlap"):
        gradients(proto, {"x": normal(1, 1, 2, 2), "i": np.arange(4).reshape(1, 1, 2, 2)}, ["x"])


def test_a_gradient_wanted_for_the_second_input_alone_is_that_one() -> None:
    proto = model("(float[4] x, float[4] slope) => (float[4] y) { y = PRelu (x, slope) }")
    feeds = {"x": normal(4), "slope": normal(4, seed=1)}
    assert_matches_torch(proto, feeds, lambda x, slope: torch.where(x < 0, slope * x, x), ["slope"])
