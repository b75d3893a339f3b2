"""What runs on each target: `python -m tools.benchmark_targets [--only NET/TARGET …] [--python RUNTIME=PYTHON …] [--docs]`.

Nets trained in float on Fashion-MNIST are quantized for the target, trained for an epoch of 9,000 images, folded and run, in the
runtime or in its emulator; six pretrained models are inserted, folded and run. The tables show nodes on integers, the findings of
`onnxqat check`, the score of the simulation and that of the deployed model on the same data, how often both give the same answer,
and how far their outputs are apart (root mean square). For QNN the last column has that distance for ONNX Runtime's own
configuration of it, without training, by its own quantizer. What is measured is kept in `.cache/targets`, with the processor, and
outputs of emulators batch by batch, so that a run may be cut short; `--docs` writes what is there. Remove it to measure again.
"""
