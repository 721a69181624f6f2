"""Limits of a search: excluded layers, least widths, and an end by loss of metric."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from ekg_tf.dataloader import load
from ekg_tf.nets.gates import Gate, Group
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.options.budgets import Flops
from ekg_tf.options.control import Control
from ekg_tf.options.scored import Scored
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.history import History
from ekg_tf.pruning.methods.by_name import SEARCHES, smallest_mask
from ekg_tf.pruning.methods.scored import search
from ekg_tf.pruning.methods.stagewise import PRECISION
from ekg_tf.pruning.space.candidates import OVERSHOOT, lowest_mask, removable
from ekg_tf.pruning.space.limits import announcement, excluded, least_widths, lowest_width
from ekg_tf.pruning.space.width_grid import grid
from ekg_tf.pruning.worth.drop import Drop, Figure, drop_from, figure_of, values_of
from ekg_tf.pruning.worth.rewards import Reward
from ekg_tf.training.evaluation import make_forward
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras
from ekg_tf.utils.runfolder import RunFolder

import ekg_tf as ekg
from ekg_tf.__main__ import console
from tests.helpers.networks import images_for, residual, shaken
from tests.helpers.options import search_options
from tests.helpers.tasks import Case, regression, series, two_ends

EXAMPLES = 40
L = keras.layers
SUPERNETS = {
    "swp": {"width_steps": 5, "population": 6, "generations": 2},
    "autoslim": {"width_steps": 5},
}


@pytest.fixture(scope="module")
def graph():
    keras.utils.set_random_seed(0)
    model = shaken(cifar_resnet(8, 5, (8, 8, 3)))
    outputs = make_forward(model, bn="batch")(images_for(model, EXAMPLES))
    model.layers[-1].bias.assign_sub(np.mean(outputs, 0))  # no class is the usual answer
    return ChannelGraph(model)


@pytest.fixture(scope="module")
def val(graph):
    """What the network itself says, but for every eighth example: it is right in 87.5 %."""
    images = images_for(graph.model, EXAMPLES)
    labels = np.argmax(make_forward(graph.model, bn="batch")(images), -1).astype(np.int32)
    labels[::8] = (labels[::8] + 1) % 5
    return Validation(images, labels, EXAMPLES)


def started(graph, val, folder, method, *, drop=None, rate=0.5, **options):
    """A search that has not been run."""
    options = {"score": "l1"} | SUPERNETS.get(method, {}) | options
    options |= {"max_drop": drop.most} if drop else {}
    settings = search_options(rate, method=method, **options)
    history = History(folder, [(EXAMPLES, 5)])
    return SEARCHES[method](graph, val, history, settings, classification(), drop=drop)


# ---------------------------------------------------------------- which groups, how wide


def test_a_layer_excludes_the_group_whose_channels_it_gives():
    graph = ChannelGraph(residual())  # the third: with a2 and b2
    assert [group.layers[0] for group in graph.groups] == ["stem", "a1", "shortcut", "b1"]
    assert excluded(graph, ("b2",)) == {2: ["b2"]}
    assert excluded(graph, ("a?", "stem_bn")) == {0: ["stem_bn"], 1: ["a1"], 2: ["a2"]}
    assert excluded(graph, ("fc",)) == {}  # never pruned anyway
    assert least_widths(graph, Control(("b2",))) == [1, 1, 6, 1]
    assert announcement(graph, Control(("a2", "b2"))) == [
        "excluded: a2, b2; the group of shortcut, shared by 3 layers, keeps its 6 filters"
    ]
    with pytest.raises(UserError, match=r"'stam\*' matches none of .* did you mean stem"):
        excluded(graph, ("b1", "stam*"))
    with pytest.raises(UserError, match="'' matches none of"):
        excluded(graph, ("",))


def test_least_widths_by_hand():
    graph = ChannelGraph(residual())  # 4, 5, 6 and 7 channels
    assert least_widths(graph, Control(min_width=5)) == [4, 5, 5, 5]
    assert least_widths(graph, Control(min_share=0.5)) == [2, 3, 3, 4]
    assert least_widths(graph, Control(min_width=3, min_share=0.5)) == [3, 3, 3, 4]
    assert Control(min_share=0.3).min_share * 10 <= 3  # rounding: 3 of 10, not 4
    ten = Gate(Group(0, 10, ("x",)))
    assert least_widths(_One(ten.group), Control(min_share=0.3)) == [3]
    cases = [(64, 10, 1, 10), (64, 10, 8, 16), (20, 17, 8, 20), (6, 1, 8, 6), (64, 1, 4, 4)]
    assert all(lowest_width(*case[:3]) == case[3] for case in cases)
    assert lowest_mask(graph, 1, [2, 5, 6, 1]).sum() == 2 + 5 + 6 + 1 + 1
    gate = Gate(Group(0, 16, ("x",)), 11)
    assert removable(gate, 9, 1) == [1, 2, 3, 4, 5] and removable(gate, 9, 4) == [4]
    gate.width = 11
    assert removable(gate, 3, 1) == []
    assert grid(16, 5, least=9) == [9, 10, 13, 16] and grid(16, 5, 4, 9) == [12, 16]


class _One:
    """A graph of one group, as far as widths go."""

    def __init__(self, group):
        self.groups = (group,)


# ---------------------------------------------------------------- an end by loss of metric


def limit(most=0.5):
    return Drop("top-1 %", True, 87.5, most)


def next_is_worse(running):
    """Whether the step behind the end would have lost more than is allowed."""
    drop, running.drop = running.drop, replace(running.drop, most=0.99)
    row = running._step()
    return row is not None and drop.exceeded(row["watched"])


@keras.saving.register_keras_serializable("test_control")
class Pair(L.Layer):
    """A layer of one's own, made of two."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.second = L.Conv2D(4, 3, name="first"), L.Conv2D(5, 3, name="second")

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        (("base",), {4, 5, 6}),  # a model in the network, with a layer of layers in it
        (("base/pair",), {4, 5}),
        (("base/pair/second",), {5}),
        (("*/second", "last"), {5, 7}),
        (("first",), {4}),  # the name in the table of `inspect`
    ],
)
def test_models_and_layers_within_are_excluded_by_their_names(exclude, kept):
    base = keras.Sequential([L.Input((12, 12, 3)), Pair(name="pair"), L.Conv2D(6, 3)], name="base")
    image = keras.Input((12, 12, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(7, 3, name="last")(base(image)))
    found = ekg.inspect(keras.Model(image, L.Dense(2)(x)), exclude=exclude).groups
    assert {one["width"] for one in found if one["width"] > 2 and not one["prunable"]} == kept


LIMITS = {"exclude": ("conv", "*1.0_conv1"), "min_width": 7, "min_share": 0.4}


@pytest.mark.parametrize("method", SEARCHES)
def test_every_method_keeps_to_the_limits(tmp_path, graph, val, method):
    with RunFolder.open(tmp_path, {}) as folder:
        running = started(graph, val, folder, method, rate=0.7, **LIMITS)
        running.run()
    last = running.history.rows[-1]
    lowest = graph.flops(smallest_mask(graph, running.options)) / graph.flops()
    assert lowest < last["rate"] <= 0.7
    least, full = least_widths(graph, Control(**LIMITS)), [one.channels for one in graph.groups]
    assert all(kept >= bound for kept, bound in zip(last["widths"], least, strict=True))
    assert [bound for bound, had in zip(least, full, strict=True) if bound == had] == [16, 32]
    assert sum(last["widths"]) < sum(full)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_ends_before_too_much_is_lost(tmp_path, graph, val, method):
    drop = limit()
    with RunFolder.open(tmp_path, {}) as folder:
        running = started(graph, val, folder, method, drop=drop, rate=None)
        running.run()
        rows = running.history.rows
        assert len(rows) > 1 and Drop(**rows[0]["drop"]) == drop and rows[-1]["rate"] < 0.99
        assert all(row["watched"] == row["val_accuracy"] >= drop.limit for row in rows)
        mask = running.history.mask(graph, len(rows) - 1)
        again = started(graph, val, folder, method, drop=drop, rate=None)
        again.run()  # a run that was killed behind its search: nothing is added
        assert again.history.rows == rows
        if method == "swp":
            widths, _ = running._combined((rows[-1]["rate"] - 2 * PRECISION) * graph.flops())
            worse = running.rater.outputs(running.grid.mask_of_widths(widths))
            assert running._too_bad(worse)
        elif method in ("uniform", "global"):
            running.gates.set_mask(graph.open_mask())
            assert next_on_the_way_is_worse(running, mask)
        else:
            assert next_is_worse(running)


def next_on_the_way_is_worse(running, mask):
    """Of a one-shot search: the way's next network differs in one group and is worse."""
    ways = []
    running._allowed = lambda way: ways.append(way) or (0, 0)
    assert running._step() is None
    (way,) = ways
    low, high = 0, way.last  # the last place of this mask
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (way.mask(middle) >= mask).all() else (low, middle)
    np.testing.assert_array_equal(way.mask(low), mask)
    follows = way.mask(high)
    assert (follows <= mask).all()
    changed = [gate for gate in running.gates if (follows != mask)[gate.units].any()]
    (outputs,) = running.evaluator.current.evaluate([follows])
    return len(changed) == 1 and running._too_bad(outputs)


@pytest.mark.parametrize("method", ["swp", "global"])
def test_a_search_that_may_lose_everything_ends_with_the_smallest_network(
    tmp_path, graph, val, method
):
    with RunFolder.open(tmp_path, {}) as folder:
        running = started(graph, val, folder, method, drop=limit(0.9999), rate=None, **LIMITS)
        running._too_bad = lambda outputs: False
        running.run()
    smallest = graph.flops(smallest_mask(graph, running.options)) / graph.flops()
    assert smallest <= running.history.rows[-1]["rate"] < smallest + OVERSHOOT


@pytest.mark.parametrize("method", ["ekg", "uniform"])
def test_what_comes_first_ends_the_search(tmp_path, graph, val, method):
    for name, rate, most in (("rate", 0.9, 0.9), ("drop", 0.02, 0.5)):
        with RunFolder.open(tmp_path / name, {}) as folder:
            running = started(graph, val, folder, method, drop=limit(most), rate=rate)
            running.run()
        last = running.history.rows[-1]
        assert (last["rate"] <= rate) == (name == "rate")
        assert last["watched"] >= limit(most).limit


@pytest.mark.parametrize("choice", ["reward", "price"])
def test_a_drop_ends_the_search_where_the_least_loss_is_too_much(tmp_path, graph, val, choice):
    with RunFolder.open(tmp_path, {}) as folder:
        running = started(graph, val, folder, "ekg", drop=limit(), rate=None, choice=choice)
        running.run()
        reward = Reward(classification(), val, running.knowledge.outputs)
        proposals = running.candidates.screened(running._proposals(running._ranked(reward)))
        assert any(one.weight != 1 for one in proposals) == (choice == "price")
        plain = [replace(one, weight=1.0) for one in proposals]
        assert running._too_bad(running.evaluator.best(plain, reward).outputs)


def test_a_killed_search_with_a_drop_ends_with_the_same_network(tmp_path, graph, val):
    found = []
    for name in ("whole", "killed"):
        with RunFolder.open(tmp_path / name, {}) as folder:
            running = started(graph, val, folder, "ekg", drop=limit(), rate=None)
            running.run()
            if name == "killed":
                folder.truncate("history.jsonl", 2)
                running = started(graph, val, folder, "ekg", drop=limit(), rate=None)
                running.run()
        found.append([row | {"seconds": 0} for row in running.history.rows])
    assert found[0] == found[1] and len(found[0]) > 2


@pytest.mark.parametrize("method", ["ekg", "global"])
def test_nothing_allowed_is_said(tmp_path, graph, val, method):
    with RunFolder.open(tmp_path, {}) as folder:
        running = started(graph, val, folder, method, drop=limit(), rate=None)
        running._too_bad = lambda outputs: bool(running.history.rows)
        with pytest.raises(UserError, match=r"no step stays within max_drop: D_val top-1 %: 87\.5"):
            running.run()


def test_a_start_that_is_too_bad_is_said(tmp_path, graph, val):
    with (
        RunFolder.open(tmp_path, {}) as folder,
        pytest.raises(UserError, match="is worse than max_drop allows before anything is removed"),
    ):
        started(graph, val, folder, "ekg", drop=Drop("top-1 %", True, 99.0, 0.01)).run()


# ---------------------------------------------------------------- which figure, which share


def test_a_drop_is_a_share_of_the_given_figure():
    drop = drop_from(Figure("top-1 %", 93.0, True), 0.01)
    assert drop.limit == pytest.approx(92.07) and not drop.exceeded(92.07)
    assert drop.exceeded(92.06) and drop.exceeded(float("nan")) and not drop.exceeded(95)
    loss = drop_from(Figure("loss", 0.5, False), 0.1)
    assert loss.limit == pytest.approx(0.55) and loss.exceeded(0.56) and not loss.exceeded(0.1)
    below = drop_from(Figure("loss", -50.0, False), 0.1)  # a loss of one's own, below zero
    assert below.limit == -45 and below.exceeded(-44) and not below.exceeded(-46)
    assert str(loss) == "D_val loss: 0.5000 as given, at most 0.5500 (max_drop 0.1)"
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="max_drop is a share of the given network's loss"):
            drop_from(Figure("loss", value, False), 0.1)


