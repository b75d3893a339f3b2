"""The forward and the backward part of a model's function, cut into parts of a batch, against both in one piece."""

import numpy as np
import pytest

import onnxqat
from onnxqat.training.execution import Execution
from onnxqat.training.running.values import as_value
from onnxqat.training.training_graph.build import load_qdq
from onnxqat.training.training_graph.halves import Function, cotangent, gradient
from tests.models import model, random
from tests.training.test_splitting import CENTRED, TWO, inserted
from tests.training.test_trainer import BODY, WEIGHTS, batches

POOLED = """(float[N,3,8,8] x) => (float[N,5] y)
{
    a = Conv <pads=[1,1,1,1]> (x, w1, b1) b = Relu (a) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)
    s = Constant <value = int64[2] {-1, 96}> () g = Reshape (p, s) y = Gemm (g, w3)
}"""
POOLED_WEIGHTS = {"w1": WEIGHTS["w1"], "b1": WEIGHTS["b1"], "w3": random(96, 5)}


def images(body, **weights):
    return onnxqat.insert(model(body, **weights), calibration=[{"x": b["x"]} for b in batches(2)])


MODELS = {
    "convolutions": (lambda: images(BODY, **WEIGHTS), (3, 8, 8)),
    "a pool": (lambda: images(POOLED, **POOLED_WEIGHTS), (3, 8, 8)),
    "several inputs and outputs": (lambda: inserted(TWO, w=random(4, 6), v=random(6, 3)), (4,)),
}


def ran(function, inputs):
    """Outputs, and gradients by all inputs and parameters, after a first run that is of another size."""
    names = {str(value.name) for value in function.qdq.graph.inputs if not value.is_initializer()}
    halves = function.halves(frozenset({*names, *function.layout.named(function.initial)}))
    found = {}
    for _ in range(2):  # from the second on, results are written where they belong
        values = {
            name: as_value(array) for name, array in {**inputs, **function.layout.named(function.initial)}.items()
        }
        values |= halves.forward(values)
        outputs = {name: values[name].numpy() for name in function.computed}
        values |= {cotangent(n): as_value(random(*outputs[n].shape, seed=3)) for n in function.differentiable}
        back = halves.backward(values)
        found = outputs | {name: value.numpy() for name, value in back.items()}
    return found, halves


@pytest.mark.parametrize("rows", [7, 2])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_whole_batch(name, rows):
    make, shape = MODELS[name]
    qdq = make()
    shapes = {value.name: [d.dim_value or rows for d in value.type.tensor_type.shape.dim] for value in qdq.graph.input}
    inputs = {n: random(*s, seed=i, scale=1.0) for i, (n, s) in enumerate(shapes.items())}
    assert next(iter(shapes.values())) == [rows, *shape]
    (expected, _), (found, halves) = (ran(Function(load_qdq(qdq), Execution(threads)), inputs) for threads in (1, 3))
    assert halves.backward.is_divided
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max(), err_msg=name)


def test_a_model_that_couples_samples_runs_in_one_piece():
    qdq = inserted(CENTRED, w=random(4, 6), v=random(6, 3))
    (expected, _), (found, halves) = (ran(Function(load_qdq(qdq), Execution(n)), {"x": random(6, 4)}) for n in (1, 2))
    assert not halves.forward.is_divided
    assert not halves.backward.is_divided
    np.testing.assert_allclose(found[gradient("w")], expected[gradient("w")], rtol=1e-5)
