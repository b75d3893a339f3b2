"""Sessions of ONNX Runtime's that run training graphs, on arrays that are bound in place."""
