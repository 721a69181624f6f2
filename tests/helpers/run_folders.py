"""Run folders as files alone: what the phases would have written, and names that mean harm."""

import json
from pathlib import Path

EVIL = "</script><script>alert('x')</script>$a_b$ <img src=x onerror=alert(1)> \" & \x07"
WIDTHS = [[8, 16], [6, 16], [6, 12], [4, 12]]
GATES = ["stem (+1)", EVIL]
ROOT_ARGS = {
    "arch": "ResNet-20",
    "dataset": "DIGITS",
    "method": "ekg",
    "budget": "flops",
    "search_target_rate": 0.6,
    "train_epoch": 3,
    "seed": 0,
    "model": None,
}
VERSIONS = {"program": "ekg-tf", "format": 1, "python": "3.11", "git": {"commit": "abc"}}


def network(name: str = EVIL) -> list[dict]:
    """A stem, a block with a skip on half the resolution, and a head."""
    rows = (
        ("stem", "Conv2D", False, [8, 8], [8, 4], []),
        (name, "Conv2D", False, [4, 4], [16, 12], [0]),
        ("skip", "Conv2D", False, [4, 4], [16, 12], [0]),
        ("add", "Add", True, [4, 4], [16, 12], [1, 2]),
        ("head", "Dense", False, [], [10, 10], [3]),
    )
    keys = ("name", "kind", "joins", "size", "channels", "from")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def tested(top1: float | None = 90.0, **metrics: float) -> dict:
    """Figures of a test split; of no classifier without top-1."""
    tops = {} if top1 is None else {"top1": top1, "top5": 99.0}
    by_batch = {f"batch_{key}": value for key, value in (tops | {"loss": 0.3}).items()}
    found = {"loss": 0.25, "examples": 400, **tops, **by_batch}
    return found | ({"metrics": metrics, "batch_metrics": metrics} if metrics else {})


def history(column: str = "val_loss") -> list[dict]:
    """Four steps."""
    rows = []
    for step, widths in enumerate(WIDTHS):
        rate = 1 - 0.13 * step
        row = {"step": step, "widths": widths, "rate": rate, "flops_rate": rate, "evaluations": 3}
        row |= {column: 0.1 + 0.02 * step, "removed_units": [step], "seconds": {"proposals": 1.5}}
        if column == "val_loss":
            row["val_accuracy"] = 95.0 - step
        rows.append(row | ({"gate": step % 2, "name": GATES[step % 2]} if step else {}))
    return rows


def search(test: dict, *, front: bool = False) -> dict:
    """search.json of a finished search."""
    kept = [
        {"wanted": rate, "rate": rate, "flops": 1000 * rate, "test": test, "latency_ms": {"1": 2.0}}
        for rate in ((0.9, 0.8) if front else ())
    ]
    return {
        "method": "ekg",
        "flops": {"before": 1000, "after": 610},
        "parameters": {"before": 500, "after": 300},
        "gates": GATES,
        "front": kept,
        "network": network(),
        "test": {"before": tested(), "after": test} if "top1" in test else _both(test),
    }


def _both(test: dict) -> dict:
    return {"before": test, "after": test}


def epochs(phase: str = "finetune", count: int = 3, shift: float = 0.0, **more) -> list[dict]:
    """Rows of a training."""
    return [
        {
            "phase": phase,
            "epoch": epoch,
            "loss": 1 / epoch,
            "test_loss": 1.2 / epoch,
            "accuracy": 80.0 + epoch,
            "test_top1": 85.0 + epoch + shift,
            **more,
        }
        for epoch in range(1, count + 1)
    ]


def result(test: dict, before: dict | None = None) -> dict:
    """result.json of a fine-tuning."""
    sides = {
        "before": {"flops": 1000, "parameters": 500, "test": before or tested()},
        "after": {"flops": 610, "parameters": 300, "test": test},
    }
    for side, time in zip(sides.values(), (2.0, 1.5), strict=True):
        side["latency_ms"] = {"1": time}
    return sides | {"network": network()}


def write(folder: Path, *, args: dict | None = None, commands=(), **files) -> Path:
    """A run folder.

    Args:
        args: more of args.json.
        files: contents by name without ending; a list becomes .jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {"args": ROOT_ARGS | (args or {}), "versions": VERSIONS, **files}
    if commands:
        known["commands"] = {"commands": list(commands)}
    for name, content in known.items():
        if isinstance(content, list):
            text = "".join(json.dumps(row) + "\n" for row in content)
            (folder / f"{name}.jsonl").write_text(text)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "files.json").write_text(json.dumps({"format": 1, "files": {}}))
    return folder


def finished(folder: Path, *, args: dict | None = None, shift: float = 0.0) -> Path:
    """A folder in which everything was done."""
    (folder).mkdir(parents=True, exist_ok=True)
    (folder / "pruned.keras").write_bytes(b"")
    return write(
        folder,
        args=args,
        commands=[f"ekg-tf prune --model /home/me/{folder.name}.keras --data '{EVIL}'"],
        history=history(),
        search=search(tested(80.0), front=True),
        metrics=[*epochs("baseline"), *epochs(shift=shift)],
        finetune={"method": "ekg"},
        result=result(tested(89.0 + shift)),
    )
