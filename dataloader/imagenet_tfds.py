"""TFDS's imagenet2012 with random access: where every record lies in the TFRecord files.

TFDS reads its shards from the beginning to the end. A memory bank needs example n at any time, so
the records' places are noted once, in a pass that parses names and labels but decodes no image.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from ..utils import progress
from ..utils.arrays import load_state, save_state
from ..utils.errors import UserError, line_of
from .imagenet import FileSplit

NAME = "imagenet2012"
SPLITS = ("train", "validation")
INDEX = "ekg_index_{}.npz"  # beside the shards
HEADER_BYTES, FOOTER_BYTES = 12, 4  # of a TFRecord: length and its checksum; the data's checksum
SCAN_RECORDS = 1024
FEATURES = {
    "label": tf.io.FixedLenFeature([], tf.int64),
    "file_name": tf.io.FixedLenFeature([], tf.string),
}


def read() -> tuple[FileSplit, FileSplit, tuple[str, ...]]:
    """The prepared data set, or one that TFDS prepares now from the downloaded archives.

    Returns:
      (train, test, class names); examples are ordered by class, then by file name, as those of
      an image folder are.

    Raises:
      UserError: TFDS cannot provide it, or not as TFRecord files.
    """
    import tensorflow_datasets as tfds  # seconds to import, and needed by this source alone

    try:
        builder = tfds.builder(NAME)
        if not builder.is_prepared():
            builder.download_and_prepare()
        info = builder.info
        shards = {split: [Path(path) for path in info.splits[split].filepaths] for split in SPLITS}
        names = tuple(info.features["label"].names)
    except Exception as error:  # archives, network, disk and TFDS itself fail in many types
        cause = line_of(error)
        raise UserError(
            f"TFDS could not provide {NAME} ({cause}): put ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar into its folder downloads/manual, or give a folder "
            "with train/<class>/ and val/<class>/"
        ) from error
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"{builder.data_dir} holds {info.file_format.value} files: prepare {NAME} as tfrecord"
        )
    return *(_split(Path(builder.data_dir), split, shards[split]) for split in SPLITS), names


def _split(folder: Path, split: str, shards: list[Path]) -> FileSplit:
    index = folder / INDEX.format(split)
    if index.exists():
        places = load_state(index)
    else:
        places = _scanned(split, shards)
        if os.access(folder, os.W_OK):
            save_state(index, places)
        else:
            progress.warn(f"{folder} is not writable: its shards will be scanned by every run")
    paths = [os.fspath(shard) for shard in shards]
    shard_of, offsets, lengths = (places[key] for key in ("shard", "offset", "length"))

    def record(index: np.ndarray) -> bytes:
        descriptor = os.open(paths[shard_of[index]], os.O_RDONLY)
        try:
            return os.pread(descriptor, lengths[index], offsets[index])
        finally:
            os.close(descriptor)

    def image(index: tf.Tensor) -> tf.Tensor:
        data = tf.ensure_shape(tf.numpy_function(record, [index], tf.string, stateful=False), [])
        feature = {"image": tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_single_example(data, feature)["image"]

    return FileSplit(
        names=[name.decode() for name in places["name"].tolist()],
        sizes=lengths,
        targets=places["label"].astype(np.int32),
        read=image,
    )


def _scanned(split: str, shards: list[Path]) -> dict[str, np.ndarray]:
    """Shard, offset and length (bytes) of every record, its label and file name, in our order."""
    columns: dict[str, list] = {key: [] for key in ("shard", "offset", "length", "label", "name")}

    def parse(record: tf.Tensor) -> tuple:
        example = tf.io.parse_single_example(record, FEATURES)
        return tf.strings.length(record), example["label"], example["file_name"]

    with progress.bar(f"index of {split}", len(shards)) as bar:
        for number, shard in enumerate(shards):
            rows = tf.data.TFRecordDataset(os.fspath(shard)).map(parse, tf.data.AUTOTUNE)
            position = 0
            for lengths, labels, names in rows.batch(SCAN_RECORDS).as_numpy_iterator():
                lengths = lengths.astype(np.int64)
                ends = position + np.cumsum(lengths + HEADER_BYTES + FOOTER_BYTES)
                columns["offset"].append(ends - FOOTER_BYTES - lengths)
                columns["shard"].append(np.full(len(lengths), number))
                columns["length"].append(lengths)
                columns["label"].append(labels)
                columns["name"].append(names.astype(np.bytes_))
                position = int(ends[-1])
            bar.advance(1)
    places = {key: np.concatenate(parts) for key, parts in columns.items()}
    order = np.lexsort((places["name"], places["label"]))
    return {key: column[order] for key, column in places.items()}
