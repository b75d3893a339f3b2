"""Networks of known structure as ONNX models, with random weights and BatchNormalization folded, for the benchmarks."""

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

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        name = f"linear_{len(self.nodes)}"
        weight = self.weight(f"{name}_weight", self.random.standard_normal((inputs, outputs)) / np.sqrt(inputs))
        bias = self.weight(f"{name}_bias", self.random.standard_normal(outputs) * 0.1)
        return self.add("Add", self.add("MatMul", x, weight), bias)

    def norm(self, x: str, width: int) -> str:
        name = f"norm_{len(self.nodes)}"
        scale, shift = self.weight(f"{name}_scale", np.ones(width)), self.weight(f"{name}_shift", np.zeros(width))
        return self.add("LayerNormalization", x, scale, shift)

    def constant(self, name: str, array: list[int]) -> str:
        if all(weight.name != name for weight in self.weights):
            self.weights.append(numpy_helper.from_array(np.array(array, np.int64), name))
        return name

    def classify(self, x: str, channels: int, classes: int = 1000) -> onnx.ModelProto:
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        weight = self.weight("fc_weight", self.random.standard_normal((classes, channels)) / np.sqrt(channels))
        logits = self.add("Gemm", flat, weight, self.weight("fc_bias", np.zeros(classes)), transB=1)
        return self.finished(logits, ["N", classes], "image", ["N", 3, 224, 224])

    def finished(self, output: str, shape: list[str | int], data: str, data_shape: list[str | int]) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(data, TensorProto.FLOAT, data_shape)]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
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


def bert(width: int = 256, heads: int = 4, layers: int = 2, length: int = 64) -> onnx.ModelProto:
    """A Transformer encoder on embedded tokens (Devlin et al. 2019): attention and GELU in the nodes that exporters write."""
    net = _Net()
    x, size = "tokens", width // heads
    split, joined = net.constant("split", [0, length, heads, size]), net.constant("joined", [0, length, width])
    root, half, one = (net.weight(name, np.array(v)) for name, v in (("root", 2**0.5), ("half", 0.5), ("one", 1.0)))
    scale = net.weight("scale", np.array(size**-0.5))
    for _ in range(layers):
        query, key, value = (net.add("Reshape", net.linear(x, width, width), split) for _ in range(3))
        query = net.add("Transpose", query, perm=[0, 2, 1, 3])
        scores = net.add("Mul", net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 3, 1])), scale)
        weights = net.add("Softmax", scores, axis=-1)
        mixed = net.add("MatMul", weights, net.add("Transpose", value, perm=[0, 2, 1, 3]))
        mixed = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = net.norm(net.add("Add", x, net.linear(mixed, width, width)), width)
        y = net.linear(x, width, 4 * width)
        y = net.add("Mul", net.add("Mul", y, net.add("Add", net.add("Erf", net.add("Div", y, root)), one)), half)
        x = net.norm(net.add("Add", x, net.linear(y, 4 * width, width)), width)
    return net.finished(x, ["N", length, width], "tokens", ["N", length, width])


def unet(width: int = 16, depth: int = 3, size: int = 128) -> onnx.ModelProto:
    """Contracting and expanding convolutions with skips (Ronneberger et al. 2015), two classes of pixels."""
    net = _Net()
    x, channels = "image", 3
    skips: list[tuple[str, int]] = []
    for level in range(depth + 1):
        inner = width * 2**level
        x = net.add("Relu", net.conv(net.add("Relu", net.conv(x, channels, inner, 3)), inner, inner, 3))
        channels = inner
        if level < depth:
            skips.append((x, inner))
            x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    for skip, inner in reversed(skips):
        name = f"up_{len(net.nodes)}"
        weight = net.weight(name, net.random.standard_normal((channels, inner, 2, 2)) * np.sqrt(2 / channels))
        x = net.add("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
        x = net.add("Concat", skip, x, axis=1)
        x = net.add("Relu", net.conv(net.add("Relu", net.conv(x, 2 * inner, inner, 3)), inner, inner, 3))
        channels = inner
    return net.finished(net.conv(x, channels, 2, 1), ["N", 2, size, size], "image", ["N", 3, size, size])


def recurrent(width: int = 64, hidden: int = 128, length: int = 50) -> onnx.ModelProto:
    """Two LSTM layers (Hochreiter and Schmidhuber 1997) over a sequence, and a linear layer at each of its steps."""
    net = _Net()
    x, inputs = net.add("Transpose", "frames", perm=[1, 0, 2]), width
    axis = net.constant("directions", [1])
    for _ in range(2):
        weights = [
            net.weight(f"lstm_{len(net.nodes)}_{n}", net.random.standard_normal((1, 4 * hidden, size)) / np.sqrt(size))
            for n, size in enumerate((inputs, hidden))
        ]
        x, inputs = net.add("Squeeze", net.add("LSTM", x, *weights, hidden_size=hidden), axis), hidden
    x = net.linear(net.add("Transpose", x, perm=[1, 0, 2]), hidden, 32)
    return net.finished(x, ["N", length, 32], "frames", ["N", length, width])


NETWORKS = {"ResNet-18": resnet18, "MobileNetV2": mobilenetv2}
#: Structures that classifiers of images do not have.
OTHERS = {"BERT-like": bert, "U-Net-like": unet, "recurrent": recurrent}
