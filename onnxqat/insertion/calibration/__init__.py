"""Numbers of quantizers: ranges of data and of weights, scales that cannot saturate, outputs corrected for quantization."""
