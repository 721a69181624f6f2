"""Weights in PyTorch's layout against a numpy reference that follows torchvision's definitions."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.zoo.applications import MEAN, STD, application
from ekg_tf.nets.zoo.builders import build
from ekg_tf.nets.zoo.load import load_network
from ekg_tf.utils.errors import UserError
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

IMAGE, CLASSES = (72, 66, 3), 5  # not square, and with sides that strides do not divide


def torch_arrays(arch: str) -> dict[str, np.ndarray]:
    """Random weights under torchvision's names, in PyTorch's shapes."""
    rng, arrays = np.random.default_rng(0), {}
    for layer in build(arch, CLASSES, IMAGE).layers:
        key = layer.name.replace("_", ".")
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            arrays[f"{key}.weight"] = rng.uniform(0.2, 0.6, size)  # blocks add up
            arrays[f"{key}.bias"] = rng.normal(0, 0.2, size)
            arrays[f"{key}.running_mean"] = rng.normal(0, 0.2, size)
            arrays[f"{key}.running_var"] = rng.uniform(0.5, 1.5, size)
            arrays[f"{key}.num_batches_tracked"] = np.array(7)
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            arrays[f"{key}.weight"] = rng.normal(0, 0.3, (layer.kernel.shape[2], 1, 3, 3))
        elif isinstance(layer, keras.layers.Conv2D):
            side, _, inputs, outputs = layer.kernel.shape
            scale = (2 / (side * side * inputs)) ** 0.5
            arrays[f"{key}.weight"] = rng.normal(0, scale, (outputs, inputs, side, side))
        elif isinstance(layer, keras.layers.Dense):
            arrays[f"{key}.weight"] = rng.normal(0, 0.1, layer.kernel.shape[::-1])
            arrays[f"{key}.bias"] = rng.normal(0, 0.1, CLASSES)
    return {
        key: value if key.endswith("tracked") else value.astype(np.float32)
        for key, value in arrays.items()
    }


class Reference:
    """torch.nn's layers in numpy, on x [n, c, h, w]."""

    def __init__(self, weights):
        self.weights = {key: value.astype(np.float64) for key, value in weights.items()}

    def conv(self, x, name, stride=1, padding=0):
        kernel = self.weights[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
        if kernel.shape[1] == 1:  # depthwise
            return np.einsum("nchwij,cij->nchw", windows, kernel[:, 0], optimize=True)
        return np.einsum("nchwij,ocij->nohw", windows, kernel, optimize=True)

    def norm(self, x, name):
        gamma, beta, mean, variance = (
            self.weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def pool(self, x):
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        return sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((-2, -1))

    def block(self, x, name, stride, bottleneck):
        """torchvision.models.resnet.BasicBlock or Bottleneck."""
        if bottleneck:
            layers = (("1", 1, 0), ("2", stride, 1), ("3", 1, 0))
        else:
            layers = (("1", stride, 1), ("2", 1, 1))
        y = x
        for number, step, padding in layers:
            y = self.conv(np.maximum(y, 0), f"{name}.conv{number}", step, padding)
            y = self.norm(y, f"{name}.bn{number}")
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return np.maximum(y + x, 0)

    def resnet(self, x, blocks, bottleneck):
        x = np.maximum(self.norm(self.conv(x, "conv1", 2, 3), "bn1"), 0)
        x = self.pool(x)
        for stage, count in enumerate(blocks, 1):
            for number in range(count):
                stride = 2 if stage > 1 and not number else 1
                x = self.block(x, f"layer{stage}.{number}", stride, bottleneck)
        return self.head(x, "fc")

    def mobilenet(self, x):
        relu6 = lambda y: np.clip(y, 0, 6)  # noqa: E731
        x = relu6(self.norm(self.conv(x, "features.0.0", 2, 1), "features.0.1"))
        for number in range(1, 18):
            name, y = f"features.{number}.conv", x
            last = 1 if number == 1 else 2
            if last == 2:
                y = relu6(self.norm(self.conv(y, f"{name}.0.0"), f"{name}.0.1"))
            stride = 2 if number in (2, 4, 7, 14) else 1
            y = self.conv(y, f"{name}.{last - 1}.0", stride, 1)
            y = relu6(self.norm(y, f"{name}.{last - 1}.1"))
            y = self.norm(self.conv(y, f"{name}.{last}"), f"{name}.{last + 1}")
            x = x + y if x.shape == y.shape else y
        x = relu6(self.norm(self.conv(x, "features.18.0"), "features.18.1"))
        return self.head(x, "classifier.1")

    def head(self, x, name):
        return x.mean((2, 3)) @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]


@pytest.mark.parametrize(
    ("arch", "blocks"),
    [
        ("ResNet-18", (2, 2, 2, 2)),
        pytest.param("ResNet-34", (3, 4, 6, 3), marks=pytest.mark.slow),
        pytest.param("ResNet-50", (3, 4, 6, 3), marks=pytest.mark.slow),
        ("MobileNet-v2", None),
    ],
)
def test_the_network_computes_what_torchvision_defines(arch, blocks, tmp_path):
    weights = torch_arrays(arch)
    save_file(weights, tmp_path / "net.safetensors")
    images = np.random.default_rng(1).normal(size=(2, *IMAGE)).astype(np.float32)
    model = load_network(tmp_path / "net.safetensors", arch, CLASSES, IMAGE)
    reference, x = Reference(weights), images.transpose(0, 3, 1, 2).astype(np.float64)
    if blocks:
        expected = reference.resnet(x, blocks, arch == "ResNet-50")
    else:
        expected = reference.mobilenet(x)
    assert 0.05 < expected.std() < 1e4
    error = np.abs(model(images, training=False).numpy() - expected).max()
    assert error <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.fixture(scope="module")
def resnet18():
    return torch_arrays("ResNet-18")


def test_half_precision_is_read(resnet18, tmp_path):
    halves = {key: value.astype(np.float16) for key, value in resnet18.items()}
    save_file(halves, tmp_path / "half.safetensors")
    model = load_network(tmp_path / "half.safetensors", "ResNet-18", CLASSES, IMAGE)
    np.testing.assert_array_equal(
        model.get_layer("fc").kernel, halves["fc.weight"].T.astype(np.float32)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer3.1.bn2.running_mean"), r"1 missing \(layer3.1.bn2.running_mean\)$"),
        (lambda w: w.update({"aux.weight": w["fc.bias"]}), r": 1 unexpected \(aux.weight\)$"),
        (
            lambda w: w.update({"fc.bias": w["fc.bias"][:4]}),
            r"1 of another shape \(fc.bias 4 instead of 5\)$",
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if k.startswith("layer4.0")],
            r"15 missing \(layer4.0.conv1.weight, .*, \.\.\.\)$",
        ),
    ],
)
def test_keys_that_do_not_fit(change, message, resnet18, tmp_path):
    weights = dict(resnet18)
    change(weights)
    save_file(weights, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load_network(tmp_path / "net.safetensors", "ResNet-18", CLASSES, IMAGE)
    assert "does not hold torchvision's weights of resnet18 with 5 classes" in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match=r"net.safetensors does not exist"):
        load_network(path, "ResNet-18", CLASSES, IMAGE)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"net.safetensors is not a safetensors file"):
        load_network(path, "ResNet-18", CLASSES, IMAGE)


