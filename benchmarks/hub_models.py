"""Image classifiers of KerasHub and kimm through the channel graph, for docs/models.md.

    python -m ekg_tf.benchmarks.hub_models [--networks "kimm ConvNeXtAtto" ...]

Every network is built by its library's own classes with random weights, for ten classes and small
images, and read as a network that a user gives (`nets.given`). The proof is that of
`benchmarks.models`. Results are kept in docs/results/hub_models.json after every network; networks
in it are not measured again. One that can't be built or read has an entry with the reason alone.
KerasHub and kimm are no dependency: `pip install -r requirements-hub.txt`.
`python -m ekg_tf.pages.models` writes docs/models.md from that file.
"""

from __future__ import annotations

from ..utils import devices

devices.import_tensorflow()

import importlib.util
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..cli import manners
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..reports.inspection import inspection
from ..utils.errors import UserError
from ..utils.files import atomic_write
from .models import ROOT, prove

RESULTS = ROOT / "docs/results/hub_models.json"
CLASSES, SIZE, EXAMPLES = 10, 64, 8
KERAS_HUB, KIMM = "KerasHub", "kimm"
MODULES = {KERAS_HUB: "keras_hub", KIMM: "kimm"}
IMAGE = (SIZE, SIZE, 3)


def installed(library: str) -> bool:
    """Whether a library can be imported here."""
    return importlib.util.find_spec(MODULES[library]) is not None


# ---------------------------------------------------------------- KerasHub


def _hub(family: str, *, image: str = "image_shape", head: dict | None = None, **config: Any):
    """A classifier of KerasHub: its backbone by configuration, its own head.

    Args:
        family: of the classes `<family>Backbone` and `<family>ImageClassifier`.
        image: the argument of the backbone for the shape of images.
        head: arguments of the classifier beside the backbone and the classes.
        config: of the backbone; an image shape in it is not overwritten.
    """

    def build() -> keras.Model:
        models = importlib.import_module("keras_hub").models
        backbone = getattr(models, f"{family}Backbone")(**{image: IMAGE} | config)
        classifier = getattr(models, f"{family}ImageClassifier")
        return classifier(backbone=backbone, num_classes=CLASSES, **head or {})

    return build


def _resnet(block: str, blocks: list[int], v2: bool = False, **more: Any):
    return _hub(
        "ResNet",
        **{"input_conv_filters": [64], "input_conv_kernel_sizes": [7]} | more,
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        use_pre_activation=v2,
    )


def _transformer(family: str, **sizes: Any):
    """A tiny ViT or DeiT: 12 layers of 192 channels in 3 heads."""
    return _hub(family, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, **sizes)


def _mobilenet_v5():
    """The blocks of MobileNetV5 300M, two of each kind, at half the width."""
    rows = {  # one list per stage: block type, width, stride and what the type needs
        "stackwise_block_types": [["er", "er"], ["uir"] * 3, ["uir", "mqa"] * 2, ["uir", "mqa"]],
        "stackwise_num_filters": [[64] * 2, [128] * 3, [320] * 4, [640] * 2],
        "stackwise_strides": [[2, 1], [2, 1, 1], [2, 1, 1, 1], [2, 1]],
        "stackwise_exp_ratios": [[4.0] * 2, [6.0, 4.0, 4.0], [6.0, 0, 2.0, 0], [6.0, 0]],
        "stackwise_dw_kernel_sizes": [[0] * 2, [5, 0, 3], [5, 0, 0, 0], [5, 0]],
        "stackwise_dw_start_kernel_sizes": [[0] * 2, [3, 5, 0], [5, 0, 5, 0], [5, 0]],
        "stackwise_exp_kernel_sizes": [[3] * 2, [0] * 3, [0] * 4, [0] * 2],
        "stackwise_pw_kernel_sizes": [[1] * 2, [0] * 3, [0] * 4, [0] * 2],
        "stackwise_num_heads": [[0] * 2, [0] * 3, [0, 6, 0, 6], [0, 8]],
        "stackwise_key_dims": [[0] * 2, [0] * 3, [0, 64, 0, 64], [0, 64]],
        "stackwise_value_dims": [[0] * 2, [0] * 3, [0, 64, 0, 64], [0, 64]],
        "stackwise_kv_strides": [[0] * 2, [0] * 3, [0, 2, 0, 1], [0, 1]],
    }
    depths = [len(row) for row in rows["stackwise_block_types"]]
    constant = {"act_layers": "gelu", "se_ratios": 0.0, "dw_end_kernel_sizes": 0, "use_cpe": False}
    for key, value in constant.items():
        rows[f"stackwise_{key}"] = [[value] * depth for depth in depths]
    return _hub(
        "MobileNetV5",
        stackwise_num_blocks=depths,
        stem_size=32,
        num_features=512,
        msfa_output_resolution=4,
        layer_scale_init_value=1e-5,
        head={"head_hidden_size": 512},
        **rows,
    )


