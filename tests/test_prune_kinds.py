"""Trained networks of several kinds pruned as their user would, judged from the saved file.

The judge is another process, which opens pruned.keras with Keras alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import ekg_tf as ekg
from tests.helpers.bars import bars
from tests.helpers.own_kinds import KINDS

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("averaged_heads", "frozen_inside")
# Series, volumes and the like don't take these images; the others are untrained or refused.
LONG = (
    *("sequential", "adapted", "operators", "sliced", "squeezed", "transformer", "group_norm"),
    *("activation_layers", "bfloat16", "named_ends", "softmax_then_flatten", "one_layer_twice"),
    *("constrained", "regularised", "spectral", "blocks", "custom_layers", "subclassed"),
    *("logits_compiled", "own_train_step", "augmented", "shuffled", "pixels_shuffled"),
    "no_batch_norm",
)
JUDGE = """
import json, sys
import keras
from tests.helpers import bars, own_kinds  # registers the layers that a network may have kept
assert "ekg_tf" not in sys.modules
model = keras.models.load_model(sys.argv[1])
images, labels = bars.bars(150, 1)
output = keras.tree.flatten(model.predict(images.astype("float32"), verbose=0))[0]
kept = all(
    abs(layer.kernel_constraint(layer.kernel) - layer.kernel).numpy().max() < 1e-3
    for layer in model.layers if getattr(layer, "kernel_constraint", None)
)
print(json.dumps({"accuracy": float((output.argmax(1) == labels).mean()), "kept": kept,
                  "parameters": model.count_params(),
                  "compiled": model.optimizer is not None}))
"""


def accuracy(model, images, labels) -> float:
    output = keras.tree.flatten(model.predict(images, verbose=0))[0]
    return float((output.argmax(1) == labels).mean())


def check(name: str, folder: Path, budget: float) -> None:
    model = KINDS[name]()
    train, test = bars(480, 0), bars(150, 1)
    if name == "subclassed":  # it has no Input that would say what it takes
        train, test = ((images.astype("float32"), labels) for images, labels in (train, test))
    if name == "named_ends":
        model.compile(keras.optimizers.Adam(3e-3), {"kind": "sparse_categorical_crossentropy"})
        model.fit({"picture": train[0]}, {"kind": train[1]}, epochs=15, verbose=0)
    else:
        logits = name in ("logits_compiled", "group_norm", "one_layer_twice")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
        model.fit(*train, epochs=15, verbose=0)
    before = accuracy(model, *test)
    assert before > 0.8, "the network didn't learn its images: that is no test"
    epochs = 16 if name == "sequential" else 8  # half of its units are dropped in training
    result = ekg.prune(
        model,
        train,
        test,
        folder / "run",
        budget=budget,
        method=ekg.EKG(step=0.4),
        bank=ekg.Bank(teachers=2),
        training=ekg.Training(epochs=epochs, batch_size=32, learning_rate=0.01),
        data=ekg.Data(flip=False, crop=0),
    )
    alone = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JUDGE, str(folder / "run" / "pruned.keras")]
    out = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=alone)
    assert out.returncode == 0, out.stderr
    after = json.loads(out.stdout.splitlines()[-1])
    assert after["accuracy"] >= 0.9 * before
    assert after["parameters"] < 0.9 * model.count_params()
    assert after["kept"] and after["compiled"]
    # What was printed is what the file gives, and "before" is the network as it was given.
    assert result.after["test"]["top1"] == pytest.approx(100 * after["accuracy"], abs=0.7)
    assert result.before["test"]["top1"] == pytest.approx(100 * before, abs=0.7)


@pytest.mark.parametrize("name", QUICK)
def test_a_trained_network_comes_out_right(name, tmp_path):
    check(name, tmp_path, budget=0.3 if name == "no_batch_norm" else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_trained_networks_of_all_kinds_come_out_right(name, tmp_path):
    check(name, tmp_path, budget=0.6)