def test_weights_h5(tmp_path):
    path, shape = tmp_path / "net.weights.h5", (CLASSES, (8, 8, 3))
    model = build("ResNet-20", *shape)
    model.save_weights(path)
    loaded = load_network(path, "ResNet-20", *shape)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match=r"holds no weights of ResNet-32 with 5 classes: "):
        load_network(path, "ResNet-32", *shape)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is damaged or no weights file: "):
        load_network(path, "ResNet-20", *shape)


# ---------------------------------------------------------------- keras.applications


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("MobileNetV2", "mobilenet_v2"),
        pytest.param("ResNet50", "resnet50", marks=pytest.mark.slow),
        pytest.param("DenseNet121", "densenet", marks=pytest.mark.slow),
    ],
)
def test_applications_take_our_normalisation(name, module, tmp_path):
    """One network of each way to scale images; the fresh weights go through a file."""
    shape = (64, 64, 3)
    original = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    original.save_weights(tmp_path / "net.weights.h5")
    # All are built for 224; theirs and ours are compared on the same small image.
    small = getattr(keras.applications, name)(
        weights=tmp_path / "net.weights.h5", classifier_activation=None, input_shape=shape
    )
    ours = application(name, shape, weights=str(tmp_path / "net.weights.h5"))
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(np.float32)
    prepared = getattr(keras.applications, module).preprocess_input(pixels.copy())
    expected = small(prepared, training=False).numpy()
    logits = ours((pixels - MEAN) / STD, training=False).numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_applications_without_a_network_or_a_name(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure on https://storage.googleapis.com/...: timed out")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", fail)
    with pytest.raises(UserError, match=r"keras.applications:MobileNet could not be downloaded"):
        load_network("keras.applications:MobileNet", "", 1000, (224, 224, 3))
    with pytest.raises(UserError, match=r"ResNet5 is unknown: choose one of ResNet50, "):
        load_network("keras.applications:ResNet5", "", 1000, (224, 224, 3))
