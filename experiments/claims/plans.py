"""Which commands measure the claims E1 to E7, and what is read of their results.

Seeds are paired: the arms of an experiment share the baseline, the search (E2, E3) and the seeds.
Seed s of an experiment searches by --search_seed s, from baseline number s mod `baselines` (E6: s),
and fine-tunes by --seed 100 + s. Cells that experiments share run once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...options.finetuning import ALL, CODE, PAPER
from ...options.training import BYOL
from ...utils.jsonl import read_json, read_rows
from ...utils.runfiles import BASELINE
from ..tables.grid import ROOT, RUN, Cell

TUNING_SEEDS = 100  # the first of them
FITTED, UNFITTED = "fitted", "unfitted"  # baselines
ALONE = "alone"  # E6's baselines: without a teacher, or with BYOL
PLACES = TRAINED_ON, HELD_OUT = "trained_on", "held_out"  # that E4's D_val is drawn from
RULES = BATCH_NORM, EVERYWHERE = "batch_norm", "everywhere"  # of E1: where kernels are scaled
# E2: flags of each arm's fine-tuning; the last is E3's arm `paper`, too.
ARMS = {
    "one_view": ("--finetune_teacher", "none", "--views", "1"),
    "two_views": ("--finetune_teacher", "none", "--views", "2"),
    "single": ("--finetune_teacher", "single"),
    "ensemble": ("--finetune_teacher", "ensemble", "--teacher_rule", PAPER),
}
ENSEMBLES = {
    PAPER: ("ensemble", ARMS["ensemble"]),
    CODE: ("ensemble_code", ("--finetune_teacher", "ensemble", "--teacher_rule", CODE)),
    ALL: ("ensemble_all", ("--finetune_teacher", "ensemble", "--teacher_rule", ALL)),
}
TEACHERS = NOBODY, TOGETHER = "none", "ensemble"  # of E7's searches
# E4: its baseline, and what D_val is drawn from.
CONDITIONS = {
    FITTED: (FITTED, TRAINED_ON),
    UNFITTED: (UNFITTED, TRAINED_ON),
    HELD_OUT: (FITTED, HELD_OUT),
}


@dataclass(frozen=True)
class Setting:
    """How much work the cells are; flags that are not here keep the programs' defaults.

    Attributes:
        title: in words.
        rate: share of the FLOPs that remains, but in E1.
        plain_rates: of E1.
        fitted, unfitted, plain, alike: epochs of the baselines; the last two are E1's and E6's.
        tuning: epochs of a fine-tuning in E1, E2, E3, E6 and E7. potential: in E5.
        networks: sub-networks of E5. leave_from: as --leave_from of experiments.potential.
        baselines: of a kind, for E2 to E5 and E7.
        held_out: share that the baselines aren't trained on.
        seeds: of each experiment.
        search: further flags of what draws D_val and searches. step: of what searches by EKG.
    """

    title: str
    dataset: str
    arch: str
    rate: float
    plain_rates: tuple[float, ...]
    fitted: int
    unfitted: int
    plain: int
    plain_learning_rate: float
    alike: int
    tuning: int
    potential: int
    networks: int
    leave_from: float
    tolerance: float
    baselines: int
    held_out: float
    seeds: dict[str, int]
    search: tuple[str, ...] = ()
    step: tuple[str, ...] = ()


FULL = Setting(
    "ResNet-20 on CIFAR-10",
    dataset="CIFAR10",
    arch="ResNet-20",
    rate=0.45,
    plain_rates=(0.5, 0.3),
    fitted=20,
    unfitted=5,
    plain=10,
    plain_learning_rate=0.02,
    alike=5,
    tuning=2,
    potential=3,
    networks=48,
    leave_from=0.7,
    tolerance=0.01,
    baselines=2,
    held_out=0.05,
    seeds={"E1": 5, "E2": 6, "E3": 6, "E4": 5, "E5": 1, "E6": 3, "E7": 6},
)
QUICK = Setting(
    "a check of the machinery: ResNet-20 on DIGITS, an epoch or two of everything",
    dataset="DIGITS",
    arch="ResNet-20",
    rate=0.7,
    plain_rates=(0.6,),
    fitted=3,
    unfitted=1,
    plain=3,
    plain_learning_rate=0.05,
    alike=2,
    tuning=1,
    potential=1,
    networks=6,
    leave_from=0.9,
    tolerance=0.1,
    baselines=1,
    held_out=0.15,
    seeds={"E1": 2, "E2": 2, "E3": 2, "E4": 2, "E5": 1, "E6": 1, "E7": 2},
    search=("--val_per_class", "8", "--subset_per_class", "16"),
    step=("--search_step", "0.5"),
)


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        labels: what tells it from the experiment's other runs.
        cell: that makes its result. before: those that it needs, in order.
        figures: (the cell's result, folder of its files) -> figures.
        partial: whether there are figures before the cell is finished; its result is {} then.
    """

    labels: dict[str, Any]
    cell: Cell
    before: tuple[Cell, ...]
    figures: Callable[[dict, Path], dict[str, Any]]
    partial: bool = False

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All that it takes."""
        return (*self.before, self.cell)

    def row(self, root: Path) -> dict[str, Any] | None:
        """Its labels and figures; None as long as there are none.

        Raises:
            UserError: as `Cell.read`.
        """
        result = self.cell.read(root)
        if result is None and not self.partial:
            return None
        found = self.figures(result or {}, self.cell.run(root))
        return self.labels | found if found else None


class Plans:
    """The runs of every experiment.

    Args:
        data: flags that name the data, such as --data_path.
    """

    def __init__(self, setting: Setting, data: tuple[str, ...]):
        self.setting = setting
        self._data = ("--dataset", setting.dataset, *data)

    def runs(self, experiment: str, seed: int) -> list[Run]:
        """The runs of one seed."""
        makers = (self._e1, self._e2, self._e3, self._e4, self._e5, self._e6, self._e7)
        return {f"E{number}": make for number, make in enumerate(makers, 1)}[experiment](seed)

    # ------------------------------------------------------------ experiments

    def _e1(self, seed: int) -> list[Run]:
        plain, found = self._plain(seed), []
        for rate in self.setting.plain_rates:
            for rule in RULES:
                name = f"masking_{rule}_{rate:g}_seed{seed}"
                flags = [*self._data, *self.setting.search, "--rule", rule]
                flags += ["--given", f"{ROOT}/{plain.name}/{RUN}/{BASELINE}"]
                flags += ["--search_target_rate", f"{rate:g}", "--search_seed", str(seed)]
                flags += ["--seed", str(TUNING_SEEDS + seed)]
                flags += ["--train_epoch", str(self.setting.tuning)]
                cell = _module("masking", name, flags, ("claim.json", "after"), plain)
                labels = {"seed": seed, "rate": rate, "rule": rule}
                found.append(Run(labels, cell, (plain,), _of_masking))
        return found

    def _e2(self, seed: int) -> list[Run]:
        return [self._tuned(FITTED, seed, {"arm": arm}, arm, flags) for arm, flags in ARMS.items()]

    def _e3(self, seed: int) -> list[Run]:
        return [
            self._tuned(kind, seed, {"baseline": kind, "rule": rule}, name, flags)
            for kind in (FITTED, UNFITTED)
            for rule, (name, flags) in ENSEMBLES.items()
        ]

    def _e4(self, seed: int) -> list[Run]:
        found = []
        for condition, (kind, place) in CONDITIONS.items():
            before = self._baseline(kind, seed)
            name = f"rewards_{condition}_seed{seed}"
            flags = ["--arch", self.setting.arch, *self._data, *self.setting.search]
            flags += ["--trained_param", f"{ROOT}/{before.name}/{RUN}/{BASELINE}"]
            flags += ["--val_held_out", f"{self.setting.held_out:g}", "--d_val", place]
            flags += ["--search_target_rate", f"{self.setting.rate:g}", "--search_seed", str(seed)]
            cell = _module("rewards", name, flags, ("claim.json", "agreement"), before)
            labels = {"seed": seed, "condition": condition}
            found.append(Run(labels, cell, (before,), lambda result, _: dict(result)))
        return found

    def _e5(self, seed: int) -> list[Run]:
        before, name = self._baseline(FITTED, seed), f"potential_seed{seed}"
        flags = ["--arch", self.setting.arch, *self._data, *self.setting.search]
        flags += self.setting.step
        flags += ["--trained_param", f"{ROOT}/{before.name}/{RUN}/{BASELINE}"]
        flags += ["--search_target_rate", f"{self.setting.rate:g}", "--n"]
        flags += [str(self.setting.networks), "--leave_from", f"{self.setting.leave_from:g}"]
        flags += ["--sources", "ekg:taylor:ensemble", "--tolerance", f"{self.setting.tolerance:g}"]
        flags += ["--proxies", "val_loss", "condition_number", "lambda_max", "trace"]
        flags += ["--train_epoch", str(self.setting.potential), "--search_seed", str(seed)]
        flags += ["--seed", str(TUNING_SEEDS + seed), "--train_path", f"{ROOT}/{name}/{RUN}"]
        program = ("-m", "ekg_tf.experiments.potential")
        cell = Cell(name, program, tuple(flags), ("potential.json", "networks"), (before.name,))
        return [Run({"seed": seed}, cell, (before,), _of_potential, partial=True)]

    def _e6(self, seed: int) -> list[Run]:
        flags = ARMS["ensemble"]
        return [
            self._tuned(kind, seed, {"baseline": kind}, "ensemble", flags) for kind in (ALONE, BYOL)
        ]

    def _e7(self, seed: int) -> list[Run]:
        arm, flags = "one_view", ARMS["one_view"]  # the same for both, and no teacher's
        return [
            self._tuned(FITTED, seed, {"teacher": teacher}, arm, flags, teacher)
            for teacher in TEACHERS
        ]

    # ------------------------------------------------------------ cells

    def _plain(self, seed: int) -> Cell:
        name = f"plain_seed{seed}"
        flags = [*self._data, "--seed", str(seed), "--train_epoch", str(self.setting.plain)]
        flags += ["--learning_rate", f"{self.setting.plain_learning_rate:g}"]
        return _module("masking", name, flags, ("baseline.json", "test"))

    def _baseline(self, kind: str, seed: int) -> Cell:
        alike = kind in (ALONE, BYOL)
        number = seed if alike else seed % self.setting.baselines
        epochs = {FITTED: self.setting.fitted, UNFITTED: self.setting.unfitted}
        epochs = epochs.get(kind, self.setting.alike)
        name = f"baseline_{kind}_{number}"
        flags = ["--arch", self.setting.arch, *self._data, "--until", "baseline"]
        flags += ["--do_log", "off", "--baseline_epoch", str(epochs), "--seed", str(number)]
        if not alike:
            flags += ["--val_held_out", f"{self.setting.held_out:g}"]
        flags += ["--baseline_teacher", BYOL] if kind == BYOL else []
        flags += ["--train_path", f"{ROOT}/{name}/{RUN}"]
        return Cell(name, ("train_cifar.py",), tuple(flags), ("baseline.json", "test"))

    def _search(self, kind: str, seed: int, baseline: Cell, teacher: str) -> Cell:
        name = f"search_{_named(kind, teacher)}_seed{seed}"
        flags = ["--arch", self.setting.arch, *self._data, *self.setting.search]
        flags += [*self.setting.step, "--do_log", "off"]
        flags += ["--trained_param", f"{ROOT}/{baseline.name}/{RUN}/{BASELINE}"]
        flags += ["--search_target_rate", f"{self.setting.rate:g}", "--search_seed", str(seed)]
        flags += [] if teacher == TOGETHER else ["--search_teacher", teacher]
        flags += ["--train_path", f"{ROOT}/{name}/{RUN}"]
        result = ("search.json", "test")
        return Cell(name, ("search.py",), tuple(flags), result, (baseline.name,))

    def _tuned(
        self,
        kind: str,
        seed: int,
        labels: dict,
        arm: str,
        own: tuple[str, ...],
        teacher: str = TOGETHER,
    ) -> Run:
        baseline = self._baseline(kind, seed)
        search = self._search(kind, seed, baseline, teacher)
        name = f"tune_{arm}_{_named(kind, teacher)}_seed{seed}"
        flags = ["--search_path", f"{ROOT}/{search.name}/{RUN}", *own, "--do_log", "off"]
        flags += ["--seed", str(TUNING_SEEDS + seed), "--train_epoch", str(self.setting.tuning)]
        flags += ["--deployed_latency", "off", "--train_path", f"{ROOT}/{name}/{RUN}"]
        cell = Cell(name, ("finetune.py",), tuple(flags), ("result.json", "after"), (search.name,))

        def figures(result: dict, folder: Path) -> dict[str, Any]:
            searched = read_json(folder.parents[1] / search.name / RUN / search.result[0], "test")
            top1 = searched["test"]["after"]["top1"]
            return _of_fine_tuning(result, folder) | {"searched_top1": top1}

        return Run({"seed": seed} | labels, cell, (baseline, search), figures)


def _named(kind: str, teacher: str) -> str:
    """Of a baseline and a search's teacher, the default or another."""
    return kind if teacher == TOGETHER else f"{kind}_{teacher}"


