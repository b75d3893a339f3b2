"""Training keeps up what `insert` promised: no pair of 8-bit weights saturates on any processor."""

import numpy as np
import onnx
import pytest
import torch

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph.pairs import OVERFLOW_FIX
from onnxqat.insertion import insert
from onnxqat.torch import as_module, to_model
from onnxqat.training.callbacks.ready_made import Callback
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.trainer import Trainer
from tests.models import model, random
from tests.saturation import lowest_code, saturating

BODY = """(float[N,3,6,6] x) => (float[N,4] y)
{
    a = Conv (x, w, b) r = Relu (a)
    c = Conv <group=6> (r, d) s = Relu (c)
    g = GlobalAveragePool (s) f = Flatten (g)
    y = Gemm (f, v)
}"""
WEIGHTS = {"w": random(6, 3, 3, 3), "b": random(6), "d": random(6, 1, 2, 2), "v": random(6, 4)}
DATA = [
    {"x": random(8, 3, 6, 6, seed=n, scale=1.0), "label": random(8, 4, seed=n, scale=30.0)} for n in range(6)
]  # targets far away: the weights grow


def inserted(**settings):
    return insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in DATA], Config(**settings))


def is_safe(proto):
    deployed = fold(proto)
    found = saturating(deployed)
    assert len(found) == 2
    return not any(found.values()) and lowest_code(deployed) >= -127


def hot(qdq, **settings):
    return Trainer(qdq, "mse", AdamW(lr=0.05), **settings)


def initializers(proto):
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "openvino"},
        {"weight_symmetric": False},
        {"weight_granularity": "per_tensor"},
        {"activation_start_epoch": 1, "weight_start_epoch": 2},
    ],
    ids=["ort-cpu", "openvino", "asymmetric", "per-tensor", "staged"],
)
def test_every_step_leaves_a_model_on_which_no_processor_saturates(settings):
    trainer = hot(inserted(**settings))
    for number, batch in enumerate(DATA):
        trainer.step(batch)
        assert is_safe(trainer.model())
        if number % 2:
            trainer.schedule.epoch_step()  # the next stage


def test_weights_that_nobody_holds_saturate_after_the_same_steps():
    trainer = hot(inserted(overflow_fix="disable"))
    for batch in DATA:
        trainer.step(batch)
    assert not is_safe(trainer.model())


def test_untouched_model_is_handed_out_as_it_came():
    qdq = inserted()
    for name, array in initializers(Trainer(qdq, "mse").model()).items():
        if name != "b":  # biases lie on their grid
            np.testing.assert_array_equal(array, initializers(qdq)[name])


def test_scale_follows_the_largest_pair_by_127():
    trainer = hot(inserted())
    trainer.parameters["v"][:] *= 3
    scale = initializers(trainer.model())["v_scale"]
    v = initializers(trainer.model())["v"]
    pairs = np.maximum(np.abs(v[0::2] + v[1::2]).max(axis=0), np.abs(v).max(axis=0))
    np.testing.assert_allclose(scale, pairs / 127, rtol=1e-6)


def test_values_given_from_outside_are_held_before_they_are_used():
    trainer = Trainer(inserted(), "mse")
    trainer.parameters["w"][:] *= 5
    assert is_safe(trainer.model())
    trainer.gradients(DATA[0])
    np.testing.assert_array_equal(trainer.parameters["w_scale"], initializers(trainer.model())["w_scale"])


def test_frozen_weights_stay_and_no_pair_saturates():
    qdq = inserted()
    trainer = hot(qdq, freeze=["w"])
    for batch in DATA:
        trainer.step(batch)
    trained = trainer.model()
    np.testing.assert_array_equal(initializers(trained)["w"], initializers(qdq)["w"])
    assert not np.array_equal(initializers(trained)["w_scale"], initializers(qdq)["w_scale"])
    assert is_safe(trained)


def test_frozen_scale_is_raised_in_the_model_alone():
    qdq = inserted()
    trainer = hot(qdq, freeze=["v_scale"])
    for batch in DATA:
        trainer.step(batch)
    np.testing.assert_array_equal(initializers(trainer.model())["v"], trainer.parameters["v"])
    assert (initializers(trainer.model())["v_scale"] > initializers(qdq)["v_scale"]).any()
    assert is_safe(trainer.model())


def test_model_without_the_promise_is_left_as_it_is():
    foreign = inserted()
    del foreign.metadata_props[[p.key for p in foreign.metadata_props].index(OVERFLOW_FIX)]
    trainer = hot(foreign)
    scale = trainer.parameters["v_scale"].copy()
    trainer.parameters["v"][:] *= 3
    np.testing.assert_array_equal(initializers(trainer.model())["v_scale"], scale)


def test_best_epoch_that_is_restored_is_safe():
    trainer = hot(inserted())
    trainer.fit(DATA, epochs=2, validation=DATA)
    assert is_safe(trainer.model())


@pytest.mark.parametrize(
    ("settings", "accumulate"), [({}, 2), ({"weight_start_epoch": 1}, 1)], ids=["within a step", "before a stage"]
)
def test_run_that_goes_on_from_a_checkpoint_holds_as_if_it_had_never_stopped(settings, accumulate, tmp_path):
    class SaveAndStop(Callback):
        def on_step_end(self, trainer, loss):
            trainer.save(tmp_path / "checkpoint")
            trainer.stop = True

    whole, stopped = (hot(inserted(**settings), accumulate=accumulate) for _ in range(2))
    whole.fit(DATA[:3], epochs=2)
    stopped.fit(DATA[:3], epochs=2, callbacks=[SaveAndStop()])
    resumed = Trainer.restore(tmp_path / "checkpoint")
    resumed.fit(DATA[:3], epochs=2)
    assert resumed.model().SerializeToString() == whole.model().SerializeToString()
    assert (resumed.parameters["v_scale"] > stopped.parameters["v_scale"]).any()
    assert is_safe(resumed.model())


def stepped(module, **settings):
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3, **settings)
    for batch in DATA:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(torch.from_numpy(batch["x"])), torch.from_numpy(batch["label"])).backward()
        optimizer.step()
    return module


def test_module_becomes_a_model_on_which_no_processor_saturates():
    assert is_safe(to_model(stepped(as_module(inserted()))))
    assert not is_safe(to_model(stepped(as_module(inserted(overflow_fix="disable")))))


def test_module_computes_with_the_scales_that_it_becomes_a_model_with():
    module = as_module(inserted())
    with torch.no_grad():
        module.v.mul_(4)
    module(torch.from_numpy(DATA[0]["x"]))
    np.testing.assert_array_equal(module.v_scale.detach().numpy(), initializers(to_model(module))["v_scale"])
    assert is_safe(to_model(module))
