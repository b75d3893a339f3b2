"""Backward kernels that some engine has in one piece, each defined by standard operators: a plain ONNX function."""
