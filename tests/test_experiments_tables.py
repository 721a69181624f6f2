"""The paper's tables: planned cells, figures read from result files, Markdown, CSV and pictures."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from ekg_tf.experiments.tables import grid, outcomes, plans, text
from ekg_tf.experiments.tables import run as tables
from ekg_tf.pages import tables as page
from ekg_tf.reports import plots
from ekg_tf.reports.tables import two_digits
from ekg_tf.utils.errors import UserError

from ekg_tf import finetune, search

SCALE = plans.SCALES["smoke"]
REQUEST = plans.Request(SCALE, "DIGITS", "ResNet-20")


def names(planned: plans.Planned) -> list[str]:
    return [cell.name for cell in planned.cells]


def flag(cell: grid.Cell, name: str) -> str:
    """The value that a program would take: the last one given."""
    places = [n for n, word in enumerate(cell.args) if word == name]
    return cell.args[places[-1] + 1]


def planned(table: str, request=REQUEST, seeds=(0, 1)) -> list[plans.Planned]:
    return [plans.plan(row, request, list(seeds)) for row in plans.rows_of(table, request.arch)]


# ---------------------------------------------------------------- planning


def test_table2_shares_searches_and_the_baseline():
    rows = planned("2")
    assert [row.row.name for row in rows] == (
        "baseline none/none single/none ensemble/none ensemble/single ensemble/ensemble".split()
    )
    cells = grid.ordered(cell for row in rows for cell in row.cells)
    programs = [cell.program[0] for cell in cells]
    counts = {name: programs.count(name) for name in set(programs)}
    assert counts == {"train_cifar.py": 1, "search.py": 3 * 2, "finetune.py": 5 * 2}
    assert names(rows[1])[1:3] == [
        "search_taylor_none_0.45_seed0",
        "tune_none_of_taylor_none_0.45_seed0",
    ]
    last = rows[5].finetune[1]
    assert last.needs == (rows[3].search[1].name,)  # the search of ensemble/none, same seed
    assert flag(last, "--finetune_teacher") == "ensemble" and flag(last, "--seed") == "1"
    search = rows[5].search[1]
    assert flag(search, "--search_seed") == "1" and flag(search, "--search_target_rate") == "0.45"
    assert flag(search, "--trained_param") == "{root}/baseline/run/baseline.keras"
    assert flag(last, "--search_path") == f"{{root}}/{search.name}/run"


def test_table1_measures_smoothness_and_shares_ekg_with_table2():
    rows = planned("1", seeds=[0])
    scores = [(flag(r.search[0], "--score"), flag(r.search[0], "--search_teacher")) for r in rows]
    assert scores == [("l1", "none"), ("fpgm", "none"), ("taylor", "none"), ("taylor", "ensemble")]
    assert [cell.program[0] for cell in rows[0].cells] == (
        ["train_cifar.py", "search.py", "-m", "finetune.py"]
    )
    assert rows[3].search + rows[3].finetune == [
        cell for cell in planned("2", seeds=[0])[3].cells if cell.name != "baseline"
    ]


def test_a_bank_is_built_where_some_row_replays_it():
    rows = [row for table in ("1", "2", "methods") for row in planned(table, seeds=[0])]
    replayed = {"ensemble", "ckt"}
    used = {row.search[0] for row in rows if replayed & set(row.row.finetune)}
    without = {cell for row in rows for cell in row.search if "--bank" in cell.args}
    assert {cell.name for cell in used} == {
        "search_taylor_ensemble_0.45_seed0",
        "search_ffp_0.45_seed0",
    }
    assert without == {row.search[0] for row in rows if row.search} - used
    assert {flag(cell, "--bank") for cell in without} == {"none"}


def test_table3_takes_the_published_flops_and_imagenets_program():
    request = plans.Request(plans.SCALES["paper"], "ImageNet", "ResNet-50", trained_param="a.keras")
    rows = planned("3", request, [0])
    assert [row.row.name for row in rows] == ["baseline", "EKG-45.0", "EKG-55.0", plans.BYOL]
    rates = [flag(row.search[0], "--search_target_rate") for row in rows[1:]]
    assert rates == ["0.55", "0.45", "0.45"]
    assert rows[0].baseline.program == ("train_imagenet.py",)
    assert "--baseline_epoch" not in rows[0].baseline.args  # it was given
    with pytest.raises(UserError, match="ResNet-18, ResNet-34, ResNet-50, not --arch ResNet-20"):
        plans.rows_of("3", "ResNet-20")


def test_rows_are_picked_in_the_tables_order():
    rows = plans.rows_of("2", "ResNet-20")
    chosen = plans.pick(rows, ["ensemble/none", "baseline"])
    assert [row.name for row in chosen] == ["baseline", "ensemble/none"]
    with pytest.raises(UserError, match="--rows nonsense: the rows are baseline, none/none"):
        plans.pick(rows, ["nonsense"])
    large = plans.rows_of("3", "ResNet-50")
    assert plans.BYOL not in {row.name for row in plans.pick(large, None)}
    with pytest.raises(UserError, match="another --trained_param"):
        plans.pick(large, [plans.BYOL, "EKG-55.0"])


def test_methods_differ_in_the_search_alone():
    rows = {row.row.name: row for row in planned("methods", seeds=[0])}
    assert list(rows) == [
        *("baseline", "ekg", "ffp", "swp", "autoslim", "uniform", "global", "l1"),
        *("ekg/ekg", "ffp/ckt"),
    ]
    same = [name for name in rows if name not in ("baseline", "ekg/ekg", "ffp/ckt")]
    for name in same:
        flags = [word for word in rows[name].finetune[0].args if not word.startswith("{root}")]
        assert flags == [w for w in rows["ekg"].finetune[0].args if not w.startswith("{root}")]
    assert flag(rows["swp"].search[0], "--method") == "swp"
    assert flag(rows["l1"].search[0], "--score") == "l1"
    assert rows["ekg/ekg"].search == rows["ekg"].search


def test_further_flags_come_last_and_device_flags_are_no_part_of_the_cell(tmp_path):
    arguments = "--table 2 --scale short --data_path d --gpu_id 1 --search_target_rate 0.6".split()
    arguments += ["--train_path", str(tmp_path), "--finetune_flags=--train_epoch 9 --accum 2"]
    args = tables.parser().parse_args(arguments)
    request, (slot,) = tables.request_of(args), grid.slots(args.gpu_id, args.jobs)
    row = plans.plan(plans.table2()[1], request, [0])
    assert flag(row.finetune[0], "--train_epoch") == "9"
    assert row.finetune[0].args.count("--train_epoch") == 2, "the scale's own comes first"
    assert flag(row.search[0], "--data_path") == "d"
    assert row.search[0].name == "search_taylor_none_0.6_seed0"
    assert "--gpu_id" not in row.search[0].args
    assert row.search[0].command(tmp_path, slot)[-2:] == ["--gpu_id", "1"]
    assert flag(row.baseline, "--dataset") == "CIFAR10"


def test_flags_go_to_the_cells_whose_method_has_them():
    request = plans.Request(
        plans.SCALES["short"],
        "CIFAR10",
        "ResNet-20",
        search=("--search_step=0.3", "--budgets", "0.8", "0.6", "--swp_population", "4"),
        finetune=("--temperature", "3", "--accum", "2"),
    )
    rows = {row.row.name: row for row in planned("methods", request, [0])}
    given = {
        "ekg": ["--search_step=0.3", "--budgets", "0.8", "0.6"],
        "uniform": ["--budgets", "0.8", "0.6"],
        "autoslim": ["--supernet_epoch", "1", "--budgets", "0.8", "0.6"],
        "swp": ["--supernet_epoch", "1", "--budgets", "0.8", "0.6", "--swp_population", "4"],
    }
    for name, words in given.items():
        args = rows[name].search[0].args
        assert list(args[-len(words) - 2 : -2]) == words
        search.choices.search_of(search.parser().parse_args(args))  # not refused
    for name in rows:
        for cell in rows[name].finetune:
            taken = "--temperature" in cell.args
            assert taken == (name == "ekg/ekg") and flag(cell, "--accum") == "2"
            finetune.choices.finetuning_of(finetune.parser().parse_args(cell.args))


# ---------------------------------------------------------------- figures


def fill(cell: grid.Cell, root: Path, result: dict) -> None:
    """What a finished cell leaves behind."""
    cell.claim(root)
    (cell.run(root) / cell.result[0]).write_text(json.dumps(result))
    versions = {"gpus": [], "cpu_count": 2}
    (cell.run(root) / "versions.json").write_text(json.dumps(versions))


def accuracy(top1: float) -> dict:
    return {"top1": top1, "top5": None, "batch_top1": top1 - 1, "batch_top5": None}


def search_result(loss: float) -> dict:
    seconds = {"start": 60.0, "importance": 120.0, "proposals": 180.0, "bank": 360.0}
    return {
        "val_loss": {"before": 0.0, "after": loss},
        "flops_rate": 0.4375,
        "evaluations": 7,
        "seconds": seconds,
        "test": {"after": accuracy(90.0)},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Table 2's baseline, and two seeds of none/none and one of ensemble/ensemble."""
    rows = {row.row.name: row for row in planned("2")}
    root = tmp_path / "grid"
    fill(rows["baseline"].baseline, root, {"test": accuracy(98.0), "seconds": 720.0})
    for name, top1, loss in (("none/none", [95.0, 97.0], 0.5), ("ensemble/ensemble", [97.5], 0.25)):
        for seed, value in enumerate(top1):
            fill(rows[name].search[seed], root, search_result(loss))
            tuned = {"after": {"test": accuracy(value)}, "seconds": 1800.0 * (1 + seed)}
            fill(rows[name].finetune[seed], root, tuned)
    return root


