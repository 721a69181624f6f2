"""Phase 2: fine-tuning of the network that search.py has found; by default EKG's (Lee & Song, ECCV
2022), which replays the memory bank, with --finetune_method also FFP's contrastive transfer.

    python finetune.py --train_path ../run

continues a folder in which search.py has finished. With --search_path the search's folder is only
read, so that several fine-tunings (teachers, seeds) can start from one search. The test split is
read after every epoch for the curves; it chooses nothing, the network of the last epoch is kept.
"""

from utils import cli, devices

devices.import_tensorflow()

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import keras

from dataloader import Dataset, own, unreadable_named
from nets.head import ending_as, load_logits
from pruning.bank_reader import open_bank, open_features, read_manifest
from pruning.contrast import ckt_loss, with_projection
from pruning.distill import ensemble_loss, kd_loss, plain_loss, single_loss
from utils import inputs, plots
from utils import options as flags
from utils.checkpoint import load_keras, save_keras, save_pkl, to_pkl
from utils.defaults import fill_defaults
from utils.jsonl import read_json
from utils.measure import describe, peak_memory_mb, print_report
from utils.phases import (
    METRICS,
    Device,
    Objective,
    TrainOptions,
    check_batch,
    train,
)
from utils.runfolder import BASELINE, PRUNED, START, RunFolder, front_file

EXPORTED, WEIGHTS = "pruned.keras", "trained_param.pkl"


@dataclass(frozen=True)
class Transfer:
    """How the student learns; the names are those of the flags.

    method: "ekg" (method.md 3), "ckt" (method.md 5), "kd" (Hinton et al. 2015, one view, theta_0
    online) or "plain" (cross-entropy, one view).
    teacher: of "ekg": "none" (one view, no jitter), "single" (theta_0 online) or "ensemble" (the
    bank). temperature: T of "ekg" and "kd"; the paper has 4, and 10 from 1000 classes up.
    ckt: "infonce" or "pull". kd_alpha: weight of the distillation in "kd".
    rate: fine-tune the network that the search kept at this rate of --budgets; None = its last one.
    from_scratch: begin with fresh weights.
    """

    method: str = "ekg"
    teacher: str = "ensemble"
    temperature: float = 4.0
    ckt: str = "infonce"
    kd_alpha: float = 0.9
    rate: float | None = None
    from_scratch: bool = False


DEFAULT = Transfer()


def finetune(
    folder: RunFolder,
    search_path: Path,
    data: Dataset,
    options: TrainOptions,
    device: Device,
    transfer: Transfer = DEFAULT,
) -> keras.Model:
    """Fine-tunes the pruned network of a finished search; resumes what an earlier process began.

    Writes pruned.keras, trained_param.pkl, finetune.json and training_curves.png to the folder.

    Args:
        search_path: run folder with the finished search, its start network and its bank.

    Returns:
        The fine-tuned network of stock layers, moving statistics re-estimated; it gives logits.
        pruned.keras ends in a softmax where the network that was pruned does.

    Raises:
        UserError: the search isn't finished, or its bank belongs to other data or lacks what the
            method needs.
    """
    if folder.file(EXPORTED).exists():
        return load_logits(folder.file(EXPORTED))
    student = load_logits(search_path / pruned_file(search_path, transfer.rate))
    if transfer.from_scratch:
        keras.utils.set_random_seed(options.seed)
        student = keras.models.clone_model(student)
    trained, objective = _objective(search_path, student, data, transfer, options.seed, device)
    train(folder, "finetune", trained, data, objective, options, device)  # shares student's layers
    rows = [row for row in folder.rows(METRICS) if row["phase"] == "finetune"]
    seconds = {"epochs": len(rows), "seconds": sum(row["seconds"] for row in rows)}
    folder.write_json("finetune.json", asdict(transfer) | seconds)
    _save_weights(folder, student)
    draw(folder)
    save_keras(folder.file(EXPORTED), ending_as(load_keras(search_path / BASELINE), student))
    return student


def pruned_file(search_path: Path, rate: float | None) -> str:
    """Name of the network to fine-tune in a search's folder.

    Raises:
        UserError: the search isn't finished, or kept no network at this rate.
    """
    if not (search_path / PRUNED).exists():
        raise cli.UserError(f"{search_path} holds no finished search: run search.py on it first")
    name = PRUNED if rate is None else front_file(rate)
    if not (search_path / name).exists():
        kept = [f"{one['wanted']:g}" for one in read_json(search_path / "search.json")["front"]]
        raise cli.UserError(
            f"{search_path} has no network of --rate {rate:g}: its search kept "
            f"{' '.join(kept) or 'none'} on the way (--budgets of search.py)"
        )
    return name


def _save_weights(folder: RunFolder, model: keras.Model) -> None:
    try:
        arrays = to_pkl(model)
    except cli.UserError as error:  # the layout has names for our own architectures' weights alone
        print(f"{WEIGHTS} is not written: {error}")
        return
    save_pkl(folder.file(WEIGHTS), arrays)


def _objective(
    search_path: Path,
    student: keras.Model,
    data: Dataset,
    transfer: Transfer,
    seed: int,
    device: Device,
) -> tuple[keras.Model, Objective]:
    """What is trained, which has the student's layers, and how."""
    of_ekg = transfer.teacher if transfer.method == "ekg" else None
    if transfer.method == "plain" or of_ekg == "none":
        return student, Objective(plain_loss())
    temperature = transfer.temperature
    if transfer.method == "kd" or of_ekg == "single":
        with device.strategy.scope():
            start = load_keras(search_path / START)
        if transfer.method == "kd":
            return student, Objective(kd_loss(temperature, transfer.kd_alpha), teacher=start)
        return student, Objective(single_loss(temperature), views=2, jitter=True, teacher=start)
    manifest = read_manifest(search_path)
    if transfer.method == "ckt":
        rows = open_features(search_path, manifest, data.fingerprint)
        student = with_projection(student, manifest["features"], seed)
        loss = ckt_loss(transfer.ckt, data.num_classes)
        two_views = Objective(loss, views=2, jitter=True, rows=rows, num_classes=data.num_classes)
        return student, two_views
    bank = open_bank(search_path, manifest, data.fingerprint)
    return student, Objective(ensemble_loss(temperature), views=2, jitter=True, rows=bank)


