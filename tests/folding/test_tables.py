"""Tables of embeddings: a scale for each row, codes in the deployed model, and rows that become float where they are read."""

import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion import insert
from onnxqat.runtime import Inference
from onnxqat.training.trainer import Trainer
from tests.models import array, model, operators, random

WORDS = 60


def network(size: int = 32, body: str = "e = Gather(t, i) r = Relu(e) y = MatMul(r, w)", **more: np.ndarray):
    table = random(WORDS, size) * random(WORDS, 1, seed=5)
    return model(f"(int64[N,7] i) => (float[N,7,K] y) {{ {body} }}", t=table, w=random(size, 10), **more)


DATA = [{"i": np.random.default_rng(seed).integers(-WORDS, WORDS, (4, 7))} for seed in range(2)]


def inserted(proto: onnx.ModelProto, **settings) -> onnx.ModelProto:
    return insert(proto, DATA, Config(**settings))


@pytest.mark.parametrize(("size", "bits", "stored"), [(32, 8, (WORDS, 32)), (32, 4, (WORDS, 16)), (33, 4, (WORDS, 33))])
def test_rows_are_looked_up_as_codes_and_give_the_trained_numbers(size, bits, stored):
    proto = network(size)
    quantized = inserted(proto, embedding_bits=bits)
    deployed = fold(quantized)
    table = next(tensor for tensor in deployed.graph.initializer if tensor.name == "t_quantized")
    assert tuple(table.dims) == stored
    assert not {"t", "t_scale"} & {tensor.name for tensor in deployed.graph.initializer}
    expected, found, exact = (Inference(one)(DATA[0])["y"] for one in (quantized, deployed, proto))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - exact).max() < 0.3 * 2.0 ** (4 - bits) * np.abs(exact).max()


def test_scales_of_rows_are_trained():
    quantized = inserted(network(), embedding_bits=4, quantize_activations=False)
    trainer = Trainer(quantized, "mse")
    trainer.step({**DATA[0], "label": np.ones((4, 7, 10), np.float32)})
    trained = trainer.model()
    read = np.unique(DATA[0]["i"] % WORDS)
    moved = np.flatnonzero(array(trained, "t_scale") != array(quantized, "t_scale"))
    assert set(moved) <= set(read)
    assert len(moved) > 0.9 * len(read)
    np.testing.assert_array_equal(*(Inference(one)(DATA[1])["y"] for one in (trained, fold(trained))))


def test_nodes_that_unpack_rows_say_what_they_are_for():
    deployed = io.load(fold(inserted(network(), embedding_bits=4)))
    said = {node.metadata_props.get("onnxqat.float") for node in deployed.graph if node.op_type in ("Floor", "Concat")}
    assert said == {"rows of table 't' are looked up as codes of 4 bits"}


LEFT = {
    "by default": ({}, network(), ""),
    "ignored": ({"embedding_bits": 8, "ignore": [{"type": "Gather"}]}, network(), ""),
    "narrow": ({"embedding_bits": 8}, network(8), ""),
    "read by others": (
        {"embedding_bits": 8},
        network(body="e = Gather(t, i) r = Relu(e) m = MatMul(r, v) [tied] y = MatMul(m, t)", v=random(32, WORDS)),
        "table 't' stays in float, since MatMul 'tied' reads it too",
    ),
    "quantized as data": (
        {"embedding_bits": 8},
        network(body="e = Gather(t, i) y = MatMul(e, w)"),
        "table 't' stays in float, since values that come from it are quantized",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "proto", "warning"), LEFT.values(), ids=LEFT)
def test_tables_that_are_not_asked_for_or_have_other_readers_stay_float(settings, proto, warning, caplog):
    found = {one.source.name: one for one in quantizers(io.load(inserted(proto, **settings)))}
    assert "t" not in found or found["t"].axis != 0
    assert warning in caplog.text


def test_other_widths_are_refused():
    with pytest.raises(InputError, match="embedding_bits: it must be 4 or 8"):
        Config(embedding_bits=6)


def test_graph_output_that_is_a_row_keeps_its_name():
    proto = model(
        "(int64[N] i) => (float[N,32] e, float[N,10] y) { e = Gather(t, i) r = Relu(e) y = MatMul(r, w) }",
        t=random(WORDS, 32), w=random(32, 10),
    )  # fmt: skip
    quantized = insert(proto, [{"i": np.arange(9)}], Config(embedding_bits=4))
    deployed = fold(quantized)
    assert [value.name for value in deployed.graph.output] == ["e", "y"]
    np.testing.assert_array_equal(*(Inference(one)({"i": np.arange(9)})["e"] for one in (quantized, deployed)))
    assert operators(deployed)["Gather"] == 2
