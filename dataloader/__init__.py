"""Images in, normalised batches out; example i of a split keeps its index i everywhere."""

from dataloader.batches import eval_batches, train_batches
from dataloader.dataset import Dataset, Split
from dataloader.sources import NAMES, load
from dataloader.splits import per_class_indices

__all__ = [
    "NAMES",
    "Dataset",
    "Split",
    "eval_batches",
    "load",
    "per_class_indices",
    "train_batches",
]
