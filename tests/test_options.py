"""Settings and their flags: one check, two spellings; defaults by data set."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ekg_tf.cli import choices, flags, manners
from ekg_tf.options import recipes
from ekg_tf.options.bank import Bank
from ekg_tf.options.budgets import BUDGETS, Flops, Latency
from ekg_tf.options.control import Control
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.fields import settings_of
from ekg_tf.options.finetuning import (
    FINETUNINGS,
    Contrastive,
    Ensemble,
    Hinton,
    Plain,
    Single,
)
from ekg_tf.options.methods import EKG, FFP, METHODS, SWP, AutoSlim, Uniform
from ekg_tf.options.scored import Scored
from ekg_tf.options.search import SearchOptions
from ekg_tf.options.training import Baseline, Training
from ekg_tf.utils.errors import UserError

from ekg_tf import train_cifar

GROUPS = (
    *(Bank, *BUDGETS.values(), Control, Data, Sampling, *METHODS.values()),
    *(*FINETUNINGS, Training, Baseline),
)
SETTINGS = [
    pytest.param(kind, one, id=f"{kind.__name__}.{one.name}")
    for kind in GROUPS
    for one in settings_of(kind)
    if one.flag
]


def parser_of(kind):
    parser = manners.Parser()
    flags.add_settings(parser, kind)
    return parser


def other_value(one):
    """A value that a setting takes and that isn't its default."""
    if one.kind is bool:
        return not one.default
    if one.choices:
        return next(value for value in one.choices if value != one.default)
    if one.kind is int:
        return max(one.least or 0, 2) + 5
    if one.kind is str:
        return ("stem*", "head") if one.many else "something"
    value = 0.75 if one.below == 1 else 1.5
    pair = (value, value + 0.125)
    return (pair[::-1] if one.spaced else pair) if one.many else value


def wrong_values(one):
    """Values of the right type that a setting refuses."""
    if one.choices:
        return [one.kind(7) if one.kind is int else "magic"]
    found = [one.kind(one.least - 1)] if one.least is not None else []
    found += [one.kind(bound) for bound in (one.above, one.below) if bound is not None]
    found += [float("nan"), float("inf")] if one.kind is float else []
    wrong = [(value,) for value in found] if one.many else found
    return [*wrong, (0.6, 0.3), (0.3, 0.3)] if one.rising else wrong


def words(one, value):
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        texts = [part if isinstance(part, str) else repr(part) for part in value]
        return [f"--{one.flag}", *(texts if one.spaced else [",".join(texts)])]
    return [f"--{one.flag}={('off', 'on')[value] if isinstance(value, bool) else value}"]


# ---------------------------------------------------------------- every setting


@pytest.mark.parametrize(("kind", "one"), SETTINGS)
def test_a_flag_gives_the_same_options_as_the_field(kind, one):
    value = other_value(one)
    expected = kind(**{one.name: value})
    assert getattr(expected, one.name) == value != one.default
    assert choices.made(kind, parser_of(kind).parse_args(words(one, value))) == expected
    assert choices.made(kind, parser_of(kind).parse_args([])) == kind()


@pytest.mark.parametrize(("kind", "one"), SETTINGS)
def test_the_whole_pipeline_has_the_flag_and_explains_it_with_its_default(kind, one):
    parser = train_cifar.parser()
    if kind is Data:
        flags.add_own_data(parser)
    (action,) = (action for action in parser._actions if f"--{one.flag}" in action.option_strings)
    explanation, _, default = action.help.partition("; default: ")
    assert len(explanation) > 3 and default
    if one.shown is None and one.default is not None and not one.many:
        default_in_words = {True: "on", False: "off"}.get(one.default, str(one.default))
        assert default == (default_in_words if isinstance(one.default, bool) else str(one.default))


WRONG = [
    pytest.param(*setting.values, value, id=f"{setting.id}={value}")
    for setting in SETTINGS
    for value in wrong_values(setting.values[1])
]


@pytest.mark.parametrize(("kind", "one", "value"), WRONG)
def test_a_wrong_value_is_refused_for_the_same_reason_in_both_spellings(kind, one, value, capsys):
    with pytest.raises(UserError) as error:
        kind(**{one.name: value})
    called = f"{kind.__name__}({one.name}={value!r}): "
    assert str(error.value).startswith(called)
    with pytest.raises(SystemExit) as stop:
        parser_of(kind).parse_args(words(one, value))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: argument --{one.flag}: ") and said.count("\n") == 1
    if not one.choices:  # argparse names these in its own words
        reason = str(error.value).removeprefix(called).replace(repr(value), repr(_text(value)))
        assert reason in said


