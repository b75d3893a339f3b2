"""Metrics by which models are judged: means over samples, and others made of sums, in training and in verification alike."""
