"""THE table of what NNCF has and this package has not: what is refused, and what is ignored with a warning."""

from __future__ import annotations

#: Keys of NNCF that are refused, and how to get their effect.
REFUSED = {
    "compression_lr_multiplier": "scales learn at one rate with weights; lower lr of the optimizer instead",
}

#: Keys about what is not a matter of quantizers: they are warned of and ignored, with the way to get their effect.
IGNORED = {
    "disable_shape_matching": "an ONNX model says itself which sizes are free",
    "log_dir": "pass the callback JsonLines or TensorBoard to Trainer.fit",
    "batch_multiplier": "pass accumulate to Trainer",
    "lr_poly_drop_start_epoch": "pass schedule to Trainer",
    "lr_poly_drop_duration_epochs": "pass schedule to Trainer",
    "disable_wd_start_epoch": "pass an optimizer without weight_decay to Trainer",
    "base_lr": "pass optimizer=AdamW(lr=…) to Trainer",
    "base_wd": "pass optimizer=AdamW(weight_decay=…) to Trainer",
}

#: Losses of a model that other algorithms of NNCF made, where quantization alone is done.
LOST = {
    "filter_pruning": "no filter would be removed, so the model would stay as large and as slow as without pruning",
    "magnitude_sparsity": "weights would stay as dense as they are, so that sparse kernels gain nothing",
    "rb_sparsity": "weights would stay as dense as they are, so that sparse kernels gain nothing",
    "movement_sparsity": "weights would stay as dense as they are, so that sparse kernels gain nothing",
    "const_sparsity": "training would fill the zeros among the weights",
    "knowledge_distillation": "training would not follow the float model (loss='distill' of Trainer does)",
}
#: Devices without a table of integer kernels here.
ACCELERATORS = ("GPU", "NPU", "VPU")
#: Initializers of precision that choose bits by themselves.
AUTOMATIC_PRECISION = ("hawq", "autoq")
