import math

import pytest

from onnxqat.errors import InputError
from onnxqat.training.optimize.schedules import Constant, Cosine, Position, Schedule, StepDecay


def factors(spec, steps, per_epoch=1, total=None):
    schedule = Schedule(spec, Position(steps=total, epochs=None))
    found = []
    for step in range(steps):
        found.append(schedule.factor)
        schedule.step()
        if (step + 1) % per_epoch == 0:
            schedule.epoch_step()
    return found


def test_constant_stays():
    assert factors(Constant(), 3) == [1, 1, 1]


def test_warm_up_grows_linearly_to_the_full_rate():
    assert factors(Constant(warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_step_decay_falls_after_every_so_many_epochs():
    assert factors(StepDecay(every=2, gamma=0.5), 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_cosine_falls_from_one_to_its_end():
    found = factors(Cosine(final=0.1), 5, total=4)
    assert found == pytest.approx([1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1])


def test_cosine_counts_epochs_where_the_number_of_steps_is_not_known():
    schedule = Schedule(Cosine(), Position(epochs=2))
    schedule.step()
    assert schedule.factor == 1
    schedule.epoch_step()
    assert schedule.factor == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(warmup_steps=-1),
        lambda: StepDecay(every=0),
        lambda: StepDecay(gamma=2),
        lambda: Cosine(final=2),
    ],
    ids=["negative warm-up", "every 0 epochs", "growing", "final above 1"],
)
def test_an_invalid_schedule_cannot_be_built(make):
    with pytest.raises(InputError):
        make()
