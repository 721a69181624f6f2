"""Names that flags choose from, where what they stand for needs TensorFlow to be imported."""

from __future__ import annotations

ARCHITECTURES = (
    *(f"ResNet-{depth}" for depth in (20, 32, 44, 56, 110)),  # for small images
    *(f"ResNet-{depth}" for depth in (18, 34, 50)),  # for large ones
    "MobileNet-v2",
)
DATASETS = ("CIFAR10", "CIFAR100", "DIGITS", "ImageNet")
APPLICATIONS = "keras.applications:"
WEIGHTS = (".pkl", ".keras", ".weights.h5", ".safetensors", f"{APPLICATIONS}NAME")
FORMATS = ("savedmodel", "litert", "onnx")
CLASSES, SIGMOIDS, NUMBERS = OUTPUT_KINDS = "classes", "sigmoids", "numbers"  # of a network
# How targets are written: of classes as whole numbers [n] or [n, 1], one-hot, as probabilities;
# all else.
LABELS, COLUMN, ONE_HOT, SOFT, PLAIN = "labels", "labels1", "one-hot", "soft", "plain"
