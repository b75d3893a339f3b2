"""Checkpoints: what a run must remember, and how a trainer goes on from it."""
