"""Models out of PyTorch and Keras; each framework is imported by its own exporter only."""