def measured_series():
    model = series()
    model.compile("sgd", loss="mae", metrics=[spread, "mse", keras.metrics.CosineSimilarity()])
    return model


def spread(targets, outputs):
    """A metric of one's own: nobody knows whether larger is better."""
    return keras.ops.max(outputs) - keras.ops.min(outputs)


def measured_ends():
    model = two_ends()
    model.compile(
        "sgd",
        loss=["sparse_categorical_crossentropy", "mse"],
        metrics={"kind": "accuracy", "size": "mae"},
    )
    return model


@pytest.mark.parametrize(
    ("build", "name", "larger"),
    [
        (measured_series, "mse", False),
        (measured_ends, "kind_accuracy", True),
        (series, "loss", False),
        (regression, "loss", False),
    ],
)
def test_other_tasks_have_their_first_metric_of_a_known_direction_or_the_loss(build, name, larger):
    case = Case(build)
    outputs = case.graph.model(case.val.inputs)
    outputs = keras.tree.map_structure(np.asarray, outputs)
    figure = figure_of(
        case.task, case.val, tuple(outputs) if isinstance(outputs, list) else outputs
    )
    assert (figure.name, figure.larger) == (name, larger)
    if name == "mse":
        expected = np.mean((outputs - case.val.targets) ** 2)
        assert figure.value == pytest.approx(expected, rel=1e-4)
        assert list(values_of(case.task, case.val, outputs)) == [
            "spread",
            "mse",
            "cosine_similarity",
        ]


