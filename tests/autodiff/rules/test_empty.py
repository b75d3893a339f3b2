"""Tensors without elements: computed, or refused where ONNX Runtime would crash."""

from __future__ import annotations

import numpy as np
import pytest

from onnxqat import gradients
from onnxqat.errors import InputError
from tests.autodiff.rules.against_torch import model

_FATAL = {
    "Einsum": '(float[n,4] x) => (float[n,n2] y) { y = Einsum <equation="ij,kj->ik"> (x, x) }',
    "GRU": "(float[3,n,2] x) => (float[a,b,c,d] y) <float[1,3,2] w = {1,1,1,1,1,1}, float[1,3,1] r = {1,1,1}> "
    "{ y = GRU <hidden_size=1> (x, w, r) }",
    "LSTM": "(float[3,n,2] x) => (float[a,b,c,d] y) <float[1,4,2] w = {1,1,1,1,1,1,1,1}, float[1,4,1] r = {1,1,1,1}> "
    "{ y = LSTM <hidden_size=1> (x, w, r) }",
    "LpNormalization": "(float[n,4] x) => (float[n,4] y) { y = LpNormalization <axis=0> (x) }",
    "TopK": "(float[n,4] x) => (float[n,2] y, int64[n,2] i) <int64[1] k = {2}> { y, i = TopK (x, k) }",
}


@pytest.mark.parametrize(("operator", "text"), _FATAL.items(), ids=_FATAL.keys())
def test_what_would_crash_the_runtime_is_refused(operator: str, text: str) -> None:
    proto = model(text)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    with pytest.raises(InputError, match=f"input 'x': is empty, at which {operator} crashes ONNX Runtime"):
        gradients(proto, {"x": np.zeros(shape, np.float32)}, ["x"])


_HARMLESS = {
    "CumSum": "(float[n,4] x) => (float[n,4] y) <int64 axis = {1}> { y = CumSum (x, axis) }",
    "Resize": "(float[n,1,2,2] x) => (float[n,1,4,4] y) <float[4] s = {1,1,2,2}> { y = Resize (x, , s) }",
    "Trilu": "(float[n,4] x) => (float[n,4] y) { y = Trilu (x) }",
    "DFT": "(float[n,4,1] x) => (float[n,4,2] y) { y = DFT <axis=1> (x) }",
}


@pytest.mark.parametrize("text", _HARMLESS.values(), ids=_HARMLESS.keys())
def test_an_empty_batch_has_an_empty_gradient(text: str) -> None:
    proto = model(text)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert gradients(proto, {"x": np.zeros(shape, np.float32)}, ["x"])[1]["x"].shape == tuple(shape)
