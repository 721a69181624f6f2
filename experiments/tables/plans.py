"""Which commands make up the rows of the paper's tables.

Tables share cells: a search, or a fine-tuning of what it found, runs once however many rows and
tables show it. The baseline is trained (or given) once for all.

What varies between the seeds of a row: seed s draws D_subset and D_val anew (--search_seed s) and
gives the order and the augmentation of images (--seed s) in the fine-tuning of what that search
found. All start from the same baseline, as the paper's single figure for it suggests.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...cli import choices, manners
from ...cli import flags as cli
from ...options.fields import Options, settings_of
from ...options.finetuning import FINETUNINGS
from ...options.methods import METHODS
from ...utils.errors import UserError
from ...utils.runfiles import BASELINE
from .grid import ROOT, RUN, Cell

IMAGENET = "ImageNet"


@dataclass(frozen=True)
class Scale:
    """How much work a table's cells are; flags that are not here keep the programs' defaults.

    Args:
        title: for the caption.
        dataset, arch: what is taken where the command line names none.
        seeds: likewise.
        baseline, search, finetune: flags of the cells; a flag of some methods goes to these alone.
    """

    title: str
    dataset: str
    arch: str
    seeds: int
    target_rate: float = 0.45
    baseline: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()


SCALES = {
    # Of a cell's minute most is the start of TensorFlow and tracing, so fewer epochs save little.
    "smoke": Scale(
        "smoke: 5 epochs of fine-tuning",
        "DIGITS",
        "ResNet-20",
        1,
        baseline=("--baseline_epoch", "20"),
        finetune=("--train_epoch", "5"),
    ),
    # The rates fall at the published shares of the training, however short it is.
    "short": Scale(
        "short: the published setting but for 20 epochs of the baseline (instead of 200), 2 of "
        "fine-tuning (instead of 100) and 1 of supernets (instead of 40), on all training images",
        "CIFAR10",
        "ResNet-20",
        3,
        baseline=("--baseline_epoch", "20"),
        search=("--supernet_epoch", "1"),
        finetune=("--train_epoch", "2"),
    ),
    "paper": Scale("paper: the published setting", "CIFAR10", "ResNet-56", 3),
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for, beyond the table."""

    scale: Scale
    dataset: str
    arch: str
    target_rate: float | None = None  # None: the scale's, or the row's
    trained_param: str | None = None
    data: tuple[str, ...] = ()  # --data_path and the like, passed on
    baseline: tuple[str, ...] = ()  # further flags, after the scale's and shared out likewise
    search: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()

    @property
    def data_flags(self) -> tuple[str, ...]:
        """Network and data for train_*.py and search.py."""
        return ("--arch", self.arch, "--dataset", self.dataset, *self.data)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: for --rows.
        labels: what stands in its first columns.
        published: key of its published figures.
        search, finetune: flags of its search and fine-tuning; None and none for the baseline's row.
        smoothness: whether its condition number is measured.
        rate: --search_target_rate, where the row has its own.
    """

    name: str
    labels: tuple[str, ...]
    published: str
    search: tuple[str, ...] | None = None
    finetune: tuple[str, ...] = ()
    smoothness: bool = False
    rate: float | None = None


@dataclass
class Planned:
    """A row's cells; a list has one cell per seed."""

    row: Row
    baseline: Cell
    seeds: list[int] = field(default_factory=list)
    search: list[Cell] = field(default_factory=list)
    finetune: list[Cell] = field(default_factory=list)
    smoothness: list[Cell] = field(default_factory=list)

    @property
    def cells(self) -> list[Cell]:
        """All of them, each seed's together."""
        lists = [one for one in (self.search, self.smoothness, self.finetune) if one]
        return [self.baseline, *(cell for seed in zip(*lists, strict=True) for cell in seed)]


def _ekg(score: str, teacher: str) -> tuple[str, ...]:
    return ("--score", score, "--search_teacher", teacher)


def _tune(teacher: str) -> tuple[str, ...]:
    return ("--finetune_teacher", teacher)


REPLAYED = _ekg("taylor", "ensemble"), ("--method", "ffp")  # searches whose bank a row replays