def test_figures_of_rows(root):
    found = {row.row.name: outcomes.figures(row, root) for row in planned("2")}
    assert found["baseline"]["top1"] == [98.0] and found["baseline"]["training_hours"] == [0.2]
    one, last = found["none/none"], found["ensemble/ensemble"]
    assert one["top1"] == [95.0, 97.0] and one["batch_top1"] == [94.0, 96.0]
    assert one["top1_change"] == [-3.0, -1.0] and "top5" not in one
    assert one["search_hours"] == [0.1, 0.1]  # without the bank, which it doesn't use
    assert last["search_hours"] == [0.2] and last["search_seconds"] == [720.0]
    assert one["training_hours"] == [0.5, 1.0] and last["val_loss"] == [0.25]
    assert one["flops_removed"] == [56.25, 56.25] and one["evaluations"] == [7, 7]
    assert found["single/none"] == {}
    assert outcomes.of_smoothness({"networks": {"run": {"condition_number": 0.5}}}) == {
        "condition_number": 0.5
    }
    assert plans.seeds_in(root) == [0, 1] and plans.seeds_in(root / "missing") == []


def test_given_baseline_has_no_hours():
    assert "training_hours" not in outcomes.of_baseline({"test": accuracy(90.0), "seconds": None})


@pytest.fixture
def result(root) -> dict:
    return outcomes.collect("2", planned("2"), REQUEST, root)


