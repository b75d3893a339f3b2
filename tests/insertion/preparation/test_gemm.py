import numpy as np
import onnx
import pytest

import onnxqat
from tests.models import batches, float_kernels, model, outputs, random

BIASES = {
    "a scalar": random(1).reshape(()),
    "one number": random(1),
    "one by one": random(1, 1),
    "a row": random(1, 6),
    "a column": random(16, 1),
    "a matrix": random(16, 6),
}


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_gemm_with_any_bias_runs_on_integers_and_trains(bias, beta):
    proto = model(
        f"(float[16,8] x) => (float[16,3] y) {{ h = Gemm<beta={beta}>(x, w, b) r = Relu(h) y = Gemm(r, v, d) }}",
        w=random(8, 6),
        b=bias,
        v=random(6, 3),
        d=random(3),
    )
    data = batches(proto, 2)
    qdq = onnxqat.insert(proto, data)
    deployed = onnxqat.fold(qdq)
    onnx.checker.check_model(deployed)
    assert not float_kernels(deployed) & {"MatMul", "FusedMatMul", "FusedGemm"}
    want = outputs(proto, data[0])[0]
    assert np.abs(outputs(deployed, data[0])[0] - want).max() < 0.05 * np.abs(want).max()
    trainer = onnxqat.Trainer(qdq, loss="distill")
    assert trainer.step(data[0]) < 0.01
    onnxqat.fold(trainer.model())
