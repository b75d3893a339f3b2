"""The verify stage: what a deployed model does in a real runtime, beside the trained model.

`run.py` is the entry: `host.py` opens a runtime (`ort.py`, `openvino.py`, by way of `worker.py`, here or in another
environment), `compare.py` runs both models, `fusion.py` reads back which kernels ran, `report.py` holds what was found.
"""
