"""load(): the data sets by name, and the places each may be read from."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np

from ..utils.errors import UserError, line_of
from . import cifar, image_folder, imagenet_folder, imagenet_tfds
from .dataset import Dataset, Split, make_split
from .imagenet import ImageFiles

NAMES = ("CIFAR10", "CIFAR100", "DIGITS", "ImageNet")
DOWNLOAD_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""


def load(
    name: str,
    data_path: str | Path | None = None,
    *,
    val_labels: str | Path | None = None,
    hold_out: float | None = None,
) -> Dataset:
    """Loads a data set into memory; of ImageNet, the names of its files.

    Args:
      name: one of NAMES.
      data_path: for CIFAR, the official binary or Python folder, its parent, its .tar.gz, or
        a folder of images {train,test}/<class>/*; None: TFDS, which downloads it. DIGITS comes
        with scikit-learn and takes none. For ImageNet, a folder (`imagenet_folder`).
      val_labels, hold_out: for folders of ImageNet's layout, see `imagenet_folder.read`.

    Raises:
      UserError: an unknown name, or data that is missing, damaged or of another kind.
    """
    if name not in NAMES:
        raise UserError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}")
    if name == "ImageNet":
        return _imagenet(data_path, val_labels, hold_out)
    if val_labels is not None or hold_out is not None:
        raise UserError(f"val_labels and hold_out are for ImageNet, not {name}")
    if name == "DIGITS":
        if data_path is not None:
            raise UserError("DIGITS comes with scikit-learn: leave data_path out")
        return _digits()
    class_names = tuple((CIFAR10_CLASSES if name == "CIFAR10" else CIFAR100_CLASSES).split())
    if data_path is None:
        train, test = _read_tfds(name)
    else:
        train, test, found_names = _read_path(name, Path(data_path).expanduser())
        class_names = found_names or class_names
    # The images are RGB, but both triples start with what is really the blue channel's mean. The
    # paper's networks were trained so, and its published weights need it: do not put it right.
    mean, std = {
        "CIFAR10": ((113.9, 123.0, 125.3), (66.7, 62.1, 63.0)),
        "CIFAR100": ((112.0, 124.0, 129.0), (70.0, 65.0, 68.0)),
    }[name]
    return Dataset(
        name=name,
        train=train,
        test=test,
        class_names=class_names,
        mean=np.array(mean, np.float32),
        std=np.array(std, np.float32),
        pad=4,
        flip=True,
        jitter=0.2,
        subset_per_class=256,
        val_per_class=32,
    )


def _accepted(name: str) -> str:
    layout = cifar.LAYOUTS[name]
    archive = layout.folders[0].split("-batches")[0].removesuffix("-binary")
    return (
        f"{name} comes as {' or '.join(layout.folders)} (the folder or its parent), "
        f"{archive}-binary.tar.gz or {archive}-python.tar.gz, or a folder of 32x32 images "
        "{train,test}/<class>/*"
    )


def _read_path(name: str, path: Path) -> tuple[Split, Split, tuple[str, ...] | None]:
    if path.is_file():
        return *cifar.read_archive(name, path), None
    folder = cifar.find_folder(name, path)
    if folder:
        return *cifar.read_folder(name, folder), None
    if image_folder.is_image_folder(path):
        return image_folder.read(path, cifar.LAYOUTS[name].num_classes)
    problem = f"holds no {name}" if path.exists() else "does not exist"
    raise UserError(f"{path} {problem}: {_accepted(name)}")


def _read_tfds(name: str) -> tuple[Split, Split]:
    import tensorflow_datasets as tfds  # seconds to import, and needed by this source alone

    try:
        builder = tfds.builder(name.lower())
        if not builder.is_prepared():
            # TFDS itself retries for minutes before it reports that there is no network.
            urllib.request.urlopen(DOWNLOAD_SITE, timeout=10).close()
            builder.download_and_prepare()
        loaded = builder.as_dataset(split=["train", "test"], batch_size=-1)
        splits = list(tfds.as_numpy(loaded))
    except Exception as error:  # network, disk and TFDS itself fail in many types
        cause = line_of(error)
        raise UserError(
            f"TFDS could not provide {name} ({cause}): without a network, {_accepted(name)}"
        ) from error
    train, test = (_in_official_order(split, name) for split in splits)
    return train, test


def _in_official_order(split: dict[str, np.ndarray], name: str) -> Split:
    # TFDS stores the examples shuffled; the id ("train_00042") is the place in the official
    # files, so that every source of the data gives an example the same index.
    order = np.argsort(split["id"])
    images, labels = split["image"][order], split["label"][order]
    return make_split(images, labels, cifar.LAYOUTS[name].num_classes, f"TFDS {name.lower()}")


def _imagenet(data_path, val_labels, hold_out) -> ImageFiles:
    """ImageNet, or any photographs of its layout; normalised as torchvision's networks expect."""
    if data_path is None:
        if val_labels is not None or hold_out is not None:
            raise UserError("val_labels and hold_out belong to a folder: give data_path")
        train, test, names = imagenet_tfds.read()
    else:
        labels = None if val_labels is None else Path(val_labels).expanduser()
        folder = Path(data_path).expanduser()
        train, test, names = imagenet_folder.read(folder, val_labels=labels, hold_out=hold_out)
    return ImageFiles(
        name="ImageNet",
        train=train,
        test=test,
        class_names=names,
        mean=np.array([123.675, 116.28, 103.53], np.float32),
        std=np.array([58.395, 57.12, 57.375], np.float32),
        pad=0,
        flip=True,
        jitter=0.2,
        subset_per_class=16,
        val_per_class=4,
    )


def _digits() -> Dataset:
    """1,797 grey 8x8 digits (scikit-learn, from UCI); every fifth of each class is for testing."""
    from sklearn.datasets import load_digits  # slow to import, and needed by this source alone

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    place_in_class = np.zeros(len(images), int)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        place_in_class[members] = np.arange(len(members))
    for_test = place_in_class % 5 == 4
    train, test = (
        make_split(images[chosen], digits.target[chosen], 10, "scikit-learn's digits")
        for chosen in (~for_test, for_test)
    )
    return Dataset(
        name="DIGITS",
        train=train,
        test=test,
        class_names=tuple("0123456789"),
        mean=np.array([78.0], np.float32),  # of all training pixels, as is std
        std=np.array([96.0], np.float32),
        pad=1,
        flip=False,  # a mirrored digit is another sign
        jitter=0.2,
        subset_per_class=64,
        val_per_class=24,
    )
