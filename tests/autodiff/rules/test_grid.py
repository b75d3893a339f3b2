from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F  # noqa: N812

from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

_PADDINGS = ["zeros", "border", "reflection"]


def _grid(*shape: int) -> np.ndarray:
    """Positions from within the image to beyond its borders, none near a kink."""
    return np.random.default_rng(7).uniform(-1.6, 1.6, shape).astype(np.float32)


def _sampled(mode: str, padding: str, align: int) -> object:
    return lambda x, g: F.grid_sample(x, g, mode, padding, align_corners=bool(align))


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", _PADDINGS)
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_images_are_sampled_as_by_torch(mode: str, padding: str, align: int) -> None:
    attributes = f'mode="{mode}", padding_mode="{padding}", align_corners={align}'
    proto = model(
        f"(float[n,c,h,w] x, float[n,a,b,2] g) => (float[n,c,a,b] y) {{ y = GridSample <{attributes}> (x, g) }}"
    )
    feeds = {"x": normal(2, 3, 4, 5), "g": _grid(2, 3, 6, 2)}
    assert_matches_torch(proto, feeds, _sampled(mode, padding, align), tolerance=2e-4)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", _PADDINGS)
def test_volumes_are_sampled_as_by_torch(padding: str, align: int) -> None:
    attributes = f'mode="linear", padding_mode="{padding}", align_corners={align}'
    proto = model(
        f"(float[n,c,d,h,w] x, float[n,e,a,b,3] g) => (float[n,c,e,a,b] y) {{ y = GridSample <{attributes}> (x, g) }}",
        20,
    )
    feeds = {"x": normal(2, 2, 3, 4, 5), "g": _grid(2, 2, 3, 2, 3)}
    assert_matches_torch(proto, feeds, _sampled("bilinear", padding, align), tolerance=2e-4)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 3, 2, 4)], ids=["image", "volume"])
def test_affine_grids_are_torchs(size: tuple[int, ...], align: int) -> None:
    axes = len(size) - 2
    shape = ",".join("abcde"[: axes + 1])
    proto = model(
        f"(float[n,{axes},{axes + 1}] theta) => (float[{shape},{axes}] y) "
        f"<int64[{len(size)}] size = {{{','.join(map(str, size))}}}> {{ y = AffineGrid <align_corners={align}> (theta, size) }}",
        20,
    )
    assert_matches_torch(
        proto, {"theta": normal(2, axes, axes + 1)}, lambda theta: F.affine_grid(theta, list(size), bool(align))
    )
