from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F  # noqa: N812

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

_DYNAMIC = "float[n,c,h,w]"


def _resize(attributes: str, scales: str, shape: str = _DYNAMIC, opset: int = 19) -> object:
    return model(
        f"({shape} x) => (float[n,c,h2,w2] y) <float[4] scales = {{{scales}}}> {{ y = Resize <{attributes}> (x,,scales) }}",
        opset,
    )


@pytest.mark.parametrize("shape", [_DYNAMIC, "float[2,3,5,4]"], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("attributes", "mode"),
    [
        ('mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"', "nearest"),
        ('mode="nearest", coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor"', "nearest"),
        ('mode="linear", coordinate_transformation_mode="pytorch_half_pixel"', "bilinear"),
        ('mode="cubic", cubic_coeff_a=-0.75, coordinate_transformation_mode="pytorch_half_pixel"', "bicubic"),
    ],
    ids=["nearest as PyTorch exports it", "nearest by default", "bilinear", "bicubic"],
)
@pytest.mark.parametrize("factor", [2, 3])
def test_upscaling_by_a_whole_number_is_torch_interpolate(shape: str, attributes: str, mode: str, factor: int) -> None:
    proto = _resize(attributes, f"1, 1, {factor}, {factor}", shape)
    assert_matches_torch(
        proto, {"x": normal(2, 3, 5, 4)}, lambda x: F.interpolate(x, scale_factor=factor, mode=mode), tolerance=1e-4
    )


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(7, 9), (3, 2), (5, 8), (4, 13)], ids=str)
def test_resizing_to_any_size_is_torch_interpolate(mode: str, size: tuple[int, int]) -> None:
    coordinates = (
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
        if mode == "nearest"
        else 'coordinate_transformation_mode="pytorch_half_pixel", cubic_coeff_a=-0.75'
    )
    name = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    proto = model(
        f"({_DYNAMIC} x) => (float[n,c,h2,w2] y) <int64[2] spatial = {{{size[0]}, {size[1]}}}, int64[2] outer = {{0, 1}}> "
        f"{{ s = Shape (x) front = Gather (s, outer) sizes = Concat <axis=0> (front, spatial) "
        f'y = Resize <mode="{name}", {coordinates}> (x,,,sizes) }}'
    )
    assert_matches_torch(
        proto, {"x": normal(2, 3, 5, 4)}, lambda x: F.interpolate(x, size=size, mode=mode), tolerance=1e-4
    )


