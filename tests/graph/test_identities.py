from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.graph.identities import eliminate_identities
from onnxqat.runtime import Inference


def test_a_branch_that_returns_a_value_from_outside_keeps_its_identity() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) { a = Identity (x) b = Exp (a) '
        "y = If (c) <then_branch = t () => (float[2] r) { r = Identity (b) }, else_branch = e () => (float[2] q) "
        "{ s = If (c) <then_branch = u () => (float[2] v) { v = Identity (x) }, else_branch = f () => (float[2] w) "
        "{ k = Identity (b) w = Neg (k) }> q = Identity (s) }> }"
    )
    model = ir.from_proto(proto)
    eliminate_identities(model)
    x = np.array([0.0, 1.0], np.float32)
    run = Inference(model)
    np.testing.assert_allclose(run({"x": x, "c": np.array(True)})["y"], np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(run({"x": x, "c": np.array(False)})["y"], -np.exp(x), rtol=1e-6)
    assert "Identity" not in {node.op_type for node in model.graph}
