"""Images in files: which files of a folder are images, and whether each of them can be read.

Every image is opened once before there is a run folder: a damaged one, or one that unpacks to too
much, is named then, not when a search comes to it.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from ..utils import limits, progress
from ..utils.errors import UserError
from ..utils.files import printable
from .indexed import in_threads, threads

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
# {format: modes that TensorFlow decodes as PIL does}; it takes a palette's numbers in a BMP for
# levels of grey, and can't turn CMYK, WebP or GIF into one channel.
PLAIN = {"JPEG": ("L", "RGB"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")}
BYTES_PER_PIXEL = 3 * 4  # of three channels as float32, in which images are resized
NAMED = 3  # of the files that are left out


class Listing:
    """The images of a folder of classes, by class, then by name.

    Attributes:
      names: relative to the folder; int labels beside them.
      skipped: what is there, too, but is no image or hidden.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: list[str] = []
        self.labels: list[int] = []
        self.skipped: list[str] = []

    def add(self, inside: str, label: int, *, deep: bool = False) -> int:
        """The images of one folder; returns how many there are.

        Args:
          inside: its name relative to the whole folder. deep: those of the folders in it as well;
            links to folders aren't followed.
        """
        before = len(self.names)
        for root, folders, files in sorted(os.walk(self.folder / inside)):
            place = os.path.relpath(root, self.folder)
            for name in sorted(files):
                image = name[0] != "." and name.lower().endswith(SUFFIXES)
                (self.names if image else self.skipped).append(os.path.join(place, name))
            if not deep:
                self.skipped += [os.path.join(place, name) for name in sorted(folders)]
                break
        self.labels += [label] * (len(self.names) - before)
        return len(self.names) - before

    def say_skipped(self) -> None:
        """Prints how many files are left out, and some of their names."""
        if self.skipped:
            few = ", ".join(printable(os.path.basename(name)) for name in self.skipped[:NAMED])
            more = ", ..." if len(self.skipped) > NAMED else ""
            progress.say(
                f"{printable(self.folder)}: {len(self.skipped)} files are left out, which are no "
                f"images ({', '.join(SUFFIXES)}) or hidden: {few}{more}"
            )


def opened(
    folder: Path,
    names: Sequence[str],
    *,
    decode: bool = True,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Opens every image once, several at a time.

    Args:
      decode: all of it, not the header alone, where nobody else will before the work begins.
      size: height and width that each must have.

    Returns:
      bool [n]: whether PIL must read it, because TensorFlow can't or reads it otherwise.

    Raises:
      UserError: one that can't be read, which is named.
    """
    odd = np.zeros(len(names), bool)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is the limit here
    try:
        look = partial(_look, folder, decode=decode, size=size)
        found = in_threads(look, names, threads(None))
        with progress.bar("opening images", len(names), delay=1) as bar:
            for place, one in enumerate(found):
                odd[place] = one
                bar.advance(1)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return odd


def _look(folder: Path, name: str, *, decode: bool, size: tuple[int, int] | None) -> bool:
    path = folder / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{printable(path)} is no regular file: remove or replace it")
        with Image.open(path) as image:
            width, height = image.size
            limits.check(
                BYTES_PER_PIXEL * width * height,
                path,
                share=limits.IMAGE,
                what=f"is {width}x{height} pixels, which take",
            )
            if size is not None and (height, width) != size:
                raise UserError(
                    f"{printable(path)} is {height}x{width} pixels: images must be "
                    f"{size[0]}x{size[1]} (CIFAR10 or CIFAR100)"
                )
            odd = image.mode not in PLAIN.get(image.format or "", ())
            if decode:
                image.draft(None, (1, 1))  # a JPEG at an eighth of its size, read to its end
                image.load()
            return odd
    except UserError:
        raise
    except UnidentifiedImageError:
        why = "it is no image"
    except OSError as error:
        why = error.strerror or str(error)
    except Exception as error:  # PIL's readers of damaged files raise almost anything
        why = f"{type(error).__name__}: {error}"
    raise UserError(f"{printable(path)} cannot be decoded ({why}): remove or replace it")


def reader(folder: Path, names: Sequence[str], odd: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """(int32 scalar index) -> the encoded image, a string tensor, inside a tf.data graph.

    Args:
      odd: of `opened`; these images come as PNG.
    """
    paths = tf.constant([os.fsencode(folder / name) for name in names])
    if not odd.any():
        return lambda index: tf.io.read_file(paths[index])
    by_pil = tf.constant(odd)

    def converted(path: tf.Tensor) -> tf.Tensor:
        data = tf.numpy_function(_as_png, [path], tf.string, stateful=False)
        return tf.ensure_shape(data, [])

    def read(index: tf.Tensor) -> tf.Tensor:
        path = paths[index]
        return tf.cond(by_pil[index], lambda: converted(path), lambda: tf.io.read_file(path))

    return read


def _as_png(path: bytes | np.ndarray) -> bytes:
    path = bytes(np.asarray(path).item())  # outside of a graph it comes as an array
    data = io.BytesIO()
    with Image.open(os.fsdecode(path)) as image:
        grey = image.mode in ("1", "L", "LA")
        image.convert("L" if grey else "RGB").save(data, "PNG", compress_level=0)
    return data.getvalue()
