"""The training graph: a plain ONNX model from (batch, parameters) to (loss, gradients)."""
