"""Prunes a MobileNetV2 that transfer learning fits to a folder of images, as in Keras's guide.

    python examples/transfer_learning.py            # several minutes on two cores, offline
    python examples/transfer_learning.py --quick
    python examples/transfer_learning.py --data photos --weights imagenet --size 160

--data is a folder {train,test}/<class>/*. Without it the script writes scikit-learn's digits as
PNG files. ImageNet's weights would have to be downloaded: without --weights the base learns half of
the classes first, and is frozen then. Needs: pip install "ekg_tf[data]", for scikit-learn.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import ekg_tf as ekg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, help="folder {train,test}/<class>/*")
parser.add_argument("--weights", choices=["imagenet"], help="of the base; downloads them")
parser.add_argument("--size", type=int, default=32, help="pixels that images are resized to")
parser.add_argument("--out", type=Path, default=Path("transfer_learning_run"), help="run folder")
parser.add_argument("--quick", action="store_true", help="short trainings, to try it out")
args = parser.parse_args()
keras.utils.set_random_seed(0)


def write_digits(folder):
    """Writes scikit-learn's digits as PNG files {train,test}/<class>/*."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        where = folder / ("test" if number % 4 == 0 else "train") / f"digit_{label}"
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(where / f"{number}.png")
    return folder


def read(split, classes):
    """A tf.data.Dataset of batches (images, labels), without augmentation."""
    return keras.utils.image_dataset_from_directory(
        folder / split, class_names=classes, image_size=(args.size, args.size), verbose=False
    )


def on_base(base, count):
    """A network with a head of its own for `count` classes; a frozen base in inference mode."""
    inputs = keras.Input((args.size, args.size, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = base(x, training=None if base.trainable else False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(count)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


# ---- The data: files in folders, and layers that augment them in training.
folder = args.data or write_digits(Path(tempfile.mkdtemp()))
classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
augment = [keras.layers.RandomTranslation(0.1, 0.1), keras.layers.RandomRotation(0.03)]


def fit(model, data, epochs):
    """Trains on augmented images."""

    def augmented(images, labels):
        for layer in augment:
            images = layer(images, training=True)
        return images, labels

    model.fit(data.map(augmented), epochs=epochs // 3 if args.quick else epochs, verbose=0)


# ---- Keras's guide: a frozen base below a new head; then all of it at a small learning rate.
shape = (args.size, args.size, 3)
base = keras.applications.MobileNetV2(shape, 0.35, include_top=False, weights=args.weights)
if args.weights is None:
    half = classes[: len(classes) // 2]
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for trainings of many thousand steps
    fit(on_base(base, len(half)), read("train", half), epochs=30)
base.trainable = False
train, test = read("train", classes), read("test", classes)
model = on_base(base, len(classes))
fit(model, train, epochs=10)

base.trainable = True
model.compile(keras.optimizers.Adam(1e-4), model.loss, metrics=["accuracy"])
fit(model, train, epochs=15)
before = model.evaluate(test, verbose=0, return_dict=True)

# ---- Half of the FLOPs. The data come without augmentation, which is given beside them.
result = ekg.prune(
    model,
    train,
    test,
    args.out,
    budget=0.5,
    data=ekg.Data(augment=augment),
    training=ekg.Training(epochs=8 if args.quick else 20, batch_size=32),
    # In place of the paper's SGD, since Adam trained the network.
    optimizer=keras.optimizers.Adam(1e-3),
    # The network has 35 groups of channels: larger steps of the search are quicker.
    method=ekg.EKG(step=0.9 if args.quick else 0.5),
    bank=ekg.Bank(teachers=2) if args.quick else "auto",
    overwrite=True,
)

# ---- The result is an ordinary Keras model, compiled as the given one.
after = result.model.evaluate(test, verbose=0, return_dict=True)
result.model.save(args.out / "small.keras")
print(f"accuracy   {before['accuracy']:.4f} -> {after['accuracy']:.4f}")
print(f"parameters {model.count_params():,} -> {result.model.count_params():,}")
print(f"FLOPs      {result.before['flops']:,} -> {result.after['flops']:,}")
