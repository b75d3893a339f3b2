import numpy as np
import onnx_ir as ir

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.autodiff.functions import give_gradient
from onnxqat.autodiff.rule import Custom
from onnxqat.runtime import run_exactly

MODEL = """
<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
g (float[2] x) => (float loss) { y = own.Double (x) loss = ReduceSum <keepdims=0> (y) }
<domain: "own", opset_import: ["" : 17]>
Double (x) => (y) { y = Add (x, x) }
"""


def gradient(model):
    results = run_exactly(ir.to_proto(differentiate(model, "loss", ["x"])), {"x": np.ones(2, np.float32)})
    return results["x_grad"].tolist()


def test_a_function_carries_its_gradient_and_one_of_the_same_name_in_another_model_does_not():
    model = ir.from_onnx_text(MODEL)
    give_gradient(model.functions["own", "Double", ""], Custom(lambda op, call, dy: op.Mul(dy, 10.0)))
    assert gradient(model.clone()) == [10.0, 10.0]
    assert gradient(ir.from_onnx_text(MODEL)) == [2.0, 2.0]
