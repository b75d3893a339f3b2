"""Reconstruction: blocks of layers learn to give the float model's values, without labels."""
