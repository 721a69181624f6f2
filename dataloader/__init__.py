"""Examples in, normalised batches out; example i of a split keeps its index i everywhere."""

from .batches import eval_batches, examples_of, normalised_inputs, train_batches
from .dataset import Dataset, Split
from .imagenet import ImageFiles, unreadable_named
from .sources import NAMES, load
from .splits import parts, per_class_indices, random_indices

__all__ = [
    "NAMES",
    "Dataset",
    "ImageFiles",
    "Split",
    "eval_batches",
    "examples_of",
    "load",
    "normalised_inputs",
    "parts",
    "per_class_indices",
    "random_indices",
    "train_batches",
    "unreadable_named",
]
