import numpy as np
import onnx
import pytest

from onnxqat import AdamW, Config, InputError, Trainer, gradients, insert
from onnxqat.graph import io
from onnxqat.graph.qdq import is_quantized, quantizers
from onnxqat.graph.without import without_quantizers
from onnxqat.training.callbacks.ready_made import Callback
from tests.models import model, outputs
from tests.training.test_trainer import BODY, WEIGHTS, batches

BATCHES = batches(3)


def staged(activations: int = 0, weights: int = 0, **settings) -> onnx.ModelProto:
    starts = {"activation_start_epoch": activations, "weight_start_epoch": weights}
    images = [{"x": batch["x"]} for batch in BATCHES]
    return insert(model(BODY, **WEIGHTS), images, Config(target="openvino", **starts, **settings))


def named(qdq: onnx.ModelProto, *, weights: bool) -> set[str]:
    return {str(q.scale.name) for q in quantizers(io.load(qdq)) if q.is_weight is weights}


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in io.load(proto).graph.initializers.items()}


def moved(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    old, new = arrays(before), arrays(after)
    return {name for name in old if not np.array_equal(old[name], new[name])}


@pytest.mark.parametrize(
    ("starts", "left_out"),
    [((1, 1), lambda q: True), ((1, 0), lambda q: not q.is_weight), ((0, 1), lambda q: q.is_weight)],
    ids=["all in float", "activations in float", "weights in float"],
)
def test_loss_and_gradients_before_the_start_are_those_without_the_quantizers(starts, left_out):
    qdq = staged(*starts)
    batch = BATCHES[0]
    target = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    loss, found = Trainer(qdq, loss="mse").gradients({"x": batch["x"], "label": target})
    plain = io.to_proto(without_quantizers(io.load(qdq), left_out))
    (y,) = outputs(plain, {"x": batch["x"]})
    assert loss == pytest.approx(np.square(y - target).mean(), rel=1e-5)
    _, expected = gradients(plain, {"x": batch["x"]}, list(WEIGHTS), {"y": 2 * (y - target) / y.size})
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)
    unused = {str(q.scale.name) for q in quantizers(io.load(qdq)) if left_out(q)}
    assert all(not found[name].any() for name in unused)


def test_scales_stand_still_until_their_epoch_and_weights_do_not():
    qdq = staged(activations=2, weights=1, overflow_fix="disable")
    trainer = Trainer(qdq, optimizer=AdamW(lr=1e-3))
    before, seen = qdq, []
    for _ in range(3):
        for batch in BATCHES:
            trainer.step(batch)
        seen.append(moved(before, trainer.model()))
        before = trainer.model()
        trainer.schedule.epoch_step()
    weights, activations = named(qdq, weights=True), named(qdq, weights=False)
    assert all(changed >= set(WEIGHTS) for changed in seen)
    assert [bool(changed & weights) for changed in seen] == [False, True, True]
    assert [bool(changed & activations) for changed in seen] == [False, False, True]


class Stages(Callback):
    """Notes after each epoch which scales have moved in it, and what the validation said."""

    def __init__(self, qdq):
        self.before, self.moved, self.scores = qdq, [], []

    def on_epoch_end(self, trainer, metrics):
        now = trainer.model()
        self.moved.append(moved(self.before, now))
        self.scores.append(metrics["validation_loss"])
        self.before = now
        assert metrics["validation_loss"] == Trainer(now).evaluate(BATCHES)["loss"]


def test_fit_switches_at_the_epochs_and_judges_the_quantized_model():
    qdq = staged(activations=1, weights=2, weight_bits=4, overflow_fix="disable")
    noted = Stages(qdq)
    trainer = Trainer(qdq, optimizer=AdamW(lr=1e-3))
    trainer.fit(BATCHES, epochs=3, validation=BATCHES, callbacks=[noted])
    weights, activations = named(qdq, weights=True), named(qdq, weights=False)
    assert [bool(changed & activations) for changed in noted.moved] == [False, True, True]
    assert [bool(changed & weights) for changed in noted.moved] == [False, False, True]


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_model_is_fully_quantized_at_every_stage(epochs):
    qdq = staged(activations=1, weights=2)
    trainer = Trainer(qdq)
    for _ in range(epochs):
        trainer.step(BATCHES[0])
        trainer.schedule.epoch_step()
    assert is_quantized(io.load(trainer.model()))
    assert [node.op_type for node in trainer.model().graph.node] == [node.op_type for node in qdq.graph.node]


def unstaged(qdq: onnx.ModelProto) -> onnx.ModelProto:
    plain = onnx.ModelProto()
    plain.CopyFrom(qdq)
    kept = [entry for entry in plain.metadata_props if not entry.key.endswith("_start_epoch")]
    del plain.metadata_props[:]
    plain.metadata_props.extend(kept)
    return plain


def test_switch_carries_parameters_and_moments_over_exactly():
    trainer = Trainer(staged(activations=1))
    for batch in BATCHES[:2]:
        trainer.step(batch)
    trainer.schedule.epoch_step()
    other = Trainer(unstaged(staged(activations=1)))
    other.state.parameters[:] = trainer.state.parameters
    for mine, theirs in zip(other.state.moments, trainer.state.moments, strict=True):
        mine[:] = theirs
    other.schedule.position.step, other.schedule.position.epoch = 2, 1
    assert trainer.step(BATCHES[2]) == other.step(BATCHES[2])
    np.testing.assert_array_equal(trainer.state.parameters, other.state.parameters)


def test_run_that_goes_on_after_the_switch_is_in_the_same_stage():
    whole, first, second = (Trainer(staged(activations=1, weights=2)) for _ in range(3))
    whole.fit(BATCHES, epochs=3)
    first.fit(BATCHES, epochs=2)
    second.state.parameters[:] = first.state.parameters
    for mine, theirs in zip(second.state.moments, first.state.moments, strict=True):
        mine[:] = theirs
    second.schedule.position.step, second.schedule.position.epoch = 6, 2
    second.fit(BATCHES, epochs=1)
    np.testing.assert_array_equal(whole.state.parameters, second.state.parameters)


def test_model_trained_for_some_epochs_says_how_many_are_still_to_go():
    trainer = Trainer(staged(activations=3, weights=1))
    trainer.fit(BATCHES, epochs=2)
    held = io.load(trainer.model()).metadata_props
    assert held["onnxqat.activation_start_epoch"] == "1"
    assert "onnxqat.weight_start_epoch" not in held


def test_model_without_start_epochs_is_quantized_from_the_first_step():
    assert not any(key.endswith("_start_epoch") for key in io.load(staged()).metadata_props)


def test_freezing_all_that_is_trained_before_the_start_is_refused():
    trainer = Trainer(staged(activations=1, weights=1), freeze=list(WEIGHTS))
    with pytest.raises(InputError, match="only scales of quantizers that are not switched on yet are trained"):
        trainer.step(BATCHES[0])


def test_start_epoch_that_is_no_number_is_refused():
    proto = staged(activations=1)
    proto.metadata_props[
        [entry.key for entry in proto.metadata_props].index("onnxqat.activation_start_epoch")
    ].value = "soon"
    with pytest.raises(InputError, match=r"start_epoch' is 'soon', not an epoch"):
        Trainer(proto)
