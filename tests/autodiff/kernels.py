"""Operators whose gradients are kernels in one engine and standard operators in the other."""

WITH_KERNELS = {
    *("Conv", "ConvTranspose", "Gather", "GatherElements", "LayerNormalization", "LogSoftmax", "MatMul", "MaxPool"),
    *("Relu", "Slice", "Softmax", "SoftmaxCrossEntropyLoss"),
}
