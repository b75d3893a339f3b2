"""Quantizers in training: functions with a gradient in place of Q/DQ pairs, and the bounds that scales keep."""
