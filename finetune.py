"""Phase 2 of EKG (Lee & Song, ECCV 2022): fine-tuning that replays the memory bank.

    python finetune.py --train_path ../run

continues a folder in which search.py has finished. With --search_path the search's folder is only
read, so that several fine-tunings (teachers, seeds) can start from one search. The test split is
read after every epoch for the curves; it chooses nothing, the network of the last epoch is kept.
"""

from utils import cli, devices

devices.quiet()

from pathlib import Path

import keras

from dataloader import Dataset, unreadable_named
from nets.head import ending_as, load_logits
from pruning.bank import open_bank
from pruning.distill import ensemble_loss, plain_loss, single_loss
from utils import inputs, plots
from utils import options as flags
from utils.checkpoint import load_keras, save_keras, save_pkl, to_pkl
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
from utils.runfolder import BASELINE, PRUNED, START, RunFolder

EXPORTED, WEIGHTS = "pruned.keras", "trained_param.pkl"


def finetune(
    folder: RunFolder,
    search_path: Path,
    data: Dataset,
    options: TrainOptions,
    device: Device,
    *,
    teacher: str = "ensemble",
    temperature: float = 4.0,
) -> keras.Model:
    """Fine-tunes the pruned network of a finished search; resumes what an earlier process began.

    Writes pruned.keras, trained_param.pkl, finetune.json and training_curves.png to the folder.

    Args:
        search_path: run folder with the finished search, its start network and its bank.
        teacher: "none" (one view, no jitter), "single" (theta_0 online) or "ensemble" (the bank).
        temperature: T of the distillation; the paper has 4, and 10 from 1000 classes up.

    Returns:
        The fine-tuned network of stock layers, moving statistics re-estimated; it gives logits.
        pruned.keras ends in a softmax where the network that was pruned does.

    Raises:
        UserError: the search isn't finished, or its bank belongs to other data.
    """
    if folder.file(EXPORTED).exists():
        return load_logits(folder.file(EXPORTED))
    model = load_logits(search_path / PRUNED)
    objective = _objective(search_path, data, teacher, temperature, device)
    model = train(folder, "finetune", model, data, objective, options, device)
    rows = [row for row in folder.rows(METRICS) if row["phase"] == "finetune"]
    folder.write_json(
        "finetune.json",
        {
            "teacher": teacher,
            "temperature": temperature,
            "epochs": len(rows),
            "seconds": sum(row["seconds"] for row in rows),
        },
    )
    _save_weights(folder, model)
    draw(folder)
    save_keras(folder.file(EXPORTED), ending_as(load_keras(search_path / BASELINE), model))
    return model


def _save_weights(folder: RunFolder, model: keras.Model) -> None:
    try:
        arrays = to_pkl(model)
    except cli.UserError as error:  # the layout has names for our own architectures' weights alone
        print(f"{WEIGHTS} is not written: {error}")
        return
    save_pkl(folder.file(WEIGHTS), arrays)


def _objective(
    search_path: Path, data: Dataset, teacher: str, temperature: float, device: Device
) -> Objective:
    if teacher == "none":
        return Objective(plain_loss())
    if teacher == "single":
        with device.strategy.scope():
            start = load_keras(search_path / START)
        return Objective(single_loss(temperature), views=2, jitter=True, teacher=start)
    manifest = read_json(search_path / "bank.json")
    bank = open_bank(search_path, manifest, data.fingerprint)
    return Objective(ensemble_loss(temperature), views=2, jitter=True, rows=bank)


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
    return finetune(
        folder,
        search_path,
        data,
        flags.finetune_of(args),
        device,
        teacher=args.finetune_teacher,
        temperature=args.temperature,
    )


def report(folder: RunFolder, before: keras.Model, after: keras.Model, data, device, more) -> None:
    """Writes result.json, which marks the run as finished, and prints before -> after."""
    memory = {"peak_memory_mb": peak_memory_mb()}
    results = describe(before, after, data, device) | more | memory
    folder.write_json("result.json", results)
    print_report(results)


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line of phase 2."""
    parser = cli.Parser(description="Fine-tunes the network that search.py has pruned.")
    flags.add_run(parser)
    parser.add_argument("--search_path", help="folder of the search; default: --train_path")
    parser.add_argument("--data_path", help="default: that of the search")
    parser.add_argument("--data", help="your own data; default: that of the search")
    flags.add_device(parser)
    flags.add_finetune(parser)
    args = parser.parse_args(argv)
    search_path = Path(args.search_path or args.train_path)
    if not (search_path / PRUNED).exists():
        raise cli.UserError(f"{search_path} holds no finished search: run search.py on it first")
    inputs.inherit_data(args, search_path)
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    before = load_logits(search_path / BASELINE)
    data = inputs.data_of(args, before)
    flags.fill_defaults(args, data)
    # Whatever is wrong with the flags or the search's files shows here, before there is a folder.
    check_batch(args.batch_size, data, device)
    load_logits(search_path / PRUNED)
    _objective(search_path, data, args.finetune_teacher, args.temperature, device)
    with flags.open_folder(args, "finetune_state.npz") as folder:
        if folder.finished:
            print(f"{folder.path} holds the finished run of this command:")
            print_report(folder.read_json("result.json"))
            return
        model = finetune_from_flags(folder, search_path, data, args, device)
        report(folder, before, model, data, device, folder.read_json("finetune.json"))


if __name__ == "__main__":
    cli.run(main)