def table1() -> list[Row]:
    """Scores; fine-tuned without a teacher, as Table 2's row ensemble/none has EKG's accuracy."""
    rows = (
        ("l1", "L1", _ekg("l1", "none")),
        ("fpgm", "FPGM", _ekg("fpgm", "none")),
        ("gbn", "GBN (Taylor)", _ekg("taylor", "none")),
        ("ekg", "EKG (Taylor, ensemble)", _ekg("taylor", "ensemble")),
    )
    return [
        Row(name, (label,), name, search, _tune("none"), smoothness=True)
        for name, label, search in rows
    ]


def table2() -> list[Row]:
    """The baseline and five pairs of teachers in search and fine-tuning."""
    pairs = (
        ("none", "none"),
        ("single", "none"),
        ("ensemble", "none"),
        ("ensemble", "single"),
        ("ensemble", "ensemble"),
    )
    rows = [
        Row(f"{one}/{two}", (one, two), f"{one}/{two}", _ekg("taylor", one), _tune(two))
        for one, two in pairs
    ]
    return [Row("baseline", ("baseline", ""), "baseline"), *rows]


# network: published share of FLOPs removed by each of EKG's rows, in percent
IMAGENET_ROWS = {"ResNet-18": ("50.1",), "ResNet-34": ("45.1",), "ResNet-50": ("45.0", "55.0")}
BYOL = "EKG-BYOL-55.0"


def table3(arch: str) -> list[Row]:
    """The baseline and EKG at the published FLOPs of one network.

    EKG-BYOL is EKG from a stronger network, given by --trained_param, so in a folder of its own.

    Raises:
        UserError: the paper has no such network.
    """
    if arch not in IMAGENET_ROWS:
        raise UserError(f"--table 3 has {', '.join(IMAGENET_ROWS)}, not --arch {arch}")
    flags = _ekg("taylor", "ensemble"), _tune("ensemble")

    def one(name: str, removed: str) -> Row:
        rate = round(1 - float(removed) / 100, 4)
        return Row(f"{name}-{removed}", (name,), f"{name}-{removed}", *flags, rate=rate)

    rows = [one("EKG", removed) for removed in IMAGENET_ROWS[arch]]
    return [Row("baseline", ("baseline",), "baseline"), *rows] + (
        [one("EKG-BYOL", "55.0")] if arch == "ResNet-50" else []
    )


def methods() -> list[Row]:
    """Searches at the same FLOPs, then the same fine-tuning without a teacher.

    The last two are EKG and FFP with their own fine-tuning.
    """
    rows = [
        Row(name, (name, "plain"), name, ("--method", name), _tune("none"))
        for name in ("ffp", "swp", "autoslim", "uniform", "global")
    ]
    ekg, l1 = _ekg("taylor", "ensemble"), _ekg("l1", "none")
    return [
        Row("baseline", ("baseline", ""), "baseline"),
        Row("ekg", ("ekg", "plain"), "ekg", ekg, _tune("none")),
        *rows,
        Row("l1", ("ekg, score l1, no teacher", "plain"), "l1", l1, _tune("none")),
        Row("ekg/ekg", ("ekg", "ekg"), "ekg/ekg", ekg, _tune("ensemble")),
        Row(
            "ffp/ckt", ("ffp", "ckt"), "ffp/ckt", ("--method", "ffp"), ("--finetune_method", "ckt")
        ),
    ]


TABLES = ("1", "2", "3", "methods")


def rows_of(table: str, arch: str) -> list[Row]:
    """The rows of a table; raises as `table3`."""
    if table == "3":
        return table3(arch)
    return {"1": table1, "2": table2, "methods": methods}[table]()


def pick(rows: list[Row], names: list[str] | None) -> list[Row]:
    """The rows of these names, in the table's order; without names all but EKG-BYOL's.

    Raises:
        UserError: an unknown name, or EKG-BYOL's beside others.
    """
    if names is None:
        return [row for row in rows if row.name != BYOL]
    if unknown := [name for name in names if name not in {row.name for row in rows}]:
        raise UserError(f"--rows {unknown[0]}: the rows are {', '.join(r.name for r in rows)}")
    if BYOL in names and len(set(names)) > 1:
        raise UserError(
            f"{BYOL} starts from another --trained_param than the other rows: give it a "
            "--train_path of its own"
        )
    return [row for row in rows if row.name in names]


