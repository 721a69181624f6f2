"""Values of flags that depend on the data set."""

import argparse

from dataloader import Dataset, own
from pruning.bank import MANY_CLASSES

# Where the user gives no value: the paper's for CIFAR and ImageNet (method.md 3), minutes on a CPU
# for DIGITS. Learning rates are for BASE_BATCH images per step where a data set has one.
CIFAR = {
    "baseline_epoch": 200,
    "baseline_learning_rate": 0.1,
    "baseline_decay_points": (0.3, 0.6, 0.8),
    "baseline_decay_rate": 0.2,
    "train_epoch": 100,
    "learning_rate": 0.01,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "supernet_epoch": 40,
    "supernet_learning_rate": 0.02,
    "supernet_batch_size": 128,
}
# One epoch of a supernet costs about five of a plain network.
SHORT = {"supernet_epoch": 10, "supernet_batch_size": 64}
DEFAULTS = {
    "CIFAR10": CIFAR,
    "CIFAR100": CIFAR,
    "DIGITS": CIFAR | {"baseline_epoch": 40, "train_epoch": 20, "batch_size": 64} | SHORT,
    own.NAME: CIFAR | {"train_epoch": 20, "batch_size": 64} | SHORT,
    "ImageNet": CIFAR
    | {
        "baseline_epoch": 100,
        "baseline_decay_points": (0.3, 0.6, 0.9),
        "baseline_decay_rate": 0.1,
        "train_epoch": 50,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "supernet_epoch": 20,
        "supernet_batch_size": 256,
    },
}
BASE_BATCH = {"ImageNet": 256}  # the default rates grow with the batch: 0.1 * batch / 256
TEMPERATURE, TEMPERATURE_OF_MANY = 4.0, 10.0  # the second from MANY_CLASSES classes up


def fill_defaults(args: argparse.Namespace, data: Dataset) -> None:
    """Puts the data set's own defaults where the user gave no value."""
    values = DEFAULTS[data.name] | {
        "subset_per_class": data.subset_per_class,
        "val_per_class": data.val_per_class,
        "temperature": TEMPERATURE if data.num_classes < MANY_CLASSES else TEMPERATURE_OF_MANY,
    }
    if data.name in BASE_BATCH:
        batch_images = getattr(args, "batch_size", None) or values["batch_size"]
        for name in ("learning_rate", "baseline_learning_rate"):
            values[name] *= batch_images / BASE_BATCH[data.name]
        batch_images = getattr(args, "supernet_batch_size", None) or values["supernet_batch_size"]
        values["supernet_learning_rate"] *= batch_images / BASE_BATCH[data.name]
    for name, value in values.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)
