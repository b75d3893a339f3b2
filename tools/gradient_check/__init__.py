"""Checks gradients against directional finite differences of an independent evaluation."""
