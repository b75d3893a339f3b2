import numpy as np
import onnx
import pytest

from onnxqat import Config, InputError, fold, insert, reconstruct
from tests.models import array, batches, model, outputs, random

WEIGHTS = {f"w{i}": random(8, 8, 3, 3, seed=i, scale=0.2) for i in range(1, 9)} | {"w0": random(8, 3, 3, 3)}
PAD = "<pads=[1,1,1,1]>"
RESIDUAL = " ".join(
    f"c{i} = Conv{PAD}(r{i - 1}, w{i}) d{i} = Relu(c{i}) e{i} = Conv{PAD}(d{i}, w{i + 1}) "
    f"s{i} = Add(e{i}, r{i - 1}) r{i} = Relu(s{i})"
    for i in range(1, 4)
)
#: Nets whose blocks end in different ways: at one value, with others beside it, with inputs that no layer computes, at a Softmax.
NETS = {
    "residual": model(
        f"(float[N,3,8,8] x) => (float[N,8,8,8] r3) {{ f = Conv{PAD}(x, w0) r0 = Relu(f) {RESIDUAL} }}",
        **{name: WEIGHTS[name] for name in ("w0", "w1", "w2", "w3", "w4")},
    ),
    "skip": model(
        f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
            a = Conv{PAD}(x, w0) b = Relu(a) c = Conv{PAD}(b, w1) d = Relu(c) e = Conv{PAD}(d, w2) f = Relu(e)
            g = Conv{PAD}(f, w3) h = Relu(g) i = Conv{PAD}(h, w4) j = Relu(i) k = Conv{PAD}(j, w5) l = Relu(k)
            m = Conv{PAD}(l, w6) n = Relu(m) o = Conv{PAD}(n, w7) p = Relu(o) q = Concat<axis=1>(p, b)
            y = Conv{PAD}(q, last) }}""",
        last=random(8, 16, 3, 3, scale=0.2), **{name: WEIGHTS[name] for name in ("w0", *(f"w{i}" for i in range(1, 8)))},
    ),
    "masked": model(
        """(float[N,4,8] x, float[N,4] mask) => (float[N,4,8] y) {
            m = Unsqueeze(mask, one) low = Mul(m, far) a = MatMul(x, q) b = MatMul(x, k) t = Transpose<perm=[0,2,1]>(b)
            s = MatMul(a, t) z = Add(s, low) p = Softmax(z) v1 = MatMul(x, v) c = MatMul(p, v1) o1 = MatMul(c, o) r = Add(x, o1)
            d = MatMul(r, f) e = Relu(d) g = MatMul(e, h) r2 = Add(g, r)
            s2 = MatMul(r2, t2) z2 = Transpose<perm=[0,2,1]>(low) z3 = Add(s2, z2) y = MatMul(z3, f2) }""",
        one=np.array([1]), far=np.float32(-0.5), t2=random(8, 4), f2=random(4, 8, seed=9),
        **{name: random(8, 8, seed=i) for i, name in enumerate("qkvofh")},
    ),
    "classifier": model(
        f"""(float[N,3,8,8] x) => (float[N,8] y) {{ a = Conv{PAD}(x, w0) b = Relu(a) c = Conv{PAD}(b, w1) d = Relu(c)
            e = GlobalAveragePool(d) f = Flatten(e) g = Gemm(f, v) y = Softmax(g) }}""",
        w0=WEIGHTS["w0"], w1=WEIGHTS["w1"], v=random(8, 8, scale=1.0),
    ),
}  # fmt: skip
BITS = {"weight_bits": 2, "activation_bits": 4, "first_last_bits": None, "output_correction": "none"}


def quantized(proto: onnx.ModelProto, data: list[dict[str, np.ndarray]], **settings: object) -> onnx.ModelProto:
    return insert(proto, data, Config(**{**BITS, **settings}))


def error(proto: onnx.ModelProto, found: onnx.ModelProto, data: list[dict[str, np.ndarray]]) -> float:
    """Squared error of the outputs, over their variance."""
    pairs = [(outputs(proto, batch)[0], outputs(found, batch)[0]) for batch in data]
    meant, got = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return float(np.mean(np.square(meant - got)) / meant.var())


@pytest.mark.parametrize("name", NETS)
def test_outputs_come_closer_to_the_float_model_on_data_that_was_not_learned_from(name):
    proto = NETS[name]
    seen, unseen = batches(proto, 8, 32), batches(proto, 10, 32)[8:]
    before = quantized(proto, seen)
    after = reconstruct(before, proto, seen, steps=60, finish=0)
    assert error(proto, after, unseen) < 0.85 * error(proto, before, unseen)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    assert error(after, fold(after), unseen) < 1e-3


def test_steps_for_the_whole_network_bring_all_of_its_outputs_closer():
    proto = model(
        f"""(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8] z) {{ a = Conv{PAD}(x, w0) b = Relu(a) c = Conv{PAD}(b, w1)
            d = Relu(c) y = Conv{PAD}(d, w2) e = Conv{PAD}(d, w3) f = GlobalAveragePool(e) z = Flatten(f) }}""",
        **{name: WEIGHTS[name] for name in ("w0", "w1", "w2", "w3")},
    )
    seen, unseen = batches(proto, 8, 32), batches(proto, 10, 32)[8:]
    before = quantized(proto, seen)
    blocks, whole = (reconstruct(before, proto, seen, steps=20, finish=finish) for finish in (0, 40))
    for index in range(2):
        errors = [
            np.mean([np.square(outputs(proto, b)[index] - outputs(each, b)[index]).mean() for b in unseen])
            for each in (blocks, whole)
        ]
        assert errors[1] < errors[0]


def test_same_seed_gives_the_same_model():
    proto = NETS["classifier"]
    data = batches(proto, 4, 16)
    first, second, third = (
        reconstruct(quantized(proto, data), proto, data, steps=5, finish=2, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first != third


def test_weights_that_blocks_share_are_trained_with_the_whole_network_alone():
    proto = model(
        """(float[N,8] x) => (float[N,8] y) {
            a = Gemm(x, s) b = Gemm(a, t) c = Gemm(b, u) d = Gemm(c, v) e = Gemm(d, s) y = Gemm(e, t) }""",
        **{name: random(8, 8, seed=i) for i, name in enumerate("stuv")},
    )
    data = batches(proto, 8, 32)
    before = quantized(proto, data)
    after, finished = (reconstruct(before, proto, data, steps=10, finish=finish) for finish in (0, 10))
    assert all(np.array_equal(array(before, name), array(after, name)) for name in "st")
    assert not any(np.array_equal(array(before, name), array(after, name)) for name in "uv")
    assert not any(np.array_equal(array(before, name), array(finished, name)) for name in "st")


def test_what_gets_no_closer_keeps_its_parameters():
    proto = NETS["residual"]
    data = batches(proto, 4, 16)
    before = quantized(proto, data)
    after = reconstruct(before, proto, data, steps=3, finish=3, lr=10.0)
    assert error(proto, after, data) <= error(proto, before, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"finish": -1}, "finish is -1; it must be 0 or more"),
        ({"samples": 0}, "samples is 0; it must be 1 or more"),
        ({"lr": -1.0}, "lr"),
        ({"model": NETS["skip"]}, "give the model that insert was given"),
        ({"data": [{"x": random(4, 3, 8)}]}, "x"),
        ({"data": iter(())}, "can be read once"),
    ],
)
def test_refuses(change, message):
    proto = NETS["residual"]
    data = batches(proto, 2)
    given = {"qdq": quantized(proto, data), "model": proto, "data": data} | change
    with pytest.raises(InputError, match=message):
        reconstruct(**given)


def test_few_samples_are_said(caplog):
    proto = NETS["classifier"]
    data = batches(proto, 2)
    reconstruct(quantized(proto, data), proto, data, steps=1, finish=0)
    assert "the data holds 8 samples; parameters fit few samples alone, give 256 to 1,024" in caplog.text