def _text(value):
    return ",".join(map(repr, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("kind", "one"), SETTINGS)
def test_another_type_is_refused(kind, one):
    wrong = [object(), b"1", [[1]]]
    wrong += [] if one.kind is bool else [True]
    wrong += [] if one.kind is str or one.words else ["1"]
    wrong += [] if one.kind is float else [1.5]
    wrong += [] if one.optional else [None]
    for value in wrong:
        with pytest.raises(UserError):
            kind(**{one.name: value})


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_what_a_run_folder_keeps_says_everything(kind):
    kept = kind().flags()
    spelled = [one for one in settings_of(kind) if one.flag]
    assert {one.flag for one in spelled} <= kept.keys()
    changed = kind(**{one.name: other_value(one) for one in spelled})
    for one in spelled:
        assert changed.flags()[one.flag] == other_value(one) != kept[one.flag]
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.anything = 1


# ---------------------------------------------------------------- what Python users write


def test_numbers_of_numpy_and_lists_are_taken_as_pythons_own():
    method = EKG(step=np.float32(0.5), cache_mb=np.int64(7))
    assert type(method.step) is float and type(method.cache_mb) is int
    assert type(Flops(0.5, round_to=np.int64(4)).round_to) is int
    budget = Flops(0.5, keep=[0.6, np.float64(0.8), 0.6])
    assert budget.keep == (0.8, 0.6) and {type(one) for one in budget.keep} == {float}
    assert Data(mean=[1, 2, 3]).mean == (1.0, 2.0, 3.0)
    assert type(Training(learning_rate=1).learning_rate) is float


def test_a_word_stands_for_a_number_where_it_is_known():
    assert SWP(stages="auto").stages == "auto" and SWP(stages=3).stages == 3
    for value, reason in (("all", "'all' is not a whole number"), (0, "0 is not at least 1")):
        with pytest.raises(UserError, match=reason):
            SWP(stages=value)


@pytest.mark.parametrize("text", ["0.3,0.6,0.8", "[0.3, 0.6, 0.8]", "(0.3 0.6 0.8)"])
def test_fractions_come_in_several_spellings(text):
    args = parser_of(Training).parse_args(["--decay_points", text])
    assert choices.made(Training, args).decay_points == (0.3, 0.6, 0.8)


# ---------------------------------------------------------------- groups of settings


def parsed(line):
    parser = manners.Parser()
    flags.add_search(parser)
    flags.add_finetune(parser)
    return parser.parse_args(line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", SearchOptions()),
        ("--search_target_rate 0.3 --search_step 0.5", SearchOptions(Flops(0.3), EKG(step=0.5))),
        ("--budgets 0.7 0.6", SearchOptions(Flops(0.6, keep=(0.7, 0.6)))),
        ("--budget latency --latency_batch 8", SearchOptions(Latency(batch=8))),
        ("--method ffp --score l1", SearchOptions(method=FFP(score="l1"))),
        ("--method ffp --search_teacher none", SearchOptions(method=FFP())),
        ("--method swp --swp_stages auto", SearchOptions(method=SWP())),
        ("--method autoslim --supernet_epoch 3", SearchOptions(method=AutoSlim(epochs=3))),
        ("--val_per_class 5", SearchOptions(sampling=Sampling(val_per_class=5))),
        ("--exclude stem* head", SearchOptions(control=Control(exclude=("stem*", "head")))),
        ("--max_drop 0.01", SearchOptions(Flops(), control=Control(max_drop=0.01))),
        (
            "--max_drop 0.01 --search_target_rate 0.3 --min_width 8",
            SearchOptions(Flops(0.3), control=Control(min_width=8, max_drop=0.01)),
        ),
    ],
)
def test_flags_of_a_search(line, expected):
    assert choices.search_of(parsed(line)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Ensemble()),
        ("--finetune_teacher single --temperature 3", Single(temperature=3)),
        ("--finetune_teacher none --from_scratch on", Plain(from_scratch=True)),
        ("--finetune_teacher none --views 2", Plain(views=2)),
        ("--teacher_rule code --views 1", Ensemble(rule="code", views=1)),
        ("--finetune_method ckt --ckt pull", Contrastive(loss="pull")),
        ("--finetune_method kd --kd_alpha 0.5", Hinton(alpha=0.5)),
        ("--finetune_method plain --finetune_teacher none", Plain()),
    ],
)
def test_flags_of_a_fine_tuning(line, expected):
    assert choices.finetuning_of(parsed(line)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--method uniform --search_step 0.5", "--search_step is for --method ekg or ffp, uniform"),
        ("--method ffp --search_teacher single", "--search_teacher is for --method ekg, ffp has"),
        ("--method ekg --swp_stages 2", "--swp_stages is for --method swp, ekg has none"),
        ("--method uniform --cache_mb 9", "is for --method ekg or ffp or swp or autoslim, uniform"),
        ("--latency_batch 8", "--latency_batch is for --budget latency, flops has none"),
        ("--budgets 0.4 --search_target_rate 0.5", "--budgets 0.4 lies below --search_target_rate"),
    ],
)
def test_what_a_search_lacks_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        choices.search_of(parsed(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--finetune_method kd --finetune_teacher single", "--finetune_teacher belongs to"),
        ("--ckt pull", "--ckt belongs to --finetune_method ckt, not ekg"),
        ("--finetune_method plain --temperature 2", "belongs to --finetune_method ekg or kd, not"),
        ("--finetune_teacher none --temperature 2", "not ekg without a teacher"),
        ("--finetune_method kd --teacher_rule all", "--teacher_rule belongs to"),
    ],
)
def test_what_a_fine_tuning_lacks_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        choices.finetuning_of(parsed(line))


