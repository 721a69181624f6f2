"""Examples in, normalised batches out; example i of a split keeps its index i everywhere."""

from .batches import eval_batches, examples_of, normalised_inputs, train_batches
from .dataset import Dataset, Split
from .imagenet import ImageFiles, unreadable_named
from .sources import NAMES, load
from .splits import held_out, parts, per_class_indices, random_indices, without_held_out

__all__ = [
    "NAMES",
    "Dataset",
    "ImageFiles",
    "Split",
    "eval_batches",
    "examples_of",
    "held_out",
    "load",
    "normalised_inputs",
    "parts",
    "per_class_indices",
    "random_indices",
    "train_batches",
    "unreadable_named",
    "without_held_out",
]
