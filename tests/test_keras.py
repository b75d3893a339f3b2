"""Training with Keras's own `fit`; what it computes is held against `Trainer` and Keras's own numbers."""

import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import onnxqat
import onnxqat.keras
from onnxqat import Config, InputError
from onnxqat.graph import io
from onnxqat.graph.pairs import held_weights
from onnxqat.keras.model import graph_of
from onnxqat.numerics import pair_safe_scale
from tests.models import model, outputs, random
from tests.training.test_trainer import BODY, WEIGHTS, batches

BATCHES = batches(4)
X, LABEL = (np.concatenate([batch[name] for batch in BATCHES]) for name in ("x", "label"))
TWO_ENDS = """(float[N,6] left, float[N,6] right) => (float[N,3] a, float[N,2] b)
    { t = Add(left, right) a = MatMul(t, w1) r = Relu(t) b = MatMul(r, w2) }"""


def inserted(config=None):
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": batch["x"]} for batch in BATCHES], config)


@pytest.fixture(scope="module")
def qdq():
    return inserted()


@pytest.fixture
def wrapped(qdq):
    return onnxqat.keras.as_model(qdq)


@pytest.fixture(scope="module")
def two_ends():
    proto = model(TWO_ENDS, w1=random(6, 3), w2=random(6, 2))
    return onnxqat.insert(proto, [{"left": random(8, 6, scale=1.0), "right": random(8, 6, seed=1, scale=1.0)}])


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(wrapped, optimizer=None, **settings):
    wrapped.compile(optimizer or keras.optimizers.SGD(0.01), loss=cross_entropy(), metrics=["accuracy"], **settings)
    return wrapped


def weights(wrapped):
    return {name: graph_of(wrapped).variable(name).numpy() for name in graph_of(wrapped).parameters}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("traced", [True, False], ids=["tf.function", "eager"])
@pytest.mark.parametrize("bits", [8, 4])
def test_loss_and_gradients_are_those_of_the_trainer(bits, traced, training):
    qdq = inserted(Config(weight_bits=bits, activation_bits=bits))
    wrapped = onnxqat.keras.as_model(qdq)
    loss, expected = onnxqat.Trainer(qdq).gradients({"x": X, "label": LABEL})
    _, by_input = onnxqat.gradients(qdq, {"x": X}, wrt=["x"], cotangents={"y": _cotangent(wrapped(X).numpy())})

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = cross_entropy()(LABEL, wrapped(x, training=training))
        return found, tape.gradient(found, [x, *wrapped.trainable_weights])

    found, (by_x, *gradients) = (tf.function(step) if traced else step)(tf.constant(X))
    assert float(found) == pytest.approx(loss, rel=1e-6)
    for name, gradient in zip(graph_of(wrapped).parameters, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6 * np.abs(expected[name]).max() + 1e-9)
    np.testing.assert_allclose(by_x, by_input["x"], rtol=1e-4, atol=1e-8)


def _cotangent(logits):
    """The gradient of the mean cross-entropy by logits."""
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    share[np.arange(len(LABEL)), LABEL] -= 1
    return (share / len(LABEL)).astype(np.float32)


def test_answers_are_those_of_the_graph_and_come_back_as_onnx(qdq, wrapped):
    (expected,) = outputs(qdq, {"x": X})
    np.testing.assert_allclose(wrapped.predict(X, verbose=0), expected, rtol=1e-6)
    initial = {one.name: numpy_helper.to_array(one) for one in qdq.graph.initializer}
    returned = {one.name: numpy_helper.to_array(one) for one in onnxqat.keras.to_model(wrapped).graph.initializer}
    assert all(np.array_equal(returned[name], array) for name, array in initial.items())


