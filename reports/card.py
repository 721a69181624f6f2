"""The model card of a pruned network: README.md in the format of the Hugging Face hub."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

from .page import figures
from .page.runs import Run, read_run
from .tables import table

# Of the data that the package knows by name; the hub wants a task with every figure.
CLASSIFICATION = "image-classification"
KNOWN = {
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "ImageNet": "imagenet-1k",
    "DIGITS": "digits",
}


def text_of(folder: Path) -> str:
    """The model card of a run folder, which is only read.

    Raises:
        UserError: as `reports.page.runs.read_run`.
    """
    run = read_run(folder)
    parts = [
        _front_matter(run),
        f"# {plain(run.name)}",
        plain(figures.verdict_of(run, advice=False)),
    ]
    if cells := figures.table_of(run):
        rows = [[plain(cell) for cell in row] for row in cells]
        parts += ["## Figures", table(["", "before", "after", "ratio"], rows), _EXPLAINED]
    if run.pruned:
        parts += ["## Use", _use(run.pruned)]
    parts += ["## How it was made", _made(run)]
    return "\n\n".join(parts) + "\n"


_EXPLAINED = (
    "On the test split; ± is one standard error. *Before* is the network as it was given. FLOPs "
    "are multiply-accumulates for one example. *Batch statistics*: every test batch is normalised "
    "by itself."
)


def _front_matter(run: Run) -> str:
    """YAML, of which JSON is a part: whatever a text holds, it stays one."""
    method = str((run.search or {}).get("method", run.args.get("method") or "own-score"))
    tags = ["keras", "pruning", "structured-pruning", "ekg-tf", method]
    head: dict[str, Any] = {"library_name": "keras", "tags": tags}
    if index := _index(run):
        head |= {"pipeline_tag": CLASSIFICATION, "model-index": index}
    lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def _index(run: Run) -> list[dict[str, Any]]:
    """The hub's model-index, of classifiers of data that have a name."""
    dataset = str(run.args.get("dataset"))
    if run.sides is None or dataset not in KNOWN:
        return []
    after = run.sides[1]
    metrics = [
        {"type": kind, "name": figure.title, "value": figure.value(after)}
        for figure in figures.of_test(after, figures.classes_of(run))
        for kind in [_KINDS.get(figure.title)]
        if kind
    ]
    if not any(one["type"] == "accuracy" for one in metrics):
        return []
    result = {
        "task": {"type": CLASSIFICATION},
        "dataset": {"type": KNOWN[dataset], "name": dataset, "split": "test"},
        "metrics": metrics,
    }
    return [{"name": run.name, "results": [result]}]


_KINDS = {"top-1 accuracy": "accuracy", "top-5 accuracy": "top_5_accuracy", "loss": "loss"}


def _use(file: str) -> str:
    return f"""Stock Keras layers; Keras 3 opens it without ekg-tf:

```python
import keras

model = keras.saving.load_model("{file}")
```

On the hub: `model.save("hf://USER/NAME")` writes the network there (and a README.md of Keras's own,
so send this one after it: `hf upload USER/NAME README.md`). Then anybody opens it by
`keras.saving.load_model("hf://USER/NAME")`. Add the licence of weights and data above."""


def _made(run: Run) -> str:
    versions = ", ".join(
        f"{name} {run.versions[name]}"
        for name in ("python", "tensorflow", "keras")
        if run.versions.get(name)
    )
    told = [f"By ekg-tf, with {plain(versions)}." if versions else "By ekg-tf."]
    if run.commands:
        told.append(_fenced("\n".join(map(_published, run.commands))))
    told.append("All settings are in args.json; report.html shows the search and the training.")
    return "\n\n".join(told)


def _published(command: str) -> str:
    """A command without the folders of the machine that it ran on."""
    try:
        words = shlex.split(command)
    except ValueError:  # what a folder holds is data
        return plain(command)
    return shlex.join(Path(one).name if one[:1] in ("/", "~") else one for one in words)


def _fenced(text: str) -> str:
    """A block of code that no line of the text can end."""
    longest = max((len(one) for one in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def plain(text: str) -> str:
    """A text of which Markdown and HTML take no part for markup."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(one_line, quote=False))
