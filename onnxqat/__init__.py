"""Quantization-aware training on the ONNX graph itself."""
