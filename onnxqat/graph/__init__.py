"""The graph layer that all stages share: models in and out, quantizers as they stand in a model, edits."""
