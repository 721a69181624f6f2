"""Prunes a small U-Net that finds drawn shapes on noisy images.

    python examples/segmentation.py            # a few minutes on two cores
    python examples/segmentation.py --quick

Needs nothing beside the package: the script draws its images and masks.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

import ekg_tf as ekg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("segmentation_run"), help="run folder")
parser.add_argument("--quick", action="store_true", help="few and small images, to try it out")
args = parser.parse_args()
keras.utils.set_random_seed(0)
SIZE = 32 if args.quick else 64


def draw(count, seed):
    """Images float32 [count, SIZE, SIZE, 1] and masks [count, SIZE, SIZE, 1], 1 on a shape."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = np.zeros((count, SIZE, SIZE, 1), np.float32)
    for mask in masks:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, SIZE, 2)
            height, width = rng.integers(SIZE // 10, SIZE // 4, 2)
            down, right = abs(rows - y) / height, abs(columns - x) / width
            disc = rng.random() < 0.5
            mask[(down**2 + right**2 < 1) if disc else (np.maximum(down, right) < 1)] = 1
    brightness = rng.uniform(0.3, 0.8, (count, 1, 1, 1))
    return (masks * brightness + rng.normal(0, 0.3, masks.shape)).astype(np.float32), masks


def block(x, filters):
    """Two convolutions with batch norm."""
    for _ in range(2):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    return x


def unet(width=8):
    """Down twice, up twice, with the skips of a U-Net; one sigmoid per pixel."""
    inputs = keras.Input((SIZE, SIZE, 1))
    fine = block(inputs, width)
    middle = block(keras.layers.MaxPooling2D()(fine), 2 * width)
    x = block(keras.layers.MaxPooling2D()(middle), 4 * width)
    for skip, filters in ((middle, 2 * width), (fine, width)):
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2, padding="same")(x)
        x = block(keras.layers.Concatenate()([x, skip]), filters)
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(x), name="unet")


# ---- The data and the network, trained and compiled as always with Keras.
train = draw(160 if args.quick else 600, seed=1)
test = draw(80 if args.quick else 200, seed=2)
model = unet()
iou = keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.5, name="iou")
model.compile("adam", "binary_crossentropy", metrics=[iou])
model.fit(*train, batch_size=16, epochs=25, verbose=0)
before = model.evaluate(*test, verbose=0, return_dict=True)

# ---- Half of the FLOPs. Loss and metrics are those that the model is compiled with.
result = ekg.prune(
    model,
    train,
    test,
    args.out,
    budget=0.5,
    # An image and its mask are mirrored together.
    data=ekg.Data(flip=True),
    training=ekg.Training(epochs=10, batch_size=16, learning_rate=0.05),
    # Fewer interim networks to remember, and larger steps of the search: quicker.
    bank=ekg.Bank(teachers=2) if args.quick else "auto",
    method=ekg.EKG(step=0.5) if args.quick else None,
    overwrite=True,
)

# ---- The result is an ordinary Keras model, compiled as the given one.
after = result.model.evaluate(*test, verbose=0, return_dict=True)
result.model.save(args.out / "small.keras")
print(f"IoU        {before['iou']:.4f} -> {after['iou']:.4f}")
print(f"parameters {model.count_params():,} -> {result.model.count_params():,}")
print(f"FLOPs      {result.before['flops']:,} -> {result.after['flops']:,}")
