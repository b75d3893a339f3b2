"""Training in one's own loop: single steps, gradients, and the schedule advanced by hand."""

import numpy as np
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.train.schedules import Constant, Cosine, StepDecay
from onnxqat.train.trainer import Trainer
from tests.models import model
from tests.train.test_trainer import BODY, WEIGHTS, batches

EPOCHS = 3


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "schedule",
    [Constant(warmup_steps=3), StepDecay(every=2, gamma=0.3), Cosine(final=0.1, warmup_steps=2)],
    ids=["warm-up", "step decay", "cosine"],
)
def test_ones_own_loop_ends_with_the_parameters_of_fit(schedule, accumulate, qdq):
    data = batches(4)
    fitted, looped = (
        Trainer(qdq, optimizer=onnxqat.AdamW(lr=3e-3), schedule=schedule, accumulate=accumulate) for _ in range(2)
    )
    fitted.fit(data, epochs=EPOCHS)
    looped.schedule.plan(EPOCHS, steps_per_epoch=len(data) // accumulate)
    rates = []
    for _ in range(EPOCHS):
        for batch in data:
            looped.step(batch)
            rates.append(looped.schedule.factor)
        looped.schedule.epoch_step()
    np.testing.assert_array_equal(looped.state.parameters, fitted.state.parameters)
    assert looped.schedule.position == fitted.schedule.position
    assert len(set(rates)) > 1


def test_gradients_and_an_update_of_ones_own_are_a_step(qdq):
    data = batches(4)
    stepped = Trainer(qdq, optimizer=onnxqat.SGD(lr=0.05, momentum=0.0), schedule=StepDecay(), freeze=[".*scale"])
    looped = Trainer(qdq, schedule=StepDecay(), freeze=[".*scale"])
    for _ in range(2):
        for batch in data:
            loss, gradients = looped.gradients(batch)
            for name, parameter in looped.parameters.items():
                parameter -= np.float32(0.05 * looped.schedule.factor) * gradients[name]
            looped.schedule.step()
            assert loss == pytest.approx(stepped.step(batch), rel=1e-5)
        looped.schedule.epoch_step()
        stepped.schedule.epoch_step()
    assert looped.schedule.position == stepped.schedule.position
    for name, parameter in stepped.parameters.items():
        np.testing.assert_allclose(looped.parameters[name], parameter, rtol=1e-5, atol=1e-7)


def test_a_plan_counts_from_where_the_run_is(qdq):
    trainer = Trainer(qdq, schedule=Cosine())
    trainer.fit(batches(2), epochs=1)
    assert trainer.schedule.factor == 0
    trainer.schedule.plan(2, steps_per_epoch=2)
    assert (trainer.schedule.position.steps, trainer.schedule.position.epochs) == (6, 3)
    assert trainer.schedule.factor == pytest.approx(0.75)


def test_cosine_without_a_plan_is_refused_rather_than_flat(qdq):
    with pytest.raises(InputError, match=r"length is not known .* call trainer\.schedule\.plan"):
        Trainer(qdq, schedule=Cosine()).step(batches(1)[0])


@pytest.mark.parametrize("plan", [(0, 3), (3, 0)], ids=["epochs", "steps"])
def test_an_empty_plan_is_refused(plan, qdq):
    with pytest.raises(InputError, match="must be 1 or more"):
        Trainer(qdq).schedule.plan(*plan)
