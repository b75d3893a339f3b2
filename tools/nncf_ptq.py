"""NNCF's post-training quantization of an OpenVINO model; runs in NNCF's environment (see requirements-nncf.txt).

Usage: python nncf_ptq.py MODEL.onnx CALIBRATION.npz OUTPUT.xml, where the file holds batches as arrays named NUMBER/INPUT. A
model with LayerNormalization is quantized as a Transformer, as NNCF asks of its users.
"""

import sys

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Quantizes to 8 bits with NNCF's own defaults."""
    path, calibration, output = sys.argv[1:]
    with np.load(calibration) as stored:
        batches: dict[str, dict[str, np.ndarray]] = {}
        for key in stored.files:
            number, name = key.split("/", 1)
            batches.setdefault(number, {})[name] = stored[key]
    samples = [
        {name: array[i : i + 1] for name, array in batch.items()}
        for batch in batches.values()
        for i in range(len(next(iter(batch.values()))))
    ]
    model = ov.Core().read_model(path)
    transformer = any(node.get_type_name() in ("MVN", "Softmax") for node in model.get_ops()[:-2])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
    ov.save_model(quantized, output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
