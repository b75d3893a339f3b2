"""Names that the command line and the library share; they stand alone so that `--help` loads nothing else."""

from typing import Literal

TargetName = Literal["ort-cpu", "openvino", "tensorrt", "qnn"]
RuntimeName = Literal["ort", "openvino"]
OptimizerName = Literal["adamw", "sgd"]
