"""The gradient of a model's input is computed only where the scale of its quantizer, which reads it, is trained."""

import pytest

import onnxqat
from onnxqat.runtime import engines
from onnxqat.training.training_graph.build import load_qdq, training_graph
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches

ENGINES = [
    "standard",
    pytest.param("training", marks=pytest.mark.skipif(not engines._has_training_kernels(), reason="is not installed")),
]


def gradients_of_data(config: onnxqat.Config | None, freeze: list[str], engine: str) -> int:
    """How many of the two convolutions have one in the training graph."""
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], config)
    graph = training_graph(load_qdq(qdq), "cross_entropy", freeze, engine=engine).training.graph
    operator = "ConvTranspose" if engine == "standard" else "ConvGrad"
    return sum(node.op_type == operator and bool(node.outputs[0].name) for node in graph)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("config", "freeze", "count"),
    [
        pytest.param(None, [], 2, id="trained"),
        pytest.param(None, ["x_scale"], 1, id="frozen"),
        pytest.param(onnxqat.Config(quantize_inputs=False), [], 1, id="absent"),
    ],
)
def test_gradient_of_the_input_is_computed_where_a_scale_reads_it(config, freeze, count, engine):
    assert gradients_of_data(config, freeze, engine) == count
