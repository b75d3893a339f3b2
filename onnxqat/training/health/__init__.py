"""Trainings that go wrong: numbers that are not finite, and losses that rise."""
