import pytest

import onnxqat
from onnxqat.pipeline import request, trainer
from tests.models import model, random

TEXT = "(float[N,8] x) => (float[N,4] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"


@pytest.mark.parametrize(("bits", "rate"), [(8, 1e-5), (7, 1e-5), (6, 3e-4), (4, 1e-3), (2, 1e-3)])
def test_the_rate_follows_the_narrowest_weight_unless_given(bits, rate, tmp_path):
    head = onnxqat.Override(type="MatMul", weight_bits=bits)
    config = onnxqat.Config(activation_bits=2, overrides=[head], output_correction="none")
    proto = model(TEXT, w=random(8, 8), v=random(8, 4))
    qdq = onnxqat.insert(proto, [{"x": random(16, 8)}], config)
    begun = onnxqat.Trainer(qdq, threads=1)
    assert begun.optimizer == onnxqat.AdamW(lr=rate)
    reconstructed = onnxqat.reconstruct(qdq, proto, [{"x": random(16, 8)}], steps=1)
    assert onnxqat.Trainer(reconstructed, threads=1).optimizer == onnxqat.AdamW(lr=min(rate, 1e-4))
    begun.save(tmp_path / "begun")
    assert onnxqat.Trainer.restore(tmp_path / "begun").optimizer == begun.optimizer
    assert trainer(qdq, request.Training("cross_entropy", optimizer="sgd")).optimizer == onnxqat.SGD(lr=rate)
    assert trainer(qdq, request.Training("cross_entropy", lr=0.5)).optimizer == onnxqat.AdamW(lr=0.5)