@pytest.mark.parametrize(("name", "mode"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_aligned_corners_are_torch_aligned_corners(name: str, mode: str) -> None:
    proto = _resize(f'mode="{name}", cubic_coeff_a=-0.75, coordinate_transformation_mode="align_corners"', "1, 1, 2, 3")
    assert_matches_torch(
        proto,
        {"x": normal(2, 3, 5, 4)},
        lambda x: F.interpolate(x, size=(10, 12), mode=mode, align_corners=True),
        tolerance=1e-4,
    )


@pytest.mark.parametrize("name", ["linear", "cubic"])
def test_antialiased_downscaling_is_torch_antialias(name: str) -> None:
    attributes = f'mode="{name}", antialias=1, axes=[2,3], exclude_outside=1, cubic_coeff_a=-0.5'
    proto = model(
        f"({_DYNAMIC} x) => (float[n,c,h2,w2] y) <int64[2] sizes = {{4, 3}}> {{ y = Resize <{attributes}> (x,,,sizes) }}",
        19,
    )
    assert_matches_torch(
        proto,
        {"x": normal(1, 2, 9, 8)},
        lambda x: F.interpolate(x, size=(4, 3), mode="bi" + name, antialias=True),
        tolerance=1e-4,
    )


def test_volumes_are_resized_along_three_axes() -> None:
    proto = model(
        "(float[n,c,d,h,w] x) => (float[n,c,d2,h2,w2] y) <float[5] scales = {1, 1, 2, 1.5, 2}> "
        '{ y = Resize <mode="linear"> (x,,scales) }',
        19,
    )
    assert_matches_torch(
        proto,
        {"x": normal(1, 2, 3, 4, 2)},
        lambda x: F.interpolate(x, scale_factor=(2, 1.5, 2), mode="trilinear"),
        tolerance=1e-4,
    )


def test_channels_last_images_are_resized_along_their_own_axes() -> None:
    proto = _resize('mode="linear", coordinate_transformation_mode="half_pixel"', "1, 2, 2, 1")
    assert_matches_torch(
        proto,
        {"x": normal(2, 3, 4, 5)},
        lambda x: F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear").permute(0, 2, 3, 1),
        tolerance=1e-4,
    )


def test_upsample_of_an_old_model_is_differentiated_after_conversion() -> None:
    proto = model(
        '(float[1,2,3,4] x) => (float[1,2,6,12] y) <float[4] s = {1, 1, 2, 3}> { y = Upsample <mode="nearest"> (x, s) }',
        9,
    )
    assert_matches_torch(proto, {"x": normal(1, 2, 3, 4)}, lambda x: F.interpolate(x, size=(6, 12)))


def test_aligned_corners_with_a_fractional_scale_are_refused() -> None:
    proto = _resize('mode="linear", coordinate_transformation_mode="align_corners"', "1, 1, 1.5, 1.5")
    with pytest.raises(UnsupportedModelError, match="fractional scale"):
        gradients(proto, {"x": normal(1, 1, 3, 3)}, ["x"])


def test_scales_that_depend_on_a_parameter_are_refused() -> None:
    proto = model(f"({_DYNAMIC} x, float[4] s) => (float[n,c,h2,w2] y) {{ y = Resize (x,,s) }}")
    feeds = {"x": normal(1, 1, 2, 2), "s": np.array([1, 1, 2, 2], np.float32)}
    with pytest.raises(UnsupportedModelError, match="no gradient for its input 2"):
        gradients(proto, feeds, ["s"])
    assert gradients(proto, feeds, ["x"])[1]["x"].sum() == 16


def test_a_region_that_onnx_runtime_ignores_is_refused() -> None:
    proto = model(
        f"({_DYNAMIC} x) => (float[n,c,h2,w2] y) <float[4] s = {{1, 1, 1, 2}}, float[8] roi = {{0, 0, 0.2, 0.1, 1, 1, 1, 1}}> "
        '{ y = Resize <coordinate_transformation_mode="tf_crop_and_resize"> (x, roi, s) }'
    )
    with pytest.raises(UnsupportedModelError, match="ignores the region of interest"):
        gradients(proto, {"x": normal(1, 1, 4, 4)}, ["x"])


def test_scales_that_round_to_the_same_shape_copy_as_onnx_runtime_does() -> None:
    proto = model(
        f'({_DYNAMIC} x) => (float[n,c,h2,w2] y) <float[4] s = {{1, 1, 1.3, 1.2}}> {{ y = Resize <mode="cubic"> (x, , s) }}'
    )
    assert_matches_torch(proto, {"x": normal(1, 2, 3, 4)}, lambda x: x * 1.0)


def _random_resize(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[str, str]:
    """Attributes and the inputs after x, with their initializers, of a Resize of the last two of four axes."""
    mode = str(rng.choice(["nearest", "linear", "cubic"]))
    symmetric = ["half_pixel_symmetric"] if mode != "nearest" else []
    coordinates = str(rng.choice(["half_pixel", "pytorch_half_pixel", "asymmetric", *symmetric]))
    attributes = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"'
    if mode == "nearest":
        attributes += f', nearest_mode="{rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])}"'
    elif rng.random() < 0.4:
        attributes += ", antialias=1"
    if mode == "cubic" and rng.random() < 0.5:
        attributes += ", exclude_outside=1"
    if rng.random() < 0.5:
        wanted = ", ".join(map(str, (*shape[:2], *rng.integers(1, 10, 2))))
        return attributes, f"<int64[4] sizes = {{{wanted}}}> {{ y = Resize <{attributes}> (x, , , sizes) }}"
    factors = ", ".join(f"{factor}" for factor in (1.0, 1.0, *rng.choice([1, 2, 3, 1.5, 0.7, 1.3, 2.25], 2)))
    return attributes, f"<float[4] scales = {{{factors}}}> {{ y = Resize <{attributes}> (x, , scales) }}"


@pytest.mark.parametrize("seed", range(40))
def test_the_gradient_is_the_transpose_of_what_onnx_runtime_computes(seed: int) -> None:
    """Resize is linear: for any v and cotangent c, c·resize(v) = gradient(c)·v."""
    rng = np.random.default_rng(seed)
    shape = (2, 1, *(int(side) for side in rng.integers(2, 7, 2)))
    attributes, text = _random_resize(rng, shape)
    proto = model(f"({_DYNAMIC} x) => (float[n,c,h2,w2] y) {text}", 19)
    v = rng.normal(size=shape).astype(np.float32)
    y = gradients(proto, {"x": v}, ["x"])[0]["y"]
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    gradient = gradients(proto, {"x": v}, ["x"], {"y": cotangent})[1]["x"]
    np.testing.assert_allclose(np.vdot(gradient, v), np.vdot(cotangent, y), rtol=1e-4, atol=1e-4, err_msg=attributes)
