"""Models that teach."""

import pytest

from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from tests.models import batches, model, random

BODY = "(float[N,8] x) => (float[N,3] y) { a = MatMul(x, w) r = Relu(a) s = Softmax<axis=1>(r) y = MatMul(s, v) }"


@pytest.mark.parametrize("opset", [7, 11])
def test_a_teacher_may_be_as_old_as_the_models_that_insert_takes(opset):
    weights = {"w": random(8, 5), "v": random(5, 3, seed=1)}
    old, new = (model(BODY, opset=version, **weights) for version in (opset, 17))
    qdq = insert(old, batches(old))
    (batch, *_) = batches(old)
    losses = [Trainer(qdq, "distill", teacher=teacher).step(batch) for teacher in (old, new)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
