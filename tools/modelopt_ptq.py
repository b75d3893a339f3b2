"""NVIDIA's quantization of an ONNX model for TensorRT; runs in its environment (see requirements-modelopt.txt).

Usage: python modelopt_ptq.py MODEL.onnx INPUTS.npz OUTPUT.onnx, where the second file holds one batch.
"""

import sys

import numpy as np
from modelopt.onnx.quantization import quantize


def main() -> None:
    """Quantizes to int8 with the quantizer's own defaults; what stays float is float32, as in ours before `fold`."""
    path, inputs, output = sys.argv[1:]
    with np.load(inputs) as batch:
        quantize(
            path,
            quantize_mode="int8",
            calibration_data=dict(batch),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=output,
            log_level="WARNING",
        )


if __name__ == "__main__":
    main()
