from __future__ import annotations

import pytest
import torch

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal


def _pairs(spectrum: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(spectrum)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("inverse", [0, 1])
def test_complex_transforms_are_torchs(opset: int, inverse: int) -> None:
    text = f"axis=1, inverse={inverse}> (x)" if opset == 17 else f"inverse={inverse}> (x, , axis)"
    proto = model(f"(float[n,6,3,2] x) => (float[n,k,m,2] y) <int64 axis = {{1}}> {{ y = DFT <{text} }}", opset)
    transform = torch.fft.ifft if inverse else torch.fft.fft
    assert_matches_torch(
        proto, {"x": normal(2, 6, 3, 2)}, lambda x: _pairs(transform(torch.view_as_complex(x), dim=1)), tolerance=1e-4
    )


@pytest.mark.parametrize("length", [5, 8, 11], ids=["cut", "as long as x", "padded"])
@pytest.mark.parametrize("onesided", [0, 1])
def test_real_transforms_of_any_length_are_torchs(length: int, onesided: int) -> None:
    proto = model(
        f"(float[n,8,1] x) => (float[n,k,2] y) <int64 length = {{{length}}}> "
        f"{{ y = DFT <axis=1, onesided={onesided}> (x, length) }}"
    )
    transform = torch.fft.rfft if onesided else torch.fft.fft
    assert_matches_torch(
        proto, {"x": normal(3, 8, 1)}, lambda x: _pairs(transform(x[..., 0], n=length, dim=1)), tolerance=1e-4
    )


@pytest.mark.parametrize("opset", [17, 21])
def test_short_time_spectra_are_torchs(opset: int) -> None:
    proto = model(
        "(float[n,t,1] x, float[8] window) => (float[n,f,k,2] y) <int64 step = {4}> { y = STFT (x, step, window) }",
        opset,
    )

    def function(x: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        return _pairs(torch.fft.rfft(x[..., 0].unfold(1, 8, 4) * window, dim=2))

    assert_matches_torch(proto, {"x": normal(2, 22, 1), "window": normal(8, seed=1)}, function, tolerance=1e-4)


def test_a_one_sided_inverse_is_refused() -> None:
    proto = model("(float[n,5,2] x) => (float[n,k,m] y) { y = DFT <axis=1, inverse=1, onesided=1> (x) }")
    with pytest.raises(UnsupportedModelError, match="one-sided inverse"):
        gradients(proto, {"x": normal(1, 5, 2)}, ["x"])