_EFFICIENTNET: dict[str, Any] = {"width_coefficient": 1.0, "depth_coefficient": 1.0}
_HUB = {
    "ResNet18": _resnet("basic_block", [2, 2, 2, 2]),
    "ResNet50": _resnet("bottleneck_block", [3, 4, 6, 3]),
    "ResNet50V2": _resnet("bottleneck_block", [3, 4, 6, 3], True),
    "ResNet18-vd": _resnet(
        "basic_block_vd",
        [2, 2, 2, 2],
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
    ),
    "EfficientNetB0": _hub(
        "EfficientNet",
        image="input_shape",
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0.25] * 7,
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1"] * 7,
        **_EFFICIENTNET,
    ),
    "EfficientNetV2B0": _hub(
        "EfficientNet",
        image="input_shape",
        stackwise_kernel_sizes=[3] * 6,
        stackwise_num_repeats=[1, 2, 2, 3, 5, 8],
        stackwise_input_filters=[32, 16, 32, 48, 96, 112],
        stackwise_output_filters=[16, 32, 48, 96, 112, 192],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_block_types=["fused"] * 3 + ["unfused"] * 3,
        **_EFFICIENTNET,
    ),
    "MobileNetV3Small": _hub(
        "MobileNet",
        stackwise_expansion=[[72, 88], [96, 240, 240], [120, 144], [288, 576, 576]],
        stackwise_num_blocks=[2, 3, 2, 3],
        stackwise_num_filters=[[24] * 2, [40] * 3, [48] * 2, [96] * 3],
        stackwise_kernel_size=[[3] * 2, [5] * 3, [5] * 2, [5] * 3],
        stackwise_num_strides=[[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
        stackwise_se_ratio=[[None] * 2, [0.25] * 3, [0.25] * 2, [0.25] * 3],
        stackwise_activation=[
            ["relu"] * 2,
            ["hard_swish"] * 3,
            ["hard_swish"] * 2,
            ["hard_swish"] * 3,
        ],
        stackwise_padding=[[1] * 2, [2] * 3, [2] * 2, [2] * 3],
        output_num_filters=1024,
        depthwise_filters=16,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=576,
        squeeze_and_excite=0.5,
    ),
    "MobileNetV5": _mobilenet_v5(),
    "DenseNet121": _hub("DenseNet", stackwise_num_repeats=[6, 12, 24, 16]),
    "Xception": _hub(
        "Xception",
        stackwise_conv_filters=[
            *([128, 128], [256, 256], [728, 728]),
            *[[728, 728, 728]] * 8,
            *([728, 1024], [1536, 2048]),
        ],
        stackwise_pooling=[*[True] * 3, *[False] * 8, True, False],
    ),
    "CSPDarkNet53": _hub(
        "CSPNet",
        stem_filters=32,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2, 8, 8, 4],
        stackwise_strides=[2] * 5,
        stackwise_num_filters=[64, 128, 256, 512, 1024],
        bottle_ratio=[0.5, 1.0, 1.0, 1.0, 1.0],
        block_ratio=[1.0, 0.5, 0.5, 0.5, 0.5],
        expand_ratio=[2.0, 1.0, 1.0, 1.0, 1.0],
        down_growth=True,
        stage_type="csp",
        block_type="dark_block",
    ),
    "HGNetV2B0": _hub(
        "HGNetV2",
        depths=[1, 1, 2, 1],
        embedding_size=16,
        hidden_sizes=[64, 256, 512, 1024],
        stem_channels=[3, 16, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[
            (16, 16, 64, 1, 3, 3),
            (64, 32, 256, 1, 3, 3),
            (256, 64, 512, 2, 3, 5),
            (512, 128, 1024, 1, 3, 5),
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        head={"preprocessor": None},
    ),
    "VGG11": _hub(
        "VGG",
        image_shape=(224, 224, 3),
        stackwise_num_repeats=[1, 1, 2, 2, 2],
        stackwise_num_filters=[64, 128, 256, 512, 512],
        head={"pooling_hidden_dim": 512},
    ),
    "ViT tiny": _transformer("ViT", mlp_dim=768),
    "DeiT tiny": _transformer("DeiT", intermediate_dim=768),
    "MiT B0": _hub(
        "MiT",
        layerwise_depths=[2, 2, 2, 2],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[32, 64, 160, 256],
    ),
    "Swin tiny": _hub(
        "SwinTransformer",
        image_shape=(128, 128, 3),
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=4,
    ),
}


# ---------------------------------------------------------------- kimm


def _kimm(name: str):
    def build() -> keras.Model:
        models = importlib.import_module("kimm").models
        return getattr(models, name)(input_shape=IMAGE, classes=CLASSES, weights=None)

    return build


_KIMM = (
    *(
        "ConvNeXtAtto",
        "GhostNetW100",
        "GhostNetV2W100",
        "GhostNetV3W100",
        "RepVGGA0",
        "MobileOneS0",
    ),
    *("HGNetV2B0", "MobileViTXXS", "MobileViTV2W050", "VisionTransformerTiny16", "RegNetY002"),
    *("InceptionNeXtTiny", "ConvMixer736D32"),
)

Build = Callable[[], keras.Model]
NETWORKS: dict[str, tuple[str, Build]] = {
    **{f"{KERAS_HUB} {name}": (KERAS_HUB, build) for name, build in _HUB.items()},
    **{f"{KIMM} {name}": (KIMM, _kimm(name)) for name in _KIMM},
}


# ---------------------------------------------------------------- measuring


def read(model: keras.Model) -> Given:
    """A network as the door reads it, on a few random images."""
    shape = tuple(keras.tree.flatten(model.input)[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, (EXAMPLES, *shape)).astype(np.float32)
    return Given.read(model, images)


def enliven(model: keras.Model, rng: np.random.Generator) -> None:
    """Gives a fresh network weights with which its output depends on the image.

    Kernels of convolutions get the size that keeps a signal's; scales, which some networks begin
    at 1e-5, get random ones around 1.
    """
    for layer in model.layers:
        for variable in layer.weights:
            shape, value = tuple(variable.shape), np.asarray(variable)
            if "kernel" in variable.name and len(shape) > 2 and value.std() > 0:
                taps = math.prod(shape[:-1])
                if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
                    taps //= shape[-2]
                variable.assign(value * math.sqrt(1.5 / taps) / value.std())
            elif variable.name in ("embeddings", "scale") and value.min() == value.max():
                variable.assign(rng.uniform(0.5, 1.5, shape))


def depends_on_image(model: keras.Model, rng: np.random.Generator) -> float:
    """How far the logits of random images lie apart, as a share of the largest."""
    images = rng.normal(0.2, 1, (EXAMPLES, *model.input_shape[1:])).astype(np.float32)
    logits = np.asarray(model(images, training=False))
    return float(logits.std(0).max() / np.abs(logits).max())


def staying(graph: ChannelGraph) -> list[dict[str, Any]]:
    """What one filter per group leaves, by the reason, the largest share of the parameters first.

    Returns:
        [{"reason", "layers": how many, "parameters": all that these layers have}].
    """
    reasons = graph.left | graph.frozen
    found: dict[str, list[int]] = {}
    for layer in graph.model.layers:
        if layer.name in reasons and layer.weights:
            entry = found.setdefault(_short(reasons[layer.name]), [0, 0])
            entry[0] += 1
            entry[1] += layer.count_params()
    order = sorted(found.items(), key=lambda item: -item[1][1])
    return [{"reason": why, "layers": n, "parameters": size} for why, (n, size) in order]


def _short(reason: str) -> str:
    """A reason without the numbers of layers, so that like ones are counted together."""
    return re.sub(r"(_\d+)+\b", "", reason)


def measure(name: str) -> dict[str, Any]:
    """All figures of one network; {"library", "problem": one line} where it can't be had."""
    library, build = NETWORKS[name]
    try:
        model = build()
    except Exception as error:  # another project's code
        return {"library": library, "problem": f"can't be built: {_line(error)}"}
    try:
        given = read(model)
        begin = time.perf_counter()
        graph = ChannelGraph(given.core, closed=given.closed)
        seconds = time.perf_counter() - begin
        result = inspection(graph)
    except UserError as error:
        return {"library": library, "problem": _line(error)}
    result |= {
        "network": name,
        "library": library,
        "groups": sum(group["prunable"] for group in result["groups"]),
        "within_reach": 1 - result["lowest_parameters"],
        "graph_seconds": round(seconds, 2),
        "outputs": [one.kind for one in given.outputs],
        "closed": {one: why for one, why in given.closed.items()},
        "staying": staying(graph),
    }
    rng = np.random.default_rng(0)
    enliven(given.core, rng)
    result["proof"] = prove(given.core)
    result["depends_on_image"] = depends_on_image(given.core, rng)
    return result


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), metavar="NAME")
    args = parser.parse_args(argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.networks or NETWORKS:
        if name in results or not installed(NETWORKS[name][0]):
            continue
        results[name] = measure(name)
        keras.backend.clear_session()
        text = json.dumps(results, indent=1) + "\n"
        atomic_write(RESULTS, lambda path, text=text: path.write_text(text))
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    manners.run(main)
