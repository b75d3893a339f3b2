"""The bounds that a model inside another framework's loop keeps are those of `Trainer`."""

import numpy as np
import pytest

import onnxqat
from onnxqat.graph import io
from onnxqat.training.execution import Execution
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.training_graph.build import load_qdq
from onnxqat.training.wrapped import Wrapped
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches


@pytest.mark.parametrize("factor", [1.0, 50.0, 1e4])
def test_a_scale_is_raised_for_its_weight_and_for_its_bias(factor):
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": batch["x"]} for batch in batches(2)])
    wrapped, initial = Wrapped(load_qdq(qdq), Execution()), Wrapped(load_qdq(qdq), Execution()).whole
    arrays = {name: array.copy() for name, array in initial.layout.named(initial.initial).items()}
    for name in ("w1", "w3", "b1", "b3"):  # biases grow by more, so that both bounds are met
        arrays[name] = arrays[name] * np.float32(factor if name[0] == "w" else factor**2)
    expected = {name: array.copy() for name, array in arrays.items()}
    PairSafety(io.load(qdq)).hold(expected)
    found = {**arrays, **wrapped.within_bounds(arrays)}
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    assert not wrapped.within_bounds(found)
