"""Pitch (CREPE, tiny): the fundamental of harmonic tones in noise, within a quarter tone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tools.real_models.model import Data, Examples

RATE, FRAME = 16000, 1024
#: Pitch of the first of the model's bins and their distance, in cents above 10 Hz.
FIRST_BIN, CENTS_PER_BIN = 1997.3794084376191, 20
BATCH = 32


def data(train: int, test: int) -> Data:
    """Tones drawn from one distribution; those for training and for judging are different draws."""
    return Data(_batches(train, seed=1), _batches(test, seed=2), _share_within_50_cents)


def _batches(count: int, seed: int) -> list[Examples]:
    random = np.random.default_rng(seed)
    batches = []
    for start in range(0, count, BATCH):
        hertz = np.exp(random.uniform(np.log(60), np.log(1000), min(BATCH, count - start)))
        batches.append(Examples({"frames": np.stack([_tone(f, random) for f in hertz])}, [float(f) for f in hertz]))
    return batches


def _tone(hertz: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A tone of up to 12 harmonics of random strength and phase, with noise; mean 0, deviation 1, as CREPE wants it."""
    time = np.arange(FRAME) / RATE
    orders = np.arange(1, min(12, int(RATE / 2 / hertz)) + 1)
    strength = random.uniform(0.3, 1, len(orders)) * orders ** -random.uniform(0.7, 1.5)
    phase = random.uniform(0, 2 * np.pi, len(orders))
    sound = strength @ np.sin(2 * np.pi * hertz * orders[:, None] * time + phase[:, None])
    sound += random.normal(0, random.uniform(0, 0.3) * sound.std(), FRAME)
    return np.asarray((sound - sound.mean()) / sound.std(), np.float32)


def _share_within_50_cents(outputs: list[NDArray[np.float32]], labels: list[float]) -> float:
    """Share of tones whose pitch is predicted within 50 cents, in percent."""
    told = FIRST_BIN + CENTS_PER_BIN * np.concatenate(outputs).argmax(axis=1)
    right = 1200 * np.log2(np.array(labels) / 10)
    return 100 * float(np.mean(np.abs(told - right) <= 50))
