"""Optimizers and schedules, and the update of all parameters at once."""
