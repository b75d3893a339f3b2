"""ResNet-18 and MobileNetV2 as ONNX models with random weights and BatchNormalization folded, for the benchmarks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: MobileNetV2's blocks: expansion, channels, repeats, stride of the first (Sandler et al. 2018, table 2).
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Net:
    """Nodes and weights in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        output = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, size: int, stride: int = 1, *, groups: int = 1) -> str:
        shape = (outputs, inputs // groups, size, size)
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        name = f"conv_{len(self.nodes)}"
        weight = self.weight(f"{name}_weight", self.random.standard_normal(shape) * deviation)
        bias = self.weight(f"{name}_bias", np.zeros(outputs))
        pads = [size // 2] * 4
        return self.add(
            "Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride] * 2, pads=pads, group=groups
        )

    def relu6(self, x: str) -> str:
        for name, bound in (("zero", 0.0), ("six", 6.0)):
            if all(weight.name != name for weight in self.weights):
                self.weight(name, np.array(bound))
        return self.add("Clip", x, "zero", "six")

    def classify(self, x: str, channels: int, classes: int = 1000) -> onnx.ModelProto:
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        weight = self.weight("fc_weight", self.random.standard_normal((classes, channels)) / np.sqrt(channels))
        logits = self.add("Gemm", flat, weight, self.weight("fc_bias", np.zeros(classes)), transB=1)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def resnet18() -> onnx.ModelProto:
    """ResNet-18 for 224 x 224 images (He et al. 2016)."""
    net = _Net()
    x = net.add("Relu", net.conv("image", 3, 64, 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", net.conv(x, channels, width, 3, stride))
            y = net.conv(y, width, width, 3)
            shortcut = net.conv(x, channels, width, 1, stride) if stride == 2 else x
            x, channels = net.add("Relu", net.add("Add", y, shortcut)), width
    return net.classify(x, channels)


def mobilenetv2() -> onnx.ModelProto:
    """MobileNetV2 for 224 x 224 images (Sandler et al. 2018)."""
    net = _Net()
    x, channels = net.relu6(net.conv("image", 3, 32, 3, 2)), 32
    for expansion, width, repeats, first_stride in _INVERTED_RESIDUALS:
        for block in range(repeats):
            stride, inner = first_stride if block == 0 else 1, channels * expansion
            y = net.relu6(net.conv(x, channels, inner, 1)) if expansion > 1 else x
            y = net.relu6(net.conv(y, inner, inner, 3, stride, groups=inner))
            y = net.conv(y, inner, width, 1)
            x = net.add("Add", x, y) if stride == 1 and channels == width else y
            channels = width
    return net.classify(net.relu6(net.conv(x, channels, 1280, 1)), 1280)


NETWORKS = {"ResNet-18": resnet18, "MobileNetV2": mobilenetv2}
