"""Judgement of Q/DQ models by the tables of targets, from the graph alone."""
