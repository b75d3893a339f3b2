"""Operators that ONNX Runtime's autodiff lacks, through insert, training and folding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

import onnxqat


def _weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def _model() -> onnx.ModelProto:
    """Image of dynamic height and width → Conv → bilinear upscaling → Conv → bidirectional LSTM over the width → classes."""
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[n,1,h,w] image) => (float[n,4] logits) '
        "<float[4] scales = {1, 1, 2, 2}, int64[3] column = {0, 0, -1}> "
        "{ a = Conv <pads=[1,1,1,1]> (image, c1) b = HardSwish (a) "
        'big = Resize <mode="linear", coordinate_transformation_mode="pytorch_half_pixel"> (b, , scales) '
        "c = Conv <kernel_shape=[8,1]> (big, c2) d = Relu (c) line = Transpose <perm=[3,0,1,2]> (d) "
        'steps = Reshape (line, column) seen, last = LSTM <hidden_size=6, direction="bidirectional"> (steps, w, r, p) '
        "ends = Transpose <perm=[1,0,2]> (last) flat = Flatten (ends) logits = Gemm <transB=1> (flat, f) }"
    )
    rng = np.random.default_rng(0)
    proto.graph.initializer.extend(
        _weights(rng, c1=(6, 1, 3, 3), c2=(5, 6, 8, 1), w=(2, 24, 5), r=(2, 24, 6), p=(2, 48), f=(4, 12))
    )
    return proto


def test_a_model_with_resize_and_lstm_trains_at_four_bits_and_folds() -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(8, 16, 1, 4, 6)).astype(np.float32)
    labels = (images.mean((2, 3, 4)) > 0) + 2 * (images[..., :3].mean((2, 3, 4)) > images[..., 3:].mean((2, 3, 4)))
    batches = [{"image": image, "label": label} for image, label in zip(images, labels.astype(np.int64), strict=True)]
    qdq = onnxqat.insert(_model(), calibration=batches, config=onnxqat.Config(weight_bits=4))
    trainer = onnxqat.Trainer(qdq, loss="cross_entropy", optimizer=onnxqat.AdamW(lr=1e-2))
    losses = [[trainer.step(batch) for batch in batches] for _ in range(12)]
    assert np.mean(losses[-1]) < 0.7 * np.mean(losses[0])
    trained = trainer.model()
    report = onnxqat.verify(trained, onnxqat.fold(trained), batches, runtime="ort")
    assert report.agreement is not None
    assert report.agreement > 0.97
