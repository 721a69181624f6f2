"""The claims' experiments: intervals, verdicts, plans, what E1 and E4 compute, the page."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import scipy.stats
from ekg_tf.cli import choices, manners
from ekg_tf.experiments import potential
from ekg_tf.experiments.claims import masking, plans, rewards, run, statistics
from ekg_tf.experiments.claims.statistics import Estimate, verdict
from ekg_tf.experiments.tables.grid import RUN
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agreement as masked_and_pruned
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.options.finetuning import TEACHER_RULES, Ensemble, Plain, Single
from ekg_tf.pages import claims as page
from ekg_tf.pruning.history import History, output_shapes
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfolder import RunFolder

from ekg_tf import finetune, search, train_cifar
from tests.helpers.networks import shaken
from tests.helpers.options import search_options
from tests.helpers.searches import validation

# ---------------------------------------------------------------- intervals and verdicts


def test_a_mean_has_the_interval_of_students_t():
    found = statistics.mean([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t of two degrees of freedom at 97.5 %, deviation 1
    assert (found.value, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert found.text() == "+2.00 [-0.48, +4.48]"
    assert statistics.mean([]) is None
    assert statistics.mean([1.5]) == Estimate(1.5, -math.inf, math.inf, 1)
    assert verdict(statistics.mean([1.5, 1.5])) == "not shown"  # alike by chance
    assert statistics.mean([1.5]).text(".1f") == "1.5 [no interval]"


@pytest.mark.parametrize(
    ("interval", "least", "said"),
    [
        ((0.1, 0.5), 0.0, "shown"),
        ((-0.1, 0.5), 0.0, "not shown"),
        ((-0.5, -0.1), 0.0, "contradicted"),
        ((0.0, 0.5), 0.0, "not shown"),
        ((0.1, 0.5), 0.2, "not shown"),
        ((0.3, 0.5), 0.2, "shown"),
        ((0.01, 0.1), 0.2, "contradicted"),
        ((-math.inf, math.inf), 0.0, "not shown"),
    ],
)
def test_the_verdict_is_that_of_the_interval(interval, least, said):
    assert verdict(Estimate(sum(interval) / 2, *interval, 5), least=least) == said
    assert verdict(None, least=least) == "not measured"


def test_partial_correlation_against_the_textbook_formula():
    rng = np.random.default_rng(0)
    given = rng.normal(size=40)
    first, second = given + rng.normal(size=40), rng.normal(size=40) - 2 * given
    xy, xz, yz = (
        float(scipy.stats.pearsonr(one, other).statistic)
        for one, other in ((first, second), (first, given), (second, given))
    )
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert statistics.partial_correlation(first, second, given) == pytest.approx(expected)
    assert math.isnan(statistics.partial_correlation(3 * given + 1, second, given))


def test_repeated_networks_do_not_make_an_interval_narrower():
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(3, 12))
    columns[1] += columns[0]
    plain = statistics.clustered(columns, np.arange(12))
    often = np.repeat(columns, 8, axis=1)
    whole = statistics.clustered(often, np.repeat(np.arange(12), 8))
    blind = statistics.clustered(often, np.arange(96))
    assert whole.value == pytest.approx(plain.value) and whole.n == 96
    assert (whole.low, whole.high) == pytest.approx((plain.low, plain.high))
    assert blind.high - blind.low < 0.6 * (whole.high - whole.low)
    ranks = statistics.clustered(np.exp(columns), np.arange(12), ranks=True)
    assert ranks.value == pytest.approx(statistics.clustered(columns, range(12), ranks=True).value)
    assert statistics.clustered(columns[:, :3], range(3)) is None
    assert statistics.clustered(columns[[0, 1, 1]], range(12)) is None  # nothing is left of one
    assert math.isinf(statistics.clustered(columns, np.arange(12) % 4).high)


# ---------------------------------------------------------------- E1 and E4


def test_everywhere_scales_kernels_that_no_batch_norm_follows():
    network = shaken(masking.plain_network((8, 8, 1), 3))
    assert len(ChannelGraph(network).scaled) == 0
    graph = ChannelGraph(network, scale_all=True)
    assert len(graph.scaled) == len(masking.WIDTHS) + 1
    mask = graph.open_mask()
    mask[: graph.groups[0].channels // 2] = 0
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    pruned = graph.pruned(mask)
    assert masked_and_pruned(graph, mask, pruned, images)["relative_difference"] < 1e-4
    kernels = [one.layers[1].kernel.numpy() for one in (network, pruned)]
    assert np.linalg.norm(kernels[0]) == pytest.approx(np.linalg.norm(kernels[1]), rel=1e-5)
    assert kernels[1].shape[-1] == kernels[0].shape[-1] / 2


def test_agreement_of_typed_in_rewards():
    """Losses of none, single and ensemble; in step 0 the screening leaves out the best."""
    steps = [
        {"losses": [[1, 1, 3], [2, 2, 2], [3, 3, 1]], "screened": [0, 1]},
        {"losses": [[1, 2, 1], [2, 3, 2], [3, 1, 3]], "screened": [0, 1, 2]},
        {"losses": [[1, 1, 1], [2, 2, 2]], "screened": [0]},
    ]
    found = rewards.agreement(steps)
    assert found["none/ensemble"] == {"same": 0.5, "tau": 0.0, "steps": 2}
    assert found["none/single"]["same"] == 0.5
    assert found["none/single"]["tau"] == pytest.approx((1 - 1 / 3) / 2)
    assert found["single/ensemble"]["same"] == 0.0


def test_a_rated_search_takes_the_steps_of_the_search_and_notes_all_rewards(tmp_path):
    keras.utils.set_random_seed(0)
    graph = ChannelGraph(shaken(cifar_resnet(8, 5, (8, 8, 3))))
    val, histories = validation(graph.model, count=20), []
    options = search_options(0.85, step=0.4, teacher="ensemble", evaluator="exact")
    for kind in (rewards.RatedSearch, rewards.GreedySearch):
        with RunFolder.open(tmp_path / kind.__name__, {}) as folder:
            history = History(folder, output_shapes(graph, len(val)))
            kind(graph, val, history, options, classification()).run()
        histories.append(history)
    rated, plain = histories
    assert [row["removed_units"] for row in rated.rows] == [
        row["removed_units"] for row in plain.rows
    ]
    assert "rated" not in rated.rows[0] and len(rated.rows) > 2
    for row in rated.rows[1:]:
        losses = np.array(row["rated"]["losses"])
        screened = losses[row["rated"]["screened"]]
        assert screened[:, 2].min() == pytest.approx(-row["reward"], rel=1e-5)
        chosen = screened[screened[:, 2].argmin()]
        assert chosen[0] == pytest.approx(row["val_loss"], rel=1e-5)
    first = np.array(rated.rows[1]["rated"]["losses"])  # theta_0 is all that the ensemble has yet
    np.testing.assert_allclose(first[:, 1], first[:, 2], rtol=1e-6)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("setting", [plans.FULL, plans.QUICK], ids=["full", "quick"])
def test_the_programs_take_the_commands(setting):
    made = plans.Plans(setting, ())
    parsers = {
        "train_cifar.py": train_cifar.parser(),
        "search.py": search.parser(),
        "finetune.py": finetune.parser(),
        "ekg_tf.experiments.claims.masking": masking.parser(),
        "ekg_tf.experiments.claims.rewards": rewards.parser(),
        "ekg_tf.experiments.potential": manners.Parser(),
    }
    potential.add_flags(parsers["ekg_tf.experiments.potential"])
    kinds = {"one_view": Plain(views=1), "two_views": Plain(views=2), "single": Single()}
    kinds |= {"ensemble": Ensemble()}
    for experiment in run.EXPERIMENTS:
        runs = run.runs_of(made, experiment)
        names = [one.cell.name for one in runs]
        assert len(set(names)) == len(names) and len({str(one.labels) for one in runs}) == len(runs)
        for one in runs:
            for cell in one.cells:
                args = parsers[cell.program[-1]].parse_args(cell.args)
                assert str(args.train_path).endswith(f"/{cell.name}/{RUN}")
            if experiment == "E2":
                assert choices.finetuning_of(args) == kinds[one.labels["arm"]]
            if experiment == "E3":
                assert choices.finetuning_of(args) == Ensemble(rule=one.labels["rule"])


def test_runs_are_paired_and_share_what_they_can():
    made = plans.Plans(plans.FULL, ("--data_path", "DIR"))
    arms = made.runs("E2", 3)
    assert len({one.before for one in arms}) == 1  # the same baseline and search
    seeds = {one.cell.args[one.cell.args.index("--seed") + 1] for one in arms}
    search_seed = arms[0].before[1].args[arms[0].before[1].args.index("--search_seed") + 1]
    assert seeds == {"103"} and search_seed == "3"
    assert arms[-1].cell == made.runs("E3", 3)[0].cell  # the ensemble by the paper's rule
    counts = {name: len(run.runs_of(made, name)) for name in run.EXPERIMENTS}
    assert counts == {"E1": 20, "E4": 15, "E2": 24, "E3": 36, "E5": 1, "E6": 6, "E7": 12}
    assert len(run.runs_of(made, "E2", 2)) == 8
    baselines = {one.before[0].name for one in run.runs_of(made, "E4")}
    assert baselines == {f"baseline_{kind}_{k}" for kind in ("fitted", "unfitted") for k in (0, 1)}
    nobody, together = made.runs("E7", 3)
    assert together.cell == arms[0].cell and together.before == arms[0].before
    assert nobody.before[0] == together.before[0]
    assert nobody.before[1].args[-4:-2] == ("--search_teacher", "none")
    assert set(nobody.cell.args) ^ set(together.cell.args) == {
        f"{{root}}/{one.name}/run"
        for run in (nobody, together)
        for one in (run.cell, run.before[1])
    }
    alone, byol = (one.before[0].args for one in made.runs("E6", 2))
    assert byol == tuple(
        word.replace("alone", "byol") for word in (*alone[:-2], "--baseline_teacher", "byol")
    ) + tuple(word.replace("alone", "byol") for word in alone[-2:])


# ---------------------------------------------------------------- results and page


def fill(one: plans.Run, root, result: dict) -> None:
    """What the finished cells of a run leave behind."""
    for cell in one.cells:
        cell.claim(root)
        content = result if cell is one.cell else {cell.result[1]: {"after": {"top1": 50.0}}}
        (cell.run(root) / cell.result[0]).write_text(json.dumps(content))
        versions = json.dumps({"gpus": [], "cpu_count": 2})
        (cell.run(root) / "versions.json").write_text(versions)


def tuned(top1: float, loss: float) -> dict:
    before = {"test": {"top1": 95.0, "loss": 0.25}}
    return {"before": before, "after": {"test": {"top1": top1, "loss": loss}}}


def test_results_are_collected_and_other_settings_refused(tmp_path, capsys):
    made, root, out = plans.Plans(plans.QUICK, ()), tmp_path / "work", tmp_path / "claims.json"
    for number, one in enumerate(made.runs("E2", 0)):
        fill(one, root, tuned(90.0 + number, 0.5))
        rows = [{"phase": "finetune", "epoch": 1, "seconds": 1.0, "teachers": 4.5}]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (one.cell.run(root) / "metrics.jsonl").write_text(text)
    line = ["--quick", "--claims", "E2", "--seeds", "1", "--work", str(root), "--out", str(out)]
    assert run.main(line) == 0
    assert "6 cells, 6 of them finished" in capsys.readouterr().out
    found = json.loads(out.read_text())
    experiment = found["experiments"]["E2"]
    (shared,) = found["experiments"]["E3"]["runs"]  # E2's ensemble is one of its arms
    assert (shared["rule"], shared["baseline"], shared["teachers"]) == ("paper", "fitted", [4.5])
    assert [one["test_top1"] for one in experiment["runs"]] == [90.0, 91.0, 92.0, 93.0]
    assert experiment["runs"][0]["arm"] == "one_view" and experiment["runs"][0]["seed"] == 0
    assert experiment["runs"][0]["searched_top1"] == 50.0
    assert experiment["machines"] == ["CPU, 2 cores"]
    assert any("--views 2" in command for command in experiment["commands"].values())
    assert str(tmp_path) not in json.dumps(found["experiments"])
    assert run.main(line) == 0 and json.loads(out.read_text()) == found
    found["setting"]["tuning"] += 1
    out.write_text(json.dumps(found))
    with pytest.raises(UserError, match="holds results of another setting"):
        run.main(line)


def test_what_a_result_file_holds_is_not_run_again(tmp_path, capsys):
    made, out = plans.Plans(plans.QUICK, ()), tmp_path / "claims.json"
    for seed in (0, 1):  # on two days, each with a folder of its own
        root = tmp_path / f"work_{seed}"
        for one in made.runs("E2", seed):
            fill(one, root, tuned(90.0 + seed, 0.5))
        line = ["--quick", "--claims", "E2", "--work", str(root), "--out", str(out)]
        assert run.main([*line, "--seeds", str(seed + 1)]) == 0
        assert "6 cells, 6 of them finished" in capsys.readouterr().out
    rows = json.loads(out.read_text())["experiments"]["E2"]["runs"]
    assert [one["test_top1"] for one in rows] == [90.0] * 4 + [91.0] * 4
    assert run.main([*line, "--dry_run"]) == 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--claims E1", "--data_path is missing"),
        ("--data_path nowhere", "nowhere does not exist"),
        ("--quick --data_path DIR", "leave out --data_path"),
        ("--quick --out nowhere/claims.json", "in a folder that exists"),
    ],
)
def test_mistakes_are_answered_before_any_work(line, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run.main([*line.split(), "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_differences_are_paired_by_seed():
    def row(seed, arm, value, rate=1):
        return {"seed": seed, "arm": arm, "value": value, "rate": rate}

    rows = [
        row(0, "a", 3.0),
        row(0, "b", 1.0),
        row(1, "b", 5.0),
        row(2, "a", 2.0),
        row(2, "b", 3.0),
    ]
    assert page.differences(rows, "value", {"arm": "a"}, {"arm": "b"}) == [2.0, -1.0]
    rows += [row(0, "a", 8.0, rate=2), row(0, "b", 4.0, rate=2)]
    assert page.differences(rows, "value", {"arm": "a"}, {"arm": "b"}, "rate") == [3.0, -1.0]


def results() -> dict:
    """Figures of all experiments, made up so that the verdicts are known."""
    arms = dict(zip(plans.ARMS, (80.0, 82.0, 81.9, 83.0), strict=True))
    seeds = range(6)
    e2 = [
        {"seed": seed, "arm": arm, "test_top1": top1 + 0.01 * seed * len(arm), "test_loss": 0.5}
        for seed in seeds
        for arm, top1 in arms.items()
    ]
    e3 = [
        {"seed": seed, "baseline": kind, "rule": rule, "test_loss": 0.5, "teachers": [5.0, 1.25]}
        | {"test_top1": 80 + (rule == "all") + 0.1 * seed * (rule == "code") - 0.2 * (seed % 2)}
        for seed in seeds
        for kind in ("fitted", "unfitted")
        for rule in TEACHER_RULES
    ]
    e1 = [
        {"seed": seed, "rate": rate, "rule": rule, "val_loss": 0.1, "before_test_top1": 50.0}
        | {"test_top1": 70 - 40 * (rule == "everywhere") - seed * rate, "test_loss": 1.0}
        for seed in range(3)
        for rate in (0.5, 0.3)
        for rule in plans.RULES
    ]
    pairs = {pair: {"same": 0.5, "tau": 0.9, "steps": 40} for pair in page.PAIRS}
    e4 = [
        {"seed": seed, "condition": condition, "start": {"val_loss": 0.1}}
        | {"agreement": pairs | {"none/ensemble": {"same": same - 0.01 * seed, "tau": 0.99}}}
        for seed in range(3)
        for condition, same in zip(page.CONDITIONS, (0.97, 0.5, 0.9), strict=True)
    ]
    rng = np.random.default_rng(0)
    networks = [
        {"step": number % 12, "val_loss": 0.1 + 0.001 * number, "flops_rate": 0.45}
        | {"condition_number": value, "lambda_max": 1.0, "trace": -value, "test_loss": value + 1}
        for number, value in enumerate(rng.random(24).tolist())
    ]
    e6 = [
        {
            "seed": seed,
            "baseline": kind,
            "baseline_top1": 90.0,
            "test_top1": 88 - top1,
            "test_loss": 1,
        }
        for seed in range(3)
        for kind, top1 in (("alone", 0.1 * seed), ("byol", 0.0))
    ]
    runs = {"E1": e1, "E2": e2, "E3": e3, "E4": e4, "E5": [{"seed": 0, "networks": networks}]}
    runs["E6"] = e6
    runs["E7"] = [
        {"seed": seed, "teacher": teacher, "searched_top1": 60.0, "test_loss": 0.5}
        | {"test_top1": 80.0 + (teacher == "ensemble") + 0.1 * (seed % 2)}
        for seed in range(6)
        for teacher in plans.TEACHERS
    ]
    found = {name: {"machines": ["CPU, 2 cores"], "runs": rows} for name, rows in runs.items()}
    return {"setting": dataclasses.asdict(plans.FULL), "experiments": found}


def test_the_page_says_what_the_figures_say():
    text = page.page(results())
    assert "{" not in text and "Not measured." not in text
    assert "ResNet-20 on CIFAR-10, 45 % of the FLOPs left; baselines of 20 epochs" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    said = {
        "Kernels keep": "contradicted",
        "Fine-tuning with the memory bank": "shown",
        "The teachers do that": "shown",
        "An ensemble teaches": "shown",
        "Teachers worse than the student": "contradicted",
        "The printed test": "contradicted",
        "A smoother sub-network": "shown",
        "What a search with the ensemble leaves": "shown",
        "A network that learnt from a teacher": "not shown",
        "ResNet-56 on CIFAR-10 has": "not measured",
        "ResNet-18": "not testable here",
    }
    for begin, word in said.items():
        line = next(line for name, line in lines.items() if name.startswith(begin))
        assert f"| **{word}** |" in line, line
    changes = [line for name, line in lines.items() if name.startswith("The teacher changes")]
    assert [line.split("**")[1] for line in changes] == ["contradicted", "shown", "not shown"]
    assert "n = 6" in next(line for name, line in lines.items() if name.startswith("The teachers"))
    assert "5.00 → 1.25" in text and "24 sub-networks that left their search at 12" in text
    assert "λ_max | not measured" in text  # constant


def test_a_page_without_results_says_so():
    text = page.page({})
    assert text.count("Not measured.") == 7 and "{" not in text
    assert "**shown**" not in text.split("Figures are")[0]
    parts = results()
    del parts["experiments"]["E3"]
    assert page.page(parts).count("Not measured.") == 1


def test_docs_claims_is_what_the_result_file_says():
    file = page.ROOT / page.FILE
    found = json.loads(file.read_text()) if file.exists() else {}
    smoothness = json.loads(page.SMOOTHNESS.read_text())
    assert page.page(found, smoothness) == page.PAGE.read_text(encoding="utf-8")
    assert "The unpruned ResNet-56 has 0.0388, more than" in page.of_unpruned(smoothness)
