"""Training in one's own loop: single steps, gradients, and the schedule advanced by hand."""

import math

import numpy as np
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.training.health.divergence import LossWatch
from onnxqat.training.optimize.schedules import Constant, Cosine, StepDecay
from onnxqat.training.trainer import Trainer
from tests.models import model, random
from tests.training.test_trainer import BODY, WEIGHTS, batches

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
def test_your_own_loop_ends_with_the_parameters_of_fit(schedule, accumulate, qdq):
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


def test_gradients_and_your_own_update_are_a_step(qdq):
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


@pytest.mark.parametrize("lr", [0.3, 0.01], ids=["far too large", "too large"])
def test_a_run_that_makes_the_model_worse_gets_one_warning_with_the_rate(lr, caplog):
    """A model that agrees with its teacher but for rounding: any large step leads away from it."""
    images = [{"x": b["x"]} for b in batches(2)]
    trainer = Trainer(onnxqat.insert(model(BODY, **WEIGHTS), images), "distill", onnxqat.AdamW(lr=lr))
    for batch in batches(6) * 8:
        trainer.step({"x": batch["x"]})
    (line,) = [r.getMessage() for r in caplog.records if "has risen" in r.getMessage()]
    assert f"lower the learning rate, now {lr:.2g}" in line


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_a_loss_that_only_scatters_is_not_taken_for_one_that_rises(spread, seed, caplog):
    watch = LossWatch()
    for noise in np.random.default_rng(seed).normal(size=500):
        watch.saw(math.exp(spread * noise), 1e-3)
    assert not caplog.records


@pytest.mark.parametrize("first", [1.0, 1e-4, -3.0, 0.0], ids=["one", "small", "negative", "zero"])
def test_a_loss_that_rises_by_half_is_noticed(first, caplog):
    watch = LossWatch()
    noise = np.random.default_rng(0).normal(size=60) * 0.05
    watch.saw(first, 1e-3)
    for step in range(60):
        watch.saw(first + (abs(first) or 1.0) * (noise[step] + min(step / 60, 0.5)), 1e-3)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("level", "warnings"), [(-0.3, 0), (0.5, 1)], ids=["below where it began", "above"])
@pytest.mark.parametrize("peak", [0.3, 1.2, 2.4])
def test_a_loss_that_rises_at_first_is_judged_by_where_it_goes(peak, level, warnings, caplog):
    watch = LossWatch()
    noise = np.random.default_rng(0).normal(size=200) * 0.05
    for step, change in enumerate(np.interp(np.arange(200), [0, 10, 30], [0, peak, level])):
        watch.saw(math.exp(change + noise[step] * (step > 0)), 1e-3)
    assert len(caplog.records) == warnings


RECURRENT = """(float[T,N,8] x) => (float[T,N,4] y)
{
    p = MatMul (x, u) q = Relu (p)
    h, hn, cn = LSTM <hidden_size=128> (q, w, r) s = Squeeze (h, one)
    m = MatMul (s, k) n = Relu (m)
    y = MatMul (n, v)
}"""


@pytest.mark.parametrize("lr", [3e-4, 2e-3])
def test_a_recurrent_net_of_4_bits_is_warned_only_of_the_rate_that_ruins_it(lr, caplog):
    weights = {"u": random(8, 128), "k": random(128, 128, seed=7, scale=0.125), "v": random(128, 4, seed=3, scale=0.09)}
    weights |= {name: random(1, 512, 128, seed=seed, scale=0.09) for name, seed in (("w", 0), ("r", 1))}
    images = [{"x": random(12, 8, 8, seed=n, scale=1.0)} for n in range(8)]
    config = onnxqat.Config(weight_bits=4, first_last_bits=4, output_correction="none")
    qdq = onnxqat.insert(model(RECURRENT, **weights, one=np.array([1])), images[:2], config=config)
    trainer = Trainer(qdq, "distill", onnxqat.AdamW(lr=lr), threads=1)
    losses = [trainer.step(batch) for batch in images * 6]
    assert (np.mean(losses[-8:]) > losses[0]) == ("has risen" in caplog.text) == (lr > 1e-3)


@pytest.mark.parametrize(("accumulate", "count"), [(8, 5), (4, 5), (3, 6), (2, 5)])
def test_batches_left_at_the_end_of_an_epoch_make_a_smaller_step(accumulate, count, qdq):
    data = batches(count)
    trainer = Trainer(qdq, optimizer=onnxqat.SGD(lr=0.05, momentum=0.0), accumulate=accumulate, freeze=[".*scale"])
    by_hand = Trainer(qdq, freeze=[".*scale"])
    trainer.fit(data, epochs=2)
    for _ in range(2):
        for begin in range(0, count, accumulate):
            group = [by_hand.gradients(batch)[1] for batch in data[begin : begin + accumulate]]
            for name, parameter in by_hand.parameters.items():
                parameter -= np.float32(0.05) * np.mean([gradients[name] for gradients in group], axis=0)
    position = trainer.schedule.position
    assert position.step == position.steps == 2 * -(-count // accumulate)
    assert trainer.state.summed == 0
    for name, parameter in trainer.parameters.items():
        np.testing.assert_allclose(by_hand.parameters[name], parameter, rtol=1e-4, atol=1e-6)


def test_accumulation_beyond_an_epoch_is_warned_of(qdq, caplog):
    Trainer(qdq, accumulate=8).fit(batches(2), epochs=1)
    assert "accumulate is 8, an epoch has 2 batches" in caplog.text


def test_a_model_of_a_loop_without_a_whole_step_comes_with_a_warning(qdq, caplog):
    trainer = Trainer(qdq, accumulate=4)
    trainer.step(batches(1)[0])
    trainer.model()
    assert "no step has been taken yet" in caplog.text