def _module(
    module: str, name: str, flags: list[str], result: tuple[str, str], *before: Cell
) -> Cell:
    """A cell of a program of this package."""
    program = ("-m", f"ekg_tf.experiments.claims.{module}")
    args = (*flags, "--train_path", f"{ROOT}/{name}/{RUN}")
    return Cell(name, program, args, result, tuple(one.name for one in before))


def _of_masking(result: dict, folder: Path) -> dict[str, Any]:
    before = {f"before_{key}": value for key, value in result["before"].items()}
    return result["after"] | before | {key: result[key] for key in ("val_loss", "flops_rate")}


def _of_fine_tuning(result: dict, folder: Path) -> dict[str, Any]:
    test = result["after"]["test"]
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["phase"] == "finetune"]
    found = {"test_loss": test["loss"], "test_top1": test["top1"]}
    found["baseline_top1"] = result["before"]["test"]["top1"]
    teachers = [row["teachers"] for row in rows if "teachers" in row]
    return found | ({"teachers": teachers} if teachers else {})


def _of_potential(result: dict, folder: Path) -> dict[str, Any]:
    """The sub-networks of a potential.jsonl that are done, as {"step", proxy: value, ...}."""
    path = folder / "potential.jsonl"
    # Not by `read_rows`, which cuts off a line that another process may just be writing.
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    known: dict[int, dict[str, Any]] = {}
    for row in rows:
        one = known.setdefault(row["number"], {})
        one |= row.get("proxies", {}) | row.get("potential", {})
        one |= {key: row[key] for key in ("step", "flops_rate") if key in row}
    networks = [one for one in known.values() if "test_loss" in one]
    return {"networks": networks} if networks else {}
