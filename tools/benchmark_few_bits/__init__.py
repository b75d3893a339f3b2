"""Few bits, ours beside its peers: `python -m tools.benchmark_few_bits --write`.

ResNet-20 and a depthwise-separable network on Fashion-MNIST, and three pretrained networks, at equal widths of weights and
activations; the first and the last layer keep 8 bits. One budget for all: 512 images for calibration, 100 batches of 128 images
in the same order, one thread, AdamW with a warm-up of ten steps and a cosine. Pretrained networks have 128 samples for
calibration and half as many, smaller batches, without labels: the float network teaches. The rate of each contestant is that of
its grid with the lowest loss on validation data (first seed); test data judges alone. Each run is a process of its own, and so
its peak of memory is its own.

Results are kept in a file as they come: a run that is there is not repeated, so the benchmark may be stopped at any time. Peers
run in an environment of their own, which the tool makes. `--options NAME: SETTINGS` measures other settings of ours (see
`by_onnxqat`).
"""