def test_what_a_method_lacks_is_refused_from_python_too():
    for kind, name in ((Uniform, "step"), (FFP, "teacher"), (Plain, "temperature")):
        with pytest.raises(TypeError, match=name):
            kind(**{name: 1})
    with pytest.raises(TypeError, match="batch"):
        Flops(batch=8)
    with pytest.raises(UserError, match=r"the rate 0\.4 to keep on the way lies below 0\.5"):
        Flops(0.5, keep=(0.4,))


def test_a_budget_has_a_rate_unless_something_else_ends_the_search():
    assert SearchOptions().budget == Flops(0.5) and SearchOptions(Flops(round_to=4)).budget.rate
    alone = SearchOptions(Latency(), control=Control(max_drop=0.02))
    assert alone.budget == Latency() and alone.budget.rate is None and alone.budget.goal == 0
    assert alone.flags()["search_target_rate"] is None and alone.flags()["max_drop"] == 0.02
    assert Scored(control=Control(max_drop=0.1)).budget == Flops() != Scored().budget == Flops(0.5)
    with pytest.raises(UserError, match=r"the rate 0\.4 to keep on the way lies below 0\.5"):
        SearchOptions(Flops(keep=(0.4,)))
    assert SearchOptions(Flops(keep=(0.4,)), control=Control(max_drop=0.1)).budget.keep == (0.4,)
    assert Control("stem*") == Control(["stem*"])


# ---------------------------------------------------------------- defaults by data set


def facts(name, num_classes=10, subset_per_class=100, val_per_class=20, augments=True):
    return SimpleNamespace(
        name=name,
        num_classes=num_classes,
        subset_per_class=subset_per_class,
        val_per_class=val_per_class,
        augments=augments,
    )


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "weight_decay", "baseline_epochs"),
    [
        ("CIFAR10", 100, 128, 5e-4, 200),
        ("CIFAR100", 100, 128, 5e-4, 200),
        ("DIGITS", 20, 64, 5e-4, 40),
        ("own", 20, 64, 5e-4, 200),
        ("ImageNet", 50, 256, 1e-4, 100),
    ],
)
def test_trainings_by_data_set(name, epochs, batch_size, weight_decay, baseline_epochs):
    tuned = recipes.training(Training(seed=3), facts(name))
    assert (tuned.epochs, tuned.batch_size, tuned.weight_decay) == (
        epochs,
        batch_size,
        weight_decay,
    )
    assert (tuned.learning_rate, tuned.decay_points, tuned.decay_rate, tuned.seed) == (
        0.01,
        (0.3, 0.6, 0.8),
        0.2,
        3,
    )
    trained = recipes.baseline(Baseline(), tuned, facts(name))
    assert (trained.epochs, trained.learning_rate) == (baseline_epochs, 0.1)
    imagenet = ((0.3, 0.6, 0.9), 0.1), ((0.3, 0.6, 0.8), 0.2)
    assert (trained.decay_points, trained.decay_rate) == imagenet[name != "ImageNet"]
    assert (trained.batch_size, trained.weight_decay, trained.seed) == (batch_size, weight_decay, 3)