def test_markdown_shows_mean_and_deviation_and_says_n_once(result):
    written = text.markdown(json.loads(json.dumps(result)))
    lines = {tuple(line.split(" | ")[:2]): line for line in written.splitlines()}
    assert "| 2 | 96.00 ± 1.41 | 95.00 ± 1.41 |" in lines["| none", "none"]
    assert "| 0.10 ± 0.00 | 0.75 ± 0.35 |" in lines["| none", "none"]
    assert "| 1 | 97.50 |" in lines["| ensemble", "ensemble"]
    assert "not measured" in lines["| single", "none"] and "(n = " not in written
    assert "ResNet-20 on DIGITS" in written and "; on CPU, 2 cores)" in written


def test_published_figures_stand_beside_ours_of_the_same_network_alone(result):
    written = text.markdown(result)
    assert "published" not in written.lower() and "93.78" not in written
    known = text.as_published(result)
    assert "ResNet-56 on CIFAR10, as published" in known
    assert "| none | none | 93.78 ± 0.07 | 0.19 | 0.50 |" in known
    same = text.markdown(result | {"network": "ResNet-56 on CIFAR10"})
    assert "| 2 | 96.00 ± 1.41 | 93.78 ± 0.07 | 95.00 ± 1.41 |" in same
    assert "Published: the same." in same


def test_rows_of_as_many_runs_say_n_in_the_caption(result):
    same = [row for row in result["rows"] if row["name"] in ("baseline", "ensemble/ensemble")]
    written = text.markdown(result | {"rows": same})
    assert " n = 1.\n" in written and "| n |" not in written


def test_hours_have_two_digits():
    assert [two_digits([value]) for value in (0.0172, 0.67, 1.8, 12.3, 0.0)] == (
        ".3f .2f .1f .0f .2f".split()
    )


def test_csv_has_every_value(result):
    rows = list(csv.DictReader(io.StringIO(text.comma_separated(result))))
    found = {(row["row"], row["figure"]): row for row in rows}
    one = found["none/none", "top1"]
    assert (one["n"], one["mean"], one["published"]) == ("2", "96.0", "")
    assert float(one["std"]) == pytest.approx(2**0.5) and one["values"] == "95.0 97.0"
    assert ("single/none", "top1") not in found  # neither measured nor published of this network
    assert found["ensemble/ensemble", "val_loss"]["std"] == ""


