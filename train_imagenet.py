"""The whole EKG pipeline on ImageNet: baseline -> search -> fine-tune -> test.

Paper: Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning, ECCV 2022.
ResNet-50 on one GPU of 8 GB, from torchvision's weights:

    python train_imagenet.py --arch ResNet-50 --data_path DIR --train_path ../imagenet \\
        --trained_param resnet50.safetensors --search_target_rate 0.45 --accum 8 \\
        --search_batch_size 32

The defaults are the paper's recipe as far as it is published: batch 256, weight decay 1e-4;
baseline 100 epochs at 0.1, x0.1 after 30, 60 and 90 %; fine-tuning 50 epochs at 0.01, x0.2 after
30, 60 and 80 %, T = 10. Not yet measured here at that length; short runs are in docs/results.
"""

from __future__ import annotations

if __name__ == "__main__":  # first, so that Ctrl-C is answered in one line from here on
    from ekg_tf.cli.manners import run_module

    run_module("ekg_tf.train_imagenet")  # under its own name: __main__'s classes would be others

from collections.abc import Sequence

from ekg_tf.cli import manners

from ekg_tf import train_cifar


def parser() -> manners.Parser:
    """The flags of the whole pipeline, for ImageNet."""
    return train_cifar.parser(
        "train_imagenet.py",
        "Baseline, EKG search, fine-tuning and test on ImageNet.",
        arch="ResNet-50",
        dataset="ImageNet",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    train_cifar.run(parser(), argv)