def plan(row: Row, request: Request, seeds: list[int]) -> Planned:
    """The cells of a row for these seeds."""
    baseline = _baseline(request)
    planned = Planned(row, baseline)
    if row.search is None:
        return planned
    for seed in seeds:
        search = _search(row, request, seed, baseline)
        planned.seeds.append(seed)
        planned.search.append(search)
        planned.finetune.append(_finetune(row, request, seed, search))
        if row.smoothness:
            planned.smoothness.append(_smoothness(request, search))
    return planned


def _baseline(request: Request) -> Cell:
    program = "train_imagenet.py" if request.dataset == IMAGENET else "train_cifar.py"
    flags = [*request.data_flags, "--until", "baseline", "--do_log", "off"]
    if request.trained_param:
        flags += ["--trained_param", request.trained_param]
    else:
        flags += [*request.scale.baseline, *request.baseline]
    flags += ["--train_path", f"{ROOT}/baseline/{RUN}"]
    return Cell("baseline", (program,), tuple(flags), ("baseline.json", "test"))


def _search(row: Row, request: Request, seed: int, baseline: Cell) -> Cell:
    """A cell that rows of all tables share: with a bank if the fine-tuning of any replays it."""
    rate = request.target_rate or row.rate or request.scale.target_rate
    name = "_".join(["search", *(one for one in row.search if not one.startswith("--"))])
    name += f"_{rate:g}_seed{seed}"
    flags = [*request.data_flags, "--trained_param", f"{ROOT}/baseline/{RUN}/{BASELINE}"]
    flags += ["--search_target_rate", f"{rate:g}", *row.search]
    flags += ["--search_seed", str(seed), "--seed", str(seed), "--do_log", "off"]
    flags += [] if row.search in REPLAYED else ["--bank", "none"]
    flags += _fitting([*request.scale.search, *request.search], METHODS.values(), _method(row))
    flags += ["--train_path", f"{ROOT}/{name}/{RUN}"]
    result, needs = ("search.json", "test"), (baseline.name,)
    return Cell(name, ("search.py",), tuple(flags), result, needs)


def _finetune(row: Row, request: Request, seed: int, search: Cell) -> Cell:
    name = "_".join(one for one in row.finetune if not one.startswith("--"))
    name = f"{search.name.replace('search_', f'tune_{name}_of_', 1)}"
    flags = ["--search_path", f"{ROOT}/{search.name}/{RUN}", *row.finetune, "--seed", str(seed)]
    flags += ["--do_log", "off"]
    flags += _fitting([*request.scale.finetune, *request.finetune], FINETUNINGS, _finetuning(row))
    flags += ["--train_path", f"{ROOT}/{name}/{RUN}"]
    result = ("result.json", "after")
    return Cell(name, ("finetune.py",), tuple(flags), result, (search.name,))


def _smoothness(request: Request, search: Cell) -> Cell:
    name = search.name.replace("search_", "smoothness_of_", 1)
    flags = [f"{ROOT}/{search.name}/{RUN}", "--out", f"{ROOT}/{name}/{RUN}/smoothness.json"]
    program, result = ("-m", "ekg_tf.experiments.smoothness"), ("smoothness.json", "networks")
    return Cell(name, program, tuple(flags), result, (search.name,))


def _method(row: Row) -> type[Options]:
    """The search method of a row's flags."""
    parser = manners.Parser()
    cli.add_search(parser)
    return type(choices.method_of(parser.parse_args(row.search)))


def _finetuning(row: Row) -> type[Options]:
    """The fine-tuning of a row's flags."""
    parser = manners.Parser()
    cli.add_finetune(parser)
    return type(choices.finetuning_of(parser.parse_args(row.finetune)))


def _fitting(words: Sequence[str], kinds: Iterable[type[Options]], own: type[Options]) -> list[str]:
    """The words of a command without the flags, and their values, that other kinds alone have."""
    others = {one.flag for kind in kinds for one in settings_of(kind)}
    others -= {one.flag for one in settings_of(own)}
    kept, fits = [], True
    for word in words:
        if word.startswith("--"):
            fits = word[2:].partition("=")[0] not in others
        kept += [word] if fits else []
    return kept


def seeds_in(root: Path) -> list[int]:
    """The seeds of all cells that a grid's folder holds."""
    if not root.is_dir():
        return []
    found = (re.fullmatch(r".+_seed(\d+)", entry.name) for entry in root.iterdir())
    return sorted({int(match[1]) for match in found if match})
