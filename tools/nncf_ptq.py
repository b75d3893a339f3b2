"""NNCF's post-training quantization of an OpenVINO model; runs in NNCF's environment (see requirements-nncf.txt).

Usage: python nncf_ptq.py MODEL.onnx CALIBRATION.npz OUTPUT.xml, where the file holds the images as `image`.
"""

import sys

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Quantizes to 8 bits with NNCF's own defaults (int8 weights, mixed preset for none but transformers)."""
    model, calibration, output = sys.argv[1:]
    images = np.load(calibration)["image"]
    quantized = nncf.quantize(
        ov.Core().read_model(model), nncf.Dataset([image[None] for image in images]), subset_size=len(images)
    )
    ov.save_model(quantized, output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
