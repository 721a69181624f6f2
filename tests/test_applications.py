"""Masked = pruned in the networks of keras.applications, and how much of them can be pruned."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from ekg_tf.benchmarks import hub_models, models
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agrees, sentence
from ekg_tf.nets.zoo.applications import application_names
from ekg_tf.nets.zoo.applications import fresh_application as application
from ekg_tf.pages import models as page
from ekg_tf.reports.inspection import filters
from ekg_tf.utils.keras_files import save_keras

FAST = ["MobileNet", "MobileNetV2", "MobileNetV3Small", "ResNet50V2", "EfficientNetB0"]
WELL_UNDERSTOOD = """ResNet50 ResNet50V2 VGG16 MobileNet MobileNetV2 MobileNetV3Small DenseNet121
EfficientNetB0 EfficientNetV2B0 InceptionV3 Xception ConvNeXtTiny NASNetMobile""".split()


def check(name, batch_statistics=False):
    model = models.small(name)
    prunable, total = filters(ChannelGraph(model))
    if name in WELL_UNDERSTOOD:
        assert prunable > 0.6 * total
    result = models.prove(model, batch_statistics=batch_statistics)
    assert agrees(result) and result["largest_output"] > 1e-3, sentence(result)
    assert result["parameters_counted"]
    keras.backend.clear_session()


@pytest.mark.parametrize("name", FAST)
def test_small_networks(name):
    check(name)


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_small_networks_on_batch_statistics(name):
    check(name, batch_statistics=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in application_names() if name not in FAST])
def test_every_network(name):
    check(name)


def test_a_pruned_network_opens_without_this_package(tmp_path):
    model = application("MobileNetV3Small", input_shape=(64, 64, 3), classes=10)
    graph = ChannelGraph(model)
    pruned = graph.pruned(models.random_mask(graph, 0.5, np.random.default_rng(0)))
    save_keras(tmp_path / "pruned.keras", pruned)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import json, sys, keras, numpy as np\n"
        "model = keras.models.load_model('pruned.keras')\n"
        "print(json.dumps(model(np.load('images.npy')).numpy().tolist()))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=True,
    )
    logits = json.loads(run.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(logits, pruned(images), atol=1e-6)


def test_the_page_is_printed_from_the_results():
    results = json.loads(models.RESULTS.read_text())
    hub = json.loads(hub_models.RESULTS.read_text())
    assert page.PAGE.read_text(encoding="utf-8") == page.page(results, hub)
    assert all(agrees(one["proof"]) for one in results.values())
