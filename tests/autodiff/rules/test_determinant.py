from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_determinants_of_a_batch_are_torchs(n: int) -> None:
    proto = model(f"(float[a,b,{n},{n}] x) => (float[a,b] y) {{ y = Det (x) }}")
    assert_matches_torch(proto, {"x": normal(2, 3, n, n)}, lambda x: torch.linalg.det(x), tolerance=1e-4)


def test_a_singular_matrix_has_a_gradient() -> None:
    proto = model("(float[2,2] x) => (float y) { y = Det (x) }")
    _, found = gradients(proto, {"x": np.array([[1, 2], [2, 4]], np.float32)}, ["x"])
    np.testing.assert_array_equal(found["x"], [[4, -2], [-2, 1]])


def test_matrices_of_unknown_size_are_refused() -> None:
    proto = model("(float[n,n] x) => (float y) { y = Det (x) }")
    with pytest.raises(UnsupportedModelError, match="at most 8 rows"):
        gradients(proto, {"x": normal(2, 2)}, ["x"])