# ---------------------------------------------------------------- a score of one's own


def plain():
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, activation="relu", name="first")(image)
    x = L.Conv2D(8, 3, activation="relu", name="second")(x)
    return keras.Model(image, L.Dense(2, name="end")(L.GlobalAveragePooling2D()(x)))


def scored(path, control, budget=None):
    """A search by how much of the kernels is left."""
    given = Given.read(plain())
    graph = ChannelGraph(given.core)
    options = Scored(budget or Flops(), Control(**control), step=0.4)

    def score(network):
        return sum(float(np.abs(one).sum()) for one in network.get_weights() if one.ndim > 1)

    with RunFolder.open(path, {"do_log": False}) as folder:
        running = search(graph, given.finished, score, options, folder)
        rows, left = list(running.history.rows), None
        if running.drop:
            running.drop = replace(running.drop, most=0.99)
            left = running._step()
        return rows, left


def test_a_search_by_ones_own_score_keeps_to_limits_and_to_the_drop(tmp_path, capsys):
    rows, following = scored(tmp_path / "a", {"exclude": "first", "max_drop": 0.6})
    assert (
        rows[-1]["widths"][0] == 6 and "the group of first keeps its 6" in capsys.readouterr().out
    )
    floor = 0.4 * rows[0]["score"]
    assert rows[-1]["score"] >= floor > following["score"] and len(rows) > 1
    rows, _ = scored(tmp_path / "b", {"min_width": 5}, Flops(0.7))
    assert min(rows[-1]["widths"]) >= 5 and rows[-1]["rate"] <= 0.7
    with pytest.raises(UserError, match="with the least widths that exclude, min_width and"):
        scored(tmp_path / "c", {"min_width": 4}, Flops(0.1))
    with pytest.raises(UserError, match=r"leave all 2 groups of .* whole: nothing can be pruned"):
        scored(tmp_path / "d", {"exclude": "*"})


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def digits():
    data = load("DIGITS")
    return [(split.inputs / np.float32(16), split.targets) for split in (data.train, data.test)]


