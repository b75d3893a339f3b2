"""Formulas are written in the operator set of the model they go into; what they say must not depend on it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxqat import gradients
from tests.autodiff.rules.against_torch import model, normal

_IMAGE = "(float[n,c,h,w] x) => (float[n,c,h2,w2] y)"
_CASES = {
    "LSTM": (
        "(float[t,n,2] x, float[1,12,2] w, float[1,12,3] r, float[1,24] b, int32[2] n) => (float[t,d,n,k] y) "
        '{ y = LSTM <hidden_size=3, clip=5.0, direction="reverse"> (x, w, r, b, n) }',
        {"x": (4, 2, 2), "w": (1, 12, 2), "r": (1, 12, 3), "b": (1, 24)},
        {"n": np.array([4, 2], np.int32)},
    ),
    "GRU": (
        "(float[t,n,2] x, float[1,9,2] w, float[1,9,3] r) => (float[t,d,n,k] y) { y = GRU <hidden_size=3> (x, w, r) }",
        {"x": (4, 2, 2), "w": (1, 9, 2), "r": (1, 9, 3)},
        {},
    ),
    "Resize, cubic": (
        f'{_IMAGE} <float[4] s = {{1, 1, 2, 1.5}}> {{ y = Resize <mode="cubic"> (x, , s) }}',
        {"x": (1, 2, 4, 4)},
        {},
    ),
    "Resize, cropped": (
        f"{_IMAGE} <float[4] s = {{1, 1, 2, 1.5}}, float[8] roi = {{0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9}}> "
        '{ y = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (x, roi, s) }',
        {"x": (1, 2, 4, 4)},
        {},
    ),
    "Einsum": ('(float[3,3] x) => (float[3] y) { y = Einsum <equation="ii->i"> (x) }', {"x": (3, 3)}, {}),
    "DepthToSpace": (
        '(float[n,4,h,w] x) => (float[n,c,a,b] y) { y = DepthToSpace <blocksize=2, mode="CRD"> (x) }',
        {"x": (1, 4, 3, 3)},
        {},
    ),
    "Compress": (
        "(float[n,4] x) => (float[n,k] y) <bool[4] c = {0, 1, 0, 1}> { y = Compress <axis=1> (x, c) }",
        {"x": (2, 4)},
        {},
    ),
    "ReverseSequence": (
        "(float[n,4] x, int64[4] n) => (float[n,4] y) { y = ReverseSequence (x, n) }",
        {"x": (3, 4)},
        {"n": np.array([1, 2, 0, 3])},
    ),
    "Det": ("(float[3,3] x) => (float y) { y = Det (x) }", {"x": (3, 3)}, {}),
}


@pytest.mark.parametrize("opset", [13, 15, 18, 21])
@pytest.mark.parametrize(("text", "shapes", "others"), _CASES.values(), ids=_CASES.keys())
def test_gradients_are_the_same_in_every_operator_set(
    text: str, shapes: dict[str, tuple[int, ...]], others: dict[str, np.ndarray], opset: int
) -> None:
    feeds = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())} | others
    _, expected = gradients(model(text, 17), feeds, list(shapes))
    _, found = gradients(model(text, opset), feeds, list(shapes))
    for name in shapes:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