@pytest.mark.parametrize("name", ["own", "ImageNet"])
def test_lamb_where_it_is_needed_unless_sgd_is_said(name):
    at = facts(name)
    sgd, lamb = (recipes.training(Training(), at, lamb=one) for one in (False, True))
    assert sgd.optimizer == "sgd" and sgd.weight_decay > 0
    assert lamb == replace(sgd, optimizer="lamb", weight_decay=0.0)
    assert recipes.training(Training(optimizer="sgd"), at, lamb=True) == sgd
    assert recipes.training(Training(optimizer="lamb"), at) == lamb
    rate = recipes.training(Training(learning_rate=0.02, weight_decay=1e-4), at, lamb=True)
    assert (rate.optimizer, rate.learning_rate, rate.weight_decay) == ("lamb", 0.02, 1e-4)
    assert recipes.baseline(Baseline(), lamb, at).optimizer == "sgd"
    by_sgd = recipes.baseline(Baseline(), Training(), at)
    assert recipes.baseline(Baseline(), Training(optimizer="lamb"), at) == by_sgd
    assert by_sgd.weight_decay == sgd.weight_decay  # a fine-tuning by LAMB doesn't take it away


def test_learning_rates_grow_with_the_batch_on_imagenet_alone():
    given = Training(batch_size=64)
    assert recipes.training(given, facts("ImageNet")).learning_rate == pytest.approx(0.0025)
    assert recipes.training(given, facts("CIFAR10")).learning_rate == 0.01
    tuned = recipes.training(given, facts("ImageNet"))
    trained = recipes.baseline(Baseline(), tuned, facts("ImageNet"))
    assert trained.learning_rate == pytest.approx(0.025)
    method = recipes.method(SWP(batch_size=64), facts("ImageNet"))
    assert (method.epochs, method.learning_rate) == (20, pytest.approx(0.005))


def test_what_is_given_stays():
    given = Training(1, 0.5, 2, 0.25, "cosine", optimizer="sgd")
    assert recipes.training(given, facts("ImageNet")) == given
    baseline = Baseline(3, 0.75, (0.5,), 0.5)
    trained = recipes.baseline(baseline, given, facts("CIFAR10"))
    assert recipes.as_baseline(Baseline(), trained) == baseline
    options = SearchOptions(sampling=Sampling(subset_per_class=7), method=AutoSlim(epochs=2))
    resolved = recipes.search(options, facts("DIGITS"))
    assert (resolved.sampling.subset_per_class, resolved.sampling.val_per_class) == (7, 20)
    assert (resolved.method.epochs, resolved.method.batch_size) == (2, 64)
    chosen = SearchOptions(method=EKG(choice="price"))
    assert recipes.search(chosen, facts("DIGITS")).method == EKG(choice="price")


def test_the_papers_data_have_the_papers_choice():
    found = {one: recipes.search(SearchOptions(), facts(one)).method for one in recipes.RECIPES}
    own = found.pop(recipes.OWN)
    assert own == EKG(choice="price")
    assert set(found.values()) == {EKG(choice="reward")}


def test_temperatures_by_number_of_classes():
    for count, expected in ((999, 4.0), (1000, 10.0)):
        assert recipes.finetuning(Ensemble(), facts("own", count)).temperature == expected
        assert recipes.finetuning(Hinton(temperature=2), facts("own", count)).temperature == 2
        assert recipes.finetuning(Plain(), facts("own", count)) == Plain(views=1)


@pytest.mark.parametrize("kind", FINETUNINGS)
def test_views_by_fine_tuning(kind):
    usual = 1 if kind in (Plain, Hinton) else 2
    still = facts("own", augments=False)
    assert recipes.finetuning(kind(), facts("own")).views == usual
    assert recipes.finetuning(kind(), still).views == 1
    for views in (1, 2):
        assert recipes.finetuning(kind(views=views), facts("own")).views == views
    assert recipes.finetuning(kind(views=1), still).views == 1
    with pytest.raises(UserError, match=r"two views .* are the same where"):
        recipes.finetuning(kind(views=2), still)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("train_epoch", "100 for CIFAR10/CIFAR100, 20 for DIGITS/your own data, 50 for ImageNet"),
        ("learning_rate", "0.01"),
        ("decay_points", ""),
        ("baseline_decay_points", "0.3,0.6,0.8 for CIFAR10/CIFAR100/DIGITS/your own data, "),
    ],
)
def test_defaults_by_data_set_in_words(flag, text):
    assert recipes.shown(flag).startswith(text) and bool(recipes.shown(flag)) == bool(text)