def draw(folder: RunFolder) -> None:
    """training_curves.png of the folder's baseline and fine-tuning, as far as they are there."""
    series: dict[str, dict[str, list]] = {}
    for row in folder.rows(METRICS):
        run = series.setdefault(row["phase"], {"epoch": [], "train loss": [], "test loss": []})
        run.setdefault("train accuracy", []).append(row["accuracy"] / 100)
        run.setdefault("test accuracy", []).append(row["test_top1"] / 100)
        run["epoch"].append(row["epoch"])
        run["train loss"].append(row["loss"])
        run["test loss"].append(row["test_loss"])
    if series:
        plots.training_curves(folder.file("training_curves.png"), series)


def finetune_from_flags(folder: RunFolder, search_path: Path, data: Dataset, args, device: Device):
    """`finetune` with the values of the command line; returns the network."""
    return finetune(folder, search_path, data, flags.finetune_of(args), device, transfer_of(args))


def transfer_of(args) -> Transfer:
    """The `Transfer` of the flags.

    Raises:
        UserError: a flag that belongs to another method.
    """
    if args.finetune_teacher is None:
        args.finetune_teacher = "ensemble" if args.finetune_method == "ekg" else "none"
    for name, method in (("finetune_teacher", "ekg"), ("ckt", "ckt"), ("kd_alpha", "kd")):
        if getattr(args, name) not in (None, "none") and args.finetune_method != method:
            raise cli.UserError(
                f"--{name} belongs to --finetune_method {method}, not {args.finetune_method}"
            )
    given = {
        "teacher": args.finetune_teacher,
        "ckt": args.ckt,
        "kd_alpha": args.kd_alpha,
        "rate": getattr(args, "rate", None),
    }
    return Transfer(
        method=args.finetune_method,
        temperature=args.temperature,
        from_scratch=args.from_scratch,
        **{name: value for name, value in given.items() if value is not None},
    )


def tested(search_path: Path, rate: float | None = None) -> dict | None:
    """What a search measured on the test split of the network that is fine-tuned, if it did."""
    results = read_json(search_path / "search.json")
    if rate is None:
        return results.get("test", {}).get("after")
    name = front_file(rate)
    return next(one.get("test") for one in results["front"] if front_file(one["wanted"]) == name)


def report(
    folder: RunFolder,
    before: keras.Model,
    after: keras.Model,
    data: Dataset,
    device: Device,
    more: dict,
    untuned: dict | None,
) -> None:
    """Writes result.json, which marks the run as finished, and prints before -> after.

    Args:
        untuned: of `tested`, to say when the fine-tuning has done harm.
    """
    memory = {"peak_memory_mb": peak_memory_mb()}
    results = describe(before, after, data, device) | more | memory
    folder.write_json("result.json", results)
    print_report(results)
    tuned = results["after"]["test"]
    if untuned and _worse(tuned, untuned):
        augmentation = "--data_crop 0, --data_flip off, " if data.name == own.NAME else ""
        print(
            f"the fine-tuning did harm: top-1 {untuned['top1']:.2f} % before it, "
            f"{tuned['top1']:.2f} % after it; try {augmentation}a lower --learning_rate or more "
            "--train_epoch"
        )


def _worse(tuned: dict, untuned: dict) -> bool:
    """Whether top-1 fell by more than the standard error of such a difference."""
    before, after = untuned["top1"] / 100, tuned["top1"] / 100
    variance = before * (1 - before) + after * (1 - after)
    return before - after > math.sqrt(variance / tuned["examples"])


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line of phase 2."""
    parser = cli.Parser(description="Fine-tunes the network that search.py has pruned.")
    flags.add_run(parser)
    parser.add_argument("--search_path", help="folder of the search; default: --train_path")
    parser.add_argument("--data_path", help="default: that of the search")
    parser.add_argument("--data", help="your own data; default: that of the search")
    inputs.add_augmentation(parser)
    parser.add_argument(
        "--rate",
        type=cli.fraction,
        help="fine-tune the network that search.py kept at this rate of its --budgets",
    )
    flags.add_device(parser)
    flags.add_finetune(parser)
    args = parser.parse_args(argv)
    search_path = Path(args.search_path or args.train_path)
    pruned = search_path / pruned_file(search_path, args.rate)
    inputs.inherit_data(args, search_path)
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    before = load_logits(search_path / BASELINE)
    data = inputs.data_of(args, before)
    fill_defaults(args, data)
    # Whatever is wrong with the flags or the search's files shows here, before there is a folder.
    check_batch(args.batch_size, data, device)
    _objective(search_path, load_logits(pruned), data, transfer_of(args), args.seed, device)
    with flags.open_folder(args, "finetune_state.npz") as folder:
        if folder.finished:
            print(f"{folder.path} holds the finished run of this command:")
            print_report(folder.read_json("result.json"))
            return
        model = finetune_from_flags(folder, search_path, data, args, device)
        more, untuned = folder.read_json("finetune.json"), tested(search_path, args.rate)
        report(folder, before, model, data, device, more, untuned)


if __name__ == "__main__":
    cli.run(main)
