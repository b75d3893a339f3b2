"""Checks of trainings: what can be trained at all, numbers that are not finite, and losses that rise."""
