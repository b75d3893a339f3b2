import numpy as np
import pytest
import torch

from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.optimize.packed import BLOCK, Packed, tree_values
from tests.training.optimize.test_optimizers import arrays, run_ours, run_torch

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "never negative"])


def stored(numbers: np.ndarray, *, signed: bool) -> np.ndarray:
    packed = Packed(numbers.size, signed=signed)
    packed.write(0, numbers.copy())
    found = np.empty_like(numbers)
    packed.read(0, found)
    return found


@SIGNED
def test_every_value_of_the_tree_comes_back_exactly(signed):
    values = tree_values(signed=signed)
    assert len(values) == 256 - (not signed)
    numbers = np.zeros(BLOCK, np.float32)
    numbers[: len(values)] = values * np.float32(0.25)
    np.testing.assert_array_equal(stored(numbers, signed=signed)[: len(values)], numbers[: len(values)])


@SIGNED
def test_numbers_become_the_nearest_value_times_the_largest_of_their_block(signed):
    random = np.random.default_rng(0)
    numbers = (random.standard_normal(2 * BLOCK) * np.repeat([1.0, 1e-9], BLOCK)).astype(np.float32)
    numbers = numbers if signed else np.abs(numbers)
    found = stored(numbers, signed=signed).reshape(2, BLOCK)
    for block, result in zip(numbers.reshape(2, BLOCK), found, strict=True):
        share = np.abs(block).max()
        nearest = np.abs(block[:, None] / share - tree_values(signed=signed)).min(1)
        # half a step of the last bit that is looked at
        np.testing.assert_allclose(np.abs(result - block) / share, nearest, rtol=0, atol=2.0**-11)


def test_a_variance_never_comes_out_as_zero():
    numbers = np.full(BLOCK, 1e-20, np.float32)
    numbers[0] = 1
    assert stored(numbers, signed=False).min() > 0
    assert not stored(np.zeros(BLOCK, np.float32), signed=False).any()


def test_adamw_with_moments_in_8_bits_follows_the_exact_one():
    start, gradients = arrays(3, 70_000)  # more than a stretch, and no whole number of blocks
    found = run_ours(AdamW(0.01), "weight", start, gradients, 0.01, in_8_bits=True) - start
    expected = run_torch(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0), start, gradients) - start
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
