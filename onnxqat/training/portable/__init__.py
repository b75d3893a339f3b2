"""A training run as files for any ONNX Runtime, in any language: three plain ONNX models, the parameters, and a JSON."""
