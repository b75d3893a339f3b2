"""Derivatives of ONNX graphs: rules of operators, joined in reverse order. Knows nothing of training."""
