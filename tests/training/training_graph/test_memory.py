import numpy as np
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.training.trainer import Trainer
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)])


def test_what_is_computed_again_for_less_memory_is_the_same(qdq):
    kept, again = (Trainer(qdq, memory=memory, threads=2) for memory in ("auto", "low"))
    graphs = [trainer._steps.graph.training.graph for trainer in (kept, again)]
    counts = [sum(node.op_type == "QuantizeLinear" for node in graph) for graph in graphs]
    assert counts[1] > counts[0]
    (one, expected), (loss, found) = (trainer.gradients(batches(1)[0]) for trainer in (kept, again))
    assert loss == one
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)


def test_run_with_low_memory_resumes_to_the_bit_and_only_with_low_memory(qdq, tmp_path):
    run = Trainer(qdq, memory="low", threads=2)
    run.step(batches(1)[0])
    run.save(tmp_path / "state")
    resumed = Trainer.restore(tmp_path / "state")
    assert resumed._steps.graph.twice
    for each in (run, resumed):
        each.step(batches(2)[1])
    np.testing.assert_array_equal(resumed.state.parameters, run.state.parameters)
    with pytest.raises(InputError, match="was made with memory low, this run has auto; use the same"):
        Trainer(qdq, threads=2).resume(tmp_path / "state")


def test_another_choice_is_refused(qdq):
    with pytest.raises(InputError, match="memory is 'little'; it must be one of auto, low"):
        Trainer(qdq, memory="little")
