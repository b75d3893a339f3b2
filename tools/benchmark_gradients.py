"""Times forward + backward of single operators: onnxqat's gradients against ONNX Runtime's own, HardSwish against Relu.

    python tools/benchmark_gradients.py [--threads 2] [--rounds 15] [--only OPERATOR ...]

The two sides of a ratio take turns, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.autodiff.lowering import OF_TRAINING, lower
from onnxqat.training.running.lanes import Session
from tools.gradient_check import builder

_LARGE = (100, 64, 1000)  # 6.4 million elements
_IMAGES = (8, 64, 112, 112)
_ROWS = (64, 128, 768)


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        node: the node as ONNX text, from x (and constants) to y.
        more: names of its outputs behind y, which ONNX Runtime's gradient needs.
        shape: shape of x.
        constants: other float inputs, whose gradient is computed too.
        fixed: initializers without gradient.
    """

    node: str
    shape: tuple[int, ...]
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: dict[str, np.ndarray] = field(default_factory=dict)
    more: tuple[str, ...] = ()


_BOUNDS = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
AGAINST_ORT = {
    "Clip": Case("Clip (x, low, high)", _LARGE, fixed=_BOUNDS),
    "Gelu": Case("Gelu (x)", _LARGE),
    "Relu": Case("Relu (x)", _LARGE),
    "LeakyRelu": Case("LeakyRelu (x)", _LARGE),
    "Pow": Case("Pow (x, two)", _LARGE, fixed={"two": np.array(2, np.float32)}),
    "MaxPool": Case("MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)", _IMAGES, more=("indices",)),
    "Pad": Case("Pad (x, pads)", _IMAGES, fixed={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "ReduceL2": Case("ReduceL2 <keepdims=1> (x, axes)", _ROWS, fixed={"axes": np.array([-1])}),
    "LayerNormalization": Case("LayerNormalization (x, s, b)", _ROWS, {"s": (768,), "b": (768,)}, more=("m", "r")),
}
AGAINST_RELU = ("HardSwish", "HardSigmoid", "Elu", "Softplus", "Mish", "PRelu")


def ours(proto: onnx.ModelProto, names: Sequence[str]) -> ir.Model:
    """The gradient graph as training has it."""
    graph = differentiate(ir.from_proto(proto), "loss", names)
    lower(graph, OF_TRAINING)
    return graph


def theirs(proto: onnx.ModelProto, names: Sequence[str]) -> ir.Model:
    """The gradient graph as ONNX Runtime builds it."""
    return ir.from_proto(builder.gradient_graph(proto, "loss", names))


def runner(case: Case, threads: int, write: Callable[[onnx.ModelProto, Sequence[str]], ir.Model]) -> Callable[[], None]:
    """Returns a run of the forward and backward pass in the graph that `write` makes of the model."""
    graph = write(model(case), ["x", *case.constants])
    take_cotangent(graph)
    session = Session.of(graph, threads)
    rng = np.random.default_rng(0)
    shapes = {"x": case.shape, **case.constants}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    forward = Session.of(ir.from_proto(model(case)), threads)
    forward.bind(arrays)
    (y,) = forward.run(["y"])
    session.bind({**arrays, "y_grad": np.ones_like(y)})
    return lambda: session.run(["y", *(f"{name}_grad" for name in shapes)]) and None


def model(case: Case) -> onnx.ModelProto:
    """The operator alone, with Σ y as its loss."""
    inputs = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in {"x": case.shape, **case.constants}.items())
    nodes = f"{', '.join(('y', *case.more))} = {case.node} loss = ReduceSum <keepdims=0> (y)"
    text = f"g ({inputs}) => (float[] y, float loss) {{ {nodes} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in case.fixed.items())
    return proto


def take_cotangent(model: ir.Model) -> None:
    """Makes the gradient of y an input, in the place of ones that stem from the sum."""
    graph = model.graph
    made = next(output for node in graph for output in node.outputs if output.name == "y_grad")
    given = ir.Value(name="y_grad", type=ir.TensorType(ir.DataType.FLOAT))
    made.name = "unused"
    ir.convenience.replace_all_uses_with(made, given)
    graph.inputs.append(given)
    graph.outputs[:] = [value for value in graph.outputs if value.name != "loss"]
    passes.RemoveUnusedNodesPass()(model)


def fastest(runs: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Milliseconds of the fastest round of each; all take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], 1000 * (time.perf_counter() - start))
    return best


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    print(f"{'forward + backward':24}{'onnxqat':>12}{'ORT':>12}{'ratio':>8}")
    for name, case in AGAINST_ORT.items():
        if options.only and name not in options.only:
            continue
        own, ort = fastest([runner(case, options.threads, write) for write in (ours, theirs)], options.rounds)
        print(f"{name:24}{own:9.1f} ms{ort:9.1f} ms{own / ort:8.2f}", flush=True)
    print(f"\n{'forward + backward':24}{'onnxqat':>12}{'Relu':>12}{'ratio':>8}")
    for name in AGAINST_RELU:
        if options.only and name not in options.only:
            continue
        slope = {"slope": (1,)} if name == "PRelu" else {}
        case = Case(f"{name} (x{', slope' if slope else ''})", _LARGE, slope)
        relu = Case("Relu (x)", _LARGE)
        own, other = fastest([runner(one, options.threads, ours) for one in (case, relu)], options.rounds)
        print(f"{name:24}{own:9.1f} ms{other:9.1f} ms{own / other:8.2f}", flush=True)


if __name__ == "__main__":
    main()