def test_written_files_and_page(result, tmp_path):
    written = text.write(result, tmp_path)
    assert (tmp_path / "table2.md").read_text() == written + "\n"
    assert (tmp_path / "table2.csv").read_text() == text.comma_separated(result)
    assert page.page(tmp_path / "nothing") == "not measured"
    (tmp_path / "table2.json").write_text(json.dumps(result))
    picture = "![accuracies of its rows](results/table2.png)"
    assert page.page(tmp_path) == "\n\n".join([written, picture, text.as_published(result)])


def test_docs_page_is_printed_from_files():
    written = page.PAGE.read_text(encoding="utf-8")
    assert written.split(page.BEGIN)[1].split(page.END)[0].strip() == page.page()


def test_table3_lists_other_methods_published_rows(tmp_path):
    request = plans.Request(plans.SCALES["paper"], "ImageNet", "ResNet-18")
    result = outcomes.collect("3", planned("3", request, [0]), request, tmp_path)
    assert text.of_the_same_network(result)
    written = text.markdown(result)
    assert "| TAS |  | 69.15 |  | -1.50 |  | 89.19 |  | -0.68 |  | 33.3 |" in written
    assert "| EKG | not measured | 69.39 | not measured | -0.99 |" in written


def test_published_figures_agree_with_their_changes():
    """The printed changes of EKG's rows are against the baselines that they imply."""
    settings = json.loads(outcomes.PUBLISHED.read_text())
    for network in settings["3"].values():
        for name, row in network.items():
            if name.startswith("EKG-") and name != plans.BYOL:
                for key in ("top1", "top5"):
                    change = row[key] - network["baseline"][key]
                    assert change == pytest.approx(row[f"{key}_change"], abs=1e-6), name
    for table in ("1", "2"):
        for network in settings[table].values():
            wanted = {row.published for row in plans.rows_of(table, "")}
            assert network.keys() == wanted
    name, rows = outcomes.published("2", "MobileNet-v2", "CIFAR100")
    assert name == "MobileNet-v2 on CIFAR100" and rows["ensemble/ensemble"]["top1"] == 76.29
    assert outcomes.published("1", "ResNet-20", "CIFAR100")[0] == "ResNet-56 on CIFAR100"
    assert outcomes.published("3", "ResNet-20", "DIGITS")[0] == "ResNet-50 on ImageNet"


# ---------------------------------------------------------------- command line and picture


def test_dry_run_prints_commands_and_runs_nothing(root, capsys):
    arguments = (
        f"--table 2 --train_path {root} --seeds 2 --rows none/none single/none --dry_run".split()
    )
    assert tables.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    states = [line.split(": ")[0] for line in lines]
    assert states == ["finished"] * 5 + ["to run"] * 4
    assert lines[5].split(": ")[2].startswith("python search.py --arch ResNet-20 --dataset DIGITS")
    assert not (root / "table2.md").exists()


def test_a_finished_grid_prints_its_table(root, capsys):
    out = root / "out.json"
    arguments = f"--table 2 --train_path {root} --seeds 2 --rows none/none --out {out}".split()
    assert tables.main(arguments) == 0
    said = capsys.readouterr().out
    assert "5 cells, 5 of them finished" in said and "| 2 | 96.00 ± 1.41 |" in said
    assert "| 1 | 97.50 |" in said  # what the folder holds is shown, asked for or not
    assert json.loads(out.read_text())["rows"][1]["figures"]["top1"] == [95.0, 97.0]
    assert out.with_suffix(".png").exists() and (root / "table2.csv").exists()


def test_another_scale_in_the_same_folder_is_refused(root):
    with pytest.raises(UserError, match="another command"):
        tables.main(f"--table 2 --train_path {root} --baseline_flags=--accum=2".split())


@pytest.mark.parametrize("name", ["table.txt", "missing/table.json"])
def test_a_result_file_that_cannot_be_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(UserError, match=r"give a \.json file in a folder that exists"):
        tables.main(f"--table 2 --train_path {tmp_path / 'g'} --out {tmp_path / name}".split())
    assert not (tmp_path / "g").exists()


def test_accuracies_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    plots.accuracies(path, ["a", "b", "c"], [[], [93.0], [94.0, 95.0]], published=[93.5, None, 95])
    pixels = np.asarray(image.open(path).convert("RGB")).reshape(-1, 3)
    colours = {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels, axis=0)}
    assert {plots.LIGHT, plots.DARK, plots.COLOURS[1]} <= colours
    with pytest.raises(ValueError, match="1 names, 2 values, 1 published"):
        plots.accuracies(path, ["a"], [[], []])