def test_weights_are_the_initializers_and_inputs_and_outputs_have_their_names(qdq, wrapped, two_ends):
    floats = {one.name for one in qdq.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    zero_points = {one.name for one in qdq.graph.initializer if one.name.endswith("_zero_point")}
    assert {w.name for w in wrapped.non_trainable_weights} == zero_points
    assert {w.name for w in wrapped.trainable_weights} == floats
    both = onnxqat.keras.as_model(two_ends)
    assert ([one.name for one in both.inputs], both.output_names) == (["left", "right"], ["a", "b"])


def test_fit_trains_with_the_callbacks_of_keras(wrapped, tmp_path):
    best = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(best, save_best_only=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch:02d}.weights.h5", save_weights_only=True),
        keras.callbacks.ReduceLROnPlateau(patience=1),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    data = tf.data.Dataset.from_tensor_slices((X, LABEL)).shuffle(64, seed=0).batch(16)
    compiled(wrapped, keras.optimizers.Adam(1e-2))
    before = wrapped.evaluate(X, LABEL, verbose=0)[0]
    history = wrapped.fit(
        data, validation_data=(X, LABEL), epochs=4, callbacks=callbacks, shuffle=False, verbose=0
    ).history
    after = wrapped.evaluate(X, LABEL, verbose=0)[0]
    assert after < before
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == [f"{n:02d}.weights.h5" for n in range(1, 5)]
    loaded = keras.models.load_model(best)
    assert loaded.evaluate(X, LABEL, verbose=0)[0] == pytest.approx(min(history["val_loss"]), rel=1e-5)
    deployed = onnxqat.fold(onnxqat.keras.to_model(wrapped))
    (answers,) = outputs(deployed, {"x": X})
    assert (answers.argmax(1) == wrapped.predict(X, verbose=0).argmax(1)).mean() > 0.9


@pytest.mark.parametrize("labels", [LABEL[:, None], np.eye(5, dtype=np.float32)[LABEL]], ids=["column", "one-hot"])
def test_labels_are_kerass_business(wrapped, labels):
    one_hot = labels.shape[1] > 1
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else cross_entropy()
    wrapped.compile(keras.optimizers.SGD(0.0), loss=loss)
    expected = compiled(onnxqat.keras.as_model(onnxqat.keras.to_model(wrapped))).evaluate(X, LABEL, verbose=0)[0]
    assert wrapped.evaluate(X, labels, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_sample_and_class_weights_reach_the_gradients(wrapped):
    chosen = LABEL == 0
    step = {"batch_size": len(X), "epochs": 1, "shuffle": False, "verbose": 0}
    twin = onnxqat.keras.as_model(onnxqat.keras.to_model(wrapped))
    compiled(wrapped).fit(X, LABEL, sample_weight=np.where(chosen, 3.0, 1.0), **step)
    compiled(twin).fit(X, LABEL, class_weight={0: 3.0, **dict.fromkeys(range(1, 5), 1.0)}, **step)
    for name, array in weights(wrapped).items():
        np.testing.assert_allclose(array, weights(twin)[name], rtol=1e-5, atol=1e-7)


def test_several_inputs_and_outputs_take_losses_by_name(two_ends):
    wrapped = onnxqat.keras.as_model(two_ends)
    data = {"left": random(16, 6, scale=1.0), "right": random(16, 6, seed=1, scale=1.0)}
    targets = {"a": random(16, 3, scale=1.0), "b": random(16, 2, scale=1.0)}
    wrapped.compile(keras.optimizers.Adam(1e-2), loss={"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5})
    expected = outputs(two_ends, data)
    found = wrapped.evaluate(data, targets, verbose=0, return_dict=True)
    assert found["a_loss"] == pytest.approx(np.square(expected[0] - targets["a"]).mean(), rel=1e-5)
    assert found["b_loss"] == pytest.approx(np.abs(expected[1] - targets["b"]).mean(), rel=1e-5)
    history = wrapped.fit(data, targets, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert len(wrapped([data["left"], data["right"]])) == 2


def test_scales_stay_in_their_bounds_and_weights_pair_safe(qdq, wrapped):
    compiled(wrapped, keras.optimizers.SGD(100.0)).fit(X, LABEL, batch_size=16, epochs=1, shuffle=False, verbose=0)
    first = {one.name: numpy_helper.to_array(one) for one in qdq.graph.initializer}
    found = weights(wrapped)
    scales = [name for name in found if name.endswith("_scale")]
    assert all((found[name] >= first[name] * 2.0**-14 * 0.999).all() for name in scales)
    held = held_weights(io.load(qdq))
    assert held
    for one in held:
        least = pair_safe_scale(one.reach(found[one.quantizer.source.name]), one.quantizer.zero_points.reshape(-1))
        assert (found[one.quantizer.scale.name].reshape(-1) >= least * (1 - 1e-5)).all()


def test_weights_and_checkpoints_come_back_equal(qdq, tmp_path):
    trained, optimizer = onnxqat.keras.as_model(qdq), keras.optimizers.Adam(1e-3)
    compiled(trained, optimizer).fit(X, LABEL, epochs=1, verbose=0)
    trained.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(model=trained, optimizer=optimizer).write(str(tmp_path / "checkpoint"))
    by_weights, by_checkpoint = (onnxqat.keras.as_model(qdq) for _ in range(2))
    by_weights.load_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(model=by_checkpoint).restore(str(tmp_path / "checkpoint")).expect_partial()
    for other in (by_weights, by_checkpoint):
        assert all(np.array_equal(array, weights(other)[name]) for name, array in weights(trained).items())


def test_zero_points_of_another_calibration_are_loaded_with_the_weights(qdq, tmp_path):
    shifted = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": batch["x"] * 0.5 - 1} for batch in BATCHES])
    other = onnxqat.keras.as_model(shifted)
    other.save_weights(tmp_path / "m.weights.h5")
    wrapped = onnxqat.keras.as_model(qdq)
    wrapped.load_weights(tmp_path / "m.weights.h5")
    (expected,) = outputs(shifted, {"x": X})
    np.testing.assert_allclose(wrapped.predict(X, verbose=0), expected, rtol=1e-6)
    np.testing.assert_array_equal(outputs(onnxqat.keras.to_model(wrapped), {"x": X})[0], expected)


def test_a_saved_model_loads_in_a_new_process_without_any_other_file(wrapped, tmp_path):
    compiled(wrapped).fit(X, LABEL, epochs=1, verbose=0)
    wrapped.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", X)
    program = (
        "import sys, keras, numpy as np, onnx, onnxqat.keras; model = keras.models.load_model(sys.argv[1] + '/m.keras')\n"
        "np.save(sys.argv[1] + '/y.npy', model.predict(np.load(sys.argv[1] + '/x.npy'), verbose=0))\n"
        "onnx.save(onnxqat.keras.to_model(model), sys.argv[1] + '/m.onnx')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    expected = wrapped.predict(X, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-6)
    np.testing.assert_allclose(outputs(onnx.load(tmp_path / "m.onnx"), {"x": X})[0], expected, rtol=1e-6)


def test_an_interrupted_fit_goes_on_where_it_was(qdq, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*callbacks):
        wrapped = compiled(onnxqat.keras.as_model(qdq), keras.optimizers.Adam(1e-3))
        wrapped.fit(X, LABEL, epochs=4, shuffle=False, verbose=0, callbacks=list(callbacks))
        return weights(wrapped)

    with pytest.raises(KeyboardInterrupt):
        run(keras.callbacks.BackupAndRestore(tmp_path), Stop())
    resumed, whole = run(keras.callbacks.BackupAndRestore(tmp_path)), run()
    for name, array in whole.items():
        np.testing.assert_allclose(resumed[name], array, rtol=1e-5, atol=1e-7)


def test_quantization_begins_at_its_epochs():
    qdq = inserted(Config(weight_start_epoch=1, activation_start_epoch=2, overflow_fix="disable"))
    wrapped = compiled(onnxqat.keras.as_model(qdq), keras.optimizers.SGD(1e-3))
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights(wrapped))

    first = weights(wrapped)
    wrapped.fit(X, LABEL, epochs=3, verbose=0, callbacks=[See()])
    scales = {
        kind: [name for name in first if name.endswith("_scale") and name.startswith("w") is kind]
        for kind in (True, False)
    }
    moved = [
        {kind: any((now[name] != before[name]).any() for name in scales[kind]) for kind in scales}
        for before, now in zip([first, *seen], seen, strict=False)
    ]
    assert moved == [{True: False, False: False}, {True: True, False: False}, {True: True, False: True}]
    left = onnxqat.keras.to_model(onnxqat.keras.as_model(qdq)).metadata_props
    assert {one.key: one.value for one in left}["onnxqat.activation_start_epoch"] == "2"


def test_a_restored_model_quantizes_what_the_saved_one_did(tmp_path):
    wrapped, other = (onnxqat.keras.as_model(inserted(Config(activation_start_epoch=1))) for _ in range(2))
    wrapped.schedule.epoch_step()
    expected = wrapped.predict(X, verbose=0)
    assert not np.array_equal(other.predict(X, verbose=0), expected)
    wrapped.save(tmp_path / "saved.keras")
    wrapped.save_weights(tmp_path / "saved.weights.h5")
    other.load_weights(tmp_path / "saved.weights.h5")
    for restored in (other, keras.models.load_model(tmp_path / "saved.keras")):
        np.testing.assert_array_equal(restored.predict(X, verbose=0), expected)


def test_statistics_of_every_epoch_reach_tensorboard(wrapped, tmp_path):
    compiled(wrapped).fit(X, LABEL, epochs=2, verbose=0, callbacks=onnxqat.keras.callbacks(wrapped, log_dir=tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("scale/x/largest")] == [0, 1]


def test_frozen_weights_stay_and_a_model_may_be_part_of_another(wrapped):
    graph_of(wrapped).trainable = False
    before = weights(wrapped)
    probabilities = keras.Sequential([wrapped, keras.layers.Dense(5), keras.layers.Softmax()])
    probabilities.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    history = probabilities.fit(X, LABEL, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert all(np.array_equal(array, before[name]) for name, array in weights(wrapped).items())
    assert onnxqat.keras.to_model(probabilities).graph.node


def test_two_replicas_take_the_step_of_one():
    program = """
import contextlib, keras, numpy as np, onnx, sys, tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
import onnxqat.keras
from tests.test_keras import X, LABEL, compiled, inserted, weights
def trained(strategy):
    with strategy.scope() if strategy else contextlib.nullcontext():
        wrapped = compiled(onnxqat.keras.as_model(inserted()))
    wrapped.fit(X, LABEL, batch_size=len(X), epochs=1, shuffle=False, verbose=0)
    return weights(wrapped)
one, two = trained(None), trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print(max(np.abs(two[name] - array).max() for name, array in one.items()))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    assert float(done.stdout.splitlines()[-1]) < 1e-5


def test_what_cannot_be_is_refused_with_the_way_that_works(wrapped, tmp_path):
    with pytest.raises(InputError, match="to_model"):
        wrapped.export(tmp_path / "saved")
    with pytest.raises(InputError, match="to_model"):
        tf.saved_model.save(wrapped, str(tmp_path / "saved"))
    with pytest.raises(InputError, match="as_model"):
        onnxqat.keras.to_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(InputError, match="onnxqat insert"):
        onnxqat.keras.as_model(model(BODY, **WEIGHTS))
    graph_of(wrapped).variable("w1").assign(np.full_like(WEIGHTS["w1"], np.nan))
    with pytest.raises(InputError, match="weight 'w1': holds NaN"):
        onnxqat.keras.to_model(wrapped)


def test_one_call_quantizes_a_keras_model_with_its_dataset(two_ends):
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    float_model = keras.Model([left, right], keras.layers.Dense(3, name="z")(keras.layers.Add()([left, right])))
    arrays = {"left": random(16, 6, scale=1.0), "right": random(16, 6, seed=1, scale=1.0)}
    dataset = tf.data.Dataset.from_tensor_slices((arrays, np.zeros(16))).batch(8)
    quantized = onnxqat.keras.quantize(float_model, dataset, Config(activation_bits=8))
    np.testing.assert_allclose(quantized(arrays), float_model(arrays), atol=0.1)
    in_order = tf.data.Dataset.from_tensor_slices(((arrays["left"], arrays["right"]), np.zeros(16))).batch(8)
    np.testing.assert_array_equal(onnxqat.keras.quantize(float_model, in_order)(arrays), quantized(arrays))
    assert {node.op_type for node in quantized.fold().graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    with pytest.raises(InputError, match="gives 1 inputs, the model takes left, right"):
        onnxqat.keras.quantize(float_model, dataset.map(lambda given, _: given["left"]))


@pytest.mark.parametrize(
    ("arguments", "thing"),
    [
        ({"optimizer": keras.optimizers.Adam()}, "optimizer: Adam"),
        ({"schedule": keras.optimizers.schedules.CosineDecay(0.1, 10)}, "schedule: CosineDecay"),
        ({"loss": cross_entropy()}, "loss: SparseCategoricalCrossentropy"),
    ],
)
def test_trainer_refuses_what_is_kerass_and_names_the_model_that_takes_it(qdq, arguments, thing):
    with pytest.raises(InputError, match=rf"{thing} .*onnxqat\.keras\.as_model"):
        onnxqat.Trainer(qdq, **arguments)


def test_trainer_refuses_callbacks_of_keras_before_it_trains(qdq):
    trainer = onnxqat.Trainer(qdq, loss="mse")
    for callbacks in ([keras.callbacks.EarlyStopping()], keras.callbacks.EarlyStopping()):
        with pytest.raises(InputError, match=r"callbacks: .*EarlyStopping.*onnxqat\.keras\.as_model"):
            trainer.fit([], callbacks=callbacks)
