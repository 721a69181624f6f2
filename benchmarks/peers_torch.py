"""One pruning by Torch-Pruning, for `benchmarks.peers`; runs alone in an environment with torch.

    python peers_torch.py PROBLEM.npz --method taylor --target_rate 0.45 --out RESULT.json

PROBLEM.npz holds a CIFAR ResNet's arrays by Keras layer ("weights/<layer>/<index>"), "val_inputs"
float32 [n, h, w, 3], "val_labels" int [n], "test_inputs" and "test_labels" likewise, and
"val_batch", "test_batch": images per batch. Losses and accuracies are by the statistics of the
batch, gradients by the moving ones: by those of the batch Taylor's networks were far worse.
"""

import argparse
import importlib.metadata
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn

STEPS = 100  # of the iterative pruning from nothing to everything


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, with a projection where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        # TensorFlow pads an even image below and on the right alone before a stride of 2.
        self.pad = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.conv3 = self.bn3 = None
        if stride > 1 or inputs != outputs:
            self.conv3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        y = self.conv1(nn.functional.pad(x, self.pad))
        y = self.bn2(self.conv2(torch.relu(self.bn1(y))))
        return torch.relu(y + (self.bn3(self.conv3(x)) if self.conv3 else x))


class ResNet(nn.Module):
    """A CIFAR ResNet of three stages, 16, 32 and 64 channels wide."""

    def __init__(self, blocks: int, classes: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16, eps=1e-5)
        self.blocks = nn.ModuleDict()
        width = 16
        for stage, outputs in enumerate((16, 32, 64)):
            for block in range(blocks):
                stride = 2 if stage and block == 0 else 1
                self.blocks[f"{stage}-{block}"] = Block(width, outputs, stride)
                width = outputs
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, 3, h, w] -> logits [n, classes]."""
        x = torch.relu(self.bn(self.conv(x)))
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3)))


def network(arrays: dict[str, np.ndarray]) -> ResNet:
    """The network with the given arrays, {"<layer>/<index>": array}.

    Raises:
        SystemExit: arrays that have no place, or places without one.
    """
    blocks = {name.split("_")[0] for name in arrays if name.startswith("BasicBlock0.")}
    model = ResNet(len(blocks), arrays["fc/1"].shape[0])
    used = set()

    def put(place: torch.Tensor, key: str) -> None:
        array = torch.from_numpy(np.ascontiguousarray(arrays[key]))
        if array.ndim == 4:
            array = array.permute(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        if place.shape != array.shape:
            raise SystemExit(f"{key}: {tuple(array.shape)} does not fit {tuple(place.shape)}")
        place.data.copy_(array)
        used.add(key)

    for name, module in model.named_modules():
        layer = re.sub(r"blocks\.(\d+)-(\d+)\.", r"BasicBlock\1.\2_", name)
        if isinstance(module, nn.Conv2d):
            put(module.weight, f"{layer}/0")
        elif isinstance(module, nn.BatchNorm2d):
            put(module.weight, f"{layer}/0")
            put(module.bias, f"{layer}/1")
            put(module.running_mean, f"{layer}/2")
            put(module.running_var, f"{layer}/3")
        elif isinstance(module, nn.Linear):
            put(module.weight, f"{layer}/0")
            put(module.bias, f"{layer}/1")
    if set(arrays) - used:
        raise SystemExit(f"no place for {sorted(set(arrays) - used)[:5]}")
    return model


class Examples:
    """Images and labels in batches of nearly equal size."""

    def __init__(self, problem: dict[str, np.ndarray], split: str):
        self.inputs = torch.from_numpy(problem[f"{split}_inputs"].transpose(0, 3, 1, 2).copy())
        self.labels = torch.from_numpy(problem[f"{split}_labels"].astype(np.int64))
        self._count = -(-len(self.labels) // int(problem[f"{split}_batch"]))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pairs = self.inputs.tensor_split(self._count), self.labels.tensor_split(self._count)
        return zip(*pairs, strict=True)

    @torch.no_grad()
    def loss_and_accuracy(self, model: nn.Module) -> tuple[float, float]:
        """Mean cross-entropy and top-1 in percent, by batch statistics."""
        logits = torch.cat([model(inputs) for inputs, _ in self])
        loss = nn.functional.cross_entropy(logits, self.labels)
        return float(loss), 100 * float((logits.argmax(1) == self.labels).float().mean())


IMPORTANCES: dict[str, Callable] = {
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "fpgm": lambda: torch_pruning.importance.FPGMImportance(),
    "taylor": lambda: torch_pruning.importance.GroupTaylorImportance(),
}


def pruned(model: nn.Module, val: Examples, method: str, target_rate: float) -> float:
    """Prunes in place by one ranking of all channels, in small steps; returns the rate reached.

    With Taylor's importance the gradients on D_val are taken anew before every step.
    """
    example = val.inputs[:1]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=IMPORTANCES[method](),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=[model.fc],
    )
    whole, _ = torch_pruning.utils.count_ops_and_params(model, example)
    rate = 1.0
    for _ in range(STEPS):
        if method == "taylor":
            model.eval()
            model.zero_grad()
            for inputs, labels in val:
                nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()
        pruner.step()
        rate = torch_pruning.utils.count_ops_and_params(model, example)[0] / whole
        if rate <= target_rate:
            break
    model.train()
    return rate


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", type=Path)
    parser.add_argument("--method", choices=IMPORTANCES, required=True)
    parser.add_argument("--target_rate", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with np.load(args.problem, allow_pickle=False) as file:
        problem = {key: file[key] for key in file.files}
    prefix = "weights/"
    arrays = {k.removeprefix(prefix): v for k, v in problem.items() if k.startswith(prefix)}
    model, val, test = network(arrays), Examples(problem, "val"), Examples(problem, "test")
    model.train()  # batch statistics
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # moving statistics stay as they are
    before = val.loss_and_accuracy(model)
    begin = time.perf_counter()
    rate = pruned(model, val, args.method, args.target_rate)
    seconds = time.perf_counter() - begin
    (loss, accuracy), tested = val.loss_and_accuracy(model), test.loss_and_accuracy(model)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torch-pruning")}
    results = {
        "method": args.method,
        "pruning_seconds": seconds,
        "flops_rate": rate,
        "val_loss_before": before[0],
        "val_loss": loss,
        "val_accuracy": accuracy,
        "test_accuracy": tested[1],
        "versions": versions,
    }
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