@pytest.fixture(scope="module")
def trained(digits):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(8, 3, activation="relu", name="first")(image)
    x = L.Conv2D(10, 3, activation="relu", name="second")(x)
    x = L.Conv2D(12, 3, activation="relu", name="third")(x)
    model = keras.Model(image, L.Dense(10, activation="softmax", name="end")(L.Flatten()(x)))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*digits[0], epochs=3, batch_size=64, verbose=0)
    return model


QUICK = {
    "finetune": ekg.Plain(),
    "training": ekg.Training(epochs=1),
    "data": ekg.Data(flip=False, crop=0),
    "sampling": ekg.Sampling(val_per_class=10),
    "log": False,
}


def test_a_run_keeps_to_its_limits_up_to_the_file(trained, digits, tmp_path, capsys):
    settings = QUICK | {"exclude": "sec*", "min_width": 3, "max_drop": 0.2}
    settings["method"] = ekg.EKG(step=0.4, score="l1")
    folder = tmp_path / "run"
    result = ekg.prune(trained, *digits, folder, **settings)
    printed = capsys.readouterr().out
    assert "excluded: second; the group of second keeps its 10 filters" in printed
    assert "search: until 20 % of the metric on D_val are lost" in printed
    given = keras.models.load_model(folder / "pruned.keras", compile=False)
    assert {type(layer).__module__.split(".")[0] for layer in given.layers} == {"keras"}
    widths = [given.get_layer(name).filters for name in ("first", "second", "third")]
    assert widths[1] == 10 and min(widths) >= 3 and sum(widths) < 30
    assert result.after["flops"] < result.before["flops"]
    drop = json.loads((folder / "search.json").read_text())["drop"]
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert all(row["val_accuracy"] >= 0.8 * drop["given"] for row in rows)
    assert drop["after"] == rows[-1]["watched"] and drop["ended_by"] == "max_drop"
    assert f"top-1 % {drop['given']:.4f} as given -> {drop['after']:.4f} on D_val" in printed
    with pytest.raises(UserError, match=r"other arguments \(exclude: \['sec\*'\] -> \['first'\]\)"):
        ekg.prune(trained, *digits, folder, **(settings | {"exclude": "first"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": "frist"}, "exclude 'frist' matches none of the network's .* mean first"),
        ({"exclude": ["*"]}, "leave all 3 groups of .* whole: nothing can be pruned"),
        ({"budget": 0.01, "exclude": "second"}, r"0\.01 can't be reached: with the least widths"),
        ({"budget": 0.2, "min_share": 0.9, "method": ekg.FFP()}, r"0\.2 can't be reached: with th"),
        ({"budget": 0.2, "min_width": 9, "method": ekg.SWP()}, "with the narrowest widths of the"),
        ({"max_drop": 1.0}, "max_drop=1.0.* not strictly between 0 and 1"),
        ({"min_width": 0}, "min_width=0.* 0 is not at least 1"),
        ({"min_share": 1.0}, "min_share=1.0.* 1 is not below 1"),
        ({"exclude": [3]}, "3 is not a text"),
        ({"max_drop": 0.1, "budget": ekg.Latency(), "method": ekg.Uniform()}, "measured latency"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(trained, digits, tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        ekg.prune(trained, *digits, tmp_path / "run", **(QUICK | settings))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_mistake_at_the_command_line_is_one_line_and_leaves_no_folder(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_keras(tmp_path / "net.keras", trained)
    words = "prune --model net.keras --dataset DIGITS --train_path run --gpu_id cpu --exclude secnd"
    monkeypatch.setattr("sys.argv", ["ekg-tf", *words.split()])
    with pytest.raises(SystemExit) as stop:
        console()
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert "did you mean second" in error and error.count("\n") == 1
