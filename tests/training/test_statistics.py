import json

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat import numerics
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.training.trainer import Trainer
from tests.models import model, outputs, random
from tests.training.test_trainer import BODY, WEIGHTS, batches


@pytest.fixture(scope="module", params=[8, 4], ids=["8 bits", "4 bits"])
def trainer(request):
    # ranges of two batches and a larger learning rate, so that others clip and everything moves
    config = onnxqat.Config(weight_bits=request.param, activation_bits=request.param, first_last_bits=None)
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": 0.3 * b["x"]} for b in batches(2)], config)
    trainer = Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.fit(batches(4), epochs=2)
    return trainer


def values(proto, names, feeds):
    """The values of that name as the runtime computes them, one node after the other."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    for name in names:
        exposed.graph.output.add().name = name
    return dict(zip(names, outputs(exposed, feeds)[1:], strict=True))


def clipped_by_wide_codes(x, quantizer):
    """Whether quantizing without bounds gives a code outside of them."""
    wide = numerics.quantize(x, quantizer.scales, quantizer.zero_points, -(2**30), 2**30, quantizer.axis)
    return (wide < quantizer.qmin) | (wide > quantizer.qmax)


def test_clipped_activations_are_those_of_the_numpy_reference(trainer):
    seen = batches(3, seed=7)
    found = trainer.statistics([{"x": b["x"]} for b in seen])
    proto = trainer.model()
    activations = {q.source.name: q for q in quantizers(io.load(proto)) if not q.is_weight}
    masks = {name: [] for name in activations}
    for batch in seen:
        names = [name for name in activations if name != "x"]
        for name, x in {**values(proto, names, {"x": batch["x"]}), "x": batch["x"]}.items():
            masks[name].append(clipped_by_wide_codes(x, activations[name]).ravel())
    assert {q.value: q.clipped for q in found.activations} == {n: np.concatenate(m).mean() for n, m in masks.items()}
    assert found.rows == 48
    assert max(q.clipped for q in found.activations) > 0.01


def test_clipped_weights_and_drifts_are_those_of_numpy(trainer):
    found = {q.value: q for q in trainer.statistics().weights}
    before = {i.name: onnx.numpy_helper.to_array(i) for i in io.to_proto(trainer._steps.graph.qdq).graph.initializer}
    now = [q for q in quantizers(io.load(trainer.model())) if q.is_weight]
    assert len(now) == len(found) == 3
    for quantizer in now:
        name, weight = quantizer.source.name, quantizer.source.const_value.numpy()
        drift = np.linalg.norm(weight - before[name]) / np.linalg.norm(before[name])
        scale_drift = np.abs(quantizer.scales - before[quantizer.scale.name]) / before[quantizer.scale.name]
        assert found[name].clipped == clipped_by_wide_codes(weight, quantizer).mean()
        assert found[name].weight_drift == pytest.approx(drift, rel=1e-6) != 0
        assert found[name].scale_drift == pytest.approx(scale_drift.max(), rel=1e-4) != 0
        assert found[name].scale == (quantizer.scales.min(), quantizer.scales.max())


def test_nothing_has_drifted_before_training():
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)])
    found = Trainer(qdq).statistics()
    assert {(q.scale_drift, q.weight_drift) for q in found.weights} == {(0.0, 0.0)}
    assert {(q.scale_drift, q.weight_drift, q.clipped) for q in found.activations} == {(0.0, None, None)}
    assert (found.step, found.rows) == (0, 0)


def test_the_last_batch_trained_on_is_counted_where_none_is_given(trainer):
    last = batches(4)[-1]
    expected = trainer.statistics([last])
    assert trainer.statistics() == expected
    assert expected.rows == 16
    assert expected.step == 8


def test_layers_and_quantizers_are_counted_by_what_they_are():
    weights = WEIGHTS | {"w4": random(5, 4)}
    body = BODY.replace("float[N,5] y", "float[N,4] z").replace("\n}", "\n    z = MatMul(y, w4)\n}")
    config = onnxqat.Config(ignore=[{"type": "MatMul"}], weight_bits=4, first_last_bits=None)
    found = Trainer(
        onnxqat.insert(model(body, **weights), [{"x": b["x"]} for b in batches(1)], config), loss="mse"
    ).statistics()
    assert (found.layers, found.quantized_weights, found.quantized_inputs) == (4, 3, 3)
    assert {q.how for q in found.weights} == {"4 bits, -8 … 7, symmetric, per channel"}
    assert {q.bits for q in found.activations} == {8}


def test_values_that_are_quantized_per_channel_are_counted_per_channel():
    config = onnxqat.Config(activation_granularity="per_channel")
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": 0.3 * b["x"]} for b in batches(1)], config)
    batch = batches(1, seed=3)[0]["x"]
    (quantizer,) = [q for q in quantizers(io.load(qdq)) if q.source.name == "x"]
    found = {q.value: q for q in Trainer(qdq).statistics([{"x": batch}]).activations}["x"]
    assert found.granularity == "per channel"
    assert found.clipped == clipped_by_wide_codes(batch, quantizer).mean() > 0


def test_it_prints_as_tables_and_is_plain_data(trainer):
    found = trainer.statistics()
    text = str(found)
    assert "3 of 3 layers with weights have quantized weights" in text
    assert all(q.value in text for q in found.quantizers)
    plain = json.loads(found.to_json())
    assert plain["layers"] == 3
    assert [q["value"] for q in plain["quantizers"]] == [q.value for q in found.quantizers]
    with pytest.raises(AttributeError):
        found.step = 3
