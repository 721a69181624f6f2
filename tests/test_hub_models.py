"""Networks of KerasHub and kimm are read, and masked = pruned in them."""

import json

import keras
import pytest
from ekg_tf.benchmarks import hub_models
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agrees, sentence
from ekg_tf.pages import models as page

SMALL = {
    hub_models.KERAS_HUB: ["MobileNetV3Small", "HGNetV2B0", "ViT tiny", "MiT B0", "Swin tiny"],
    hub_models.KIMM: ["ConvNeXtAtto", "RepVGGA0", "MobileViTXXS"],
}
NAMED = [(library, name) for library, names in SMALL.items() for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), NAMED)
def test_a_network_of_a_library_is_read_and_pruned(library, name):
    if not hub_models.installed(library):
        pytest.skip(f"{library} isn't installed: pip install -r requirements-hub.txt")
    result = hub_models.measure(f"{library} {name}")
    keras.backend.clear_session()
    assert "problem" not in result, result["problem"]
    assert result["within_reach"] > 0.9
    proof = result["proof"]
    assert agrees(proof) and proof["largest_output"] > 1e-3, sentence(proof)
    assert proof["parameters_counted"] and result["depends_on_image"] > 1e-4


def test_what_stays_is_counted_by_its_reason():
    i = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="first")(i)
    x = keras.ops.flip(x, axis=-1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    graph = ChannelGraph(keras.Model(i, keras.layers.Dense(2, name="last")(x)))
    found = {one["reason"]: one for one in hub_models.staying(graph)}
    assert found["network output"] == {"reason": "network output", "layers": 1, "parameters": 14}
    (other,) = found.keys() - {"network output"}
    assert "turns the channels round" in other and found[other]["parameters"] == 168


def test_the_page_has_every_network_that_was_measured():
    results = json.loads(hub_models.RESULTS.read_text())
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.libraries(results) in text
    assert not results.keys() - hub_models.NETWORKS.keys()
    whole = [one for one in results.values() if one.get("within_reach", 0) >= 0.6]
    assert len(whole) >= 16
    assert all(agrees(one["proof"]) and one["depends_on_image"] > 1e-4 for one in whole)
