"""The verdict on a pruning: plain numbers in, sentences out."""

import doctest

import pytest
from ekg_tf.reports import verdict as module
from ekg_tf.reports.verdict import Latency, Metric, next_step, short, verdict


def test_the_example_in_the_docstring_is_what_comes():
    assert doctest.testmod(module).failed == 0


def test_a_share_of_examples_has_its_standard_error():
    metric = Metric("top-1", 90.0, 88.0, 400, "%", True)
    assert metric.standard_errors() == pytest.approx((1.5, 1.6248077))
    assert metric.change() == "none"
    assert metric.sentence() == (
        "Test top-1 on 400 examples: 90.00 ± 1.50 % → 88.00 ± 1.62 %, no difference that so many "
        "examples can show."
    )


@pytest.mark.parametrize(
    ("before", "after", "better", "change"),
    [
        (90.0, 88.0, True, "worse"),
        (88.0, 90.0, True, "better"),
        (88.0, 90.0, False, "worse"),
        (88.0, 90.0, None, "differs"),
        (90.0, 89.9, True, "none"),
        (None, 90.0, True, None),
    ],
)
def test_a_change_is_one_beyond_two_standard_errors(before, after, better, change):
    assert Metric("top-1", before, after, 40_000, "%", better).change() == change


def test_none_wrong_is_no_certainty():
    metric = Metric("top-1", 100.0, 99.5, 200, "%", True)
    assert metric.standard_errors()[0] == pytest.approx(0.3531, abs=1e-4)
    assert metric.change() == "none"


def test_other_figures_have_the_errors_that_are_given_or_none():
    assert Metric("IoU", 0.8, 0.7, 100).sentence() == "Test IoU on 100 examples: 0.8000 → 0.7000."
    given = Metric("IoU", 0.8, 0.7, 100, higher_is_better=True, errors=(0.01, 0.02))
    assert given.change() == "worse"
    assert "0.8000 ± 0.0100 → 0.7000 ± 0.0200, worse beyond the noise" in given.sentence()


def test_what_was_not_measured_is_said_so():
    text = Metric("top-1", None, 91.0, 100, "%", True).sentence()
    assert text == "Test top-1 on 100 examples: not measured → 91.00 ± 2.86 %."


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (None, "0.80 of it (spread not measured)"),
        ((0.7, 1.1), "no measurable change (ratio 0.70 to 1.10)"),
        ((0.7, 0.9), "faster (ratio 0.70 to 0.90)"),
        ((1.1, 1.2), "slower (ratio 1.10 to 1.20)"),
    ],
)
def test_latency_is_a_change_only_outside_its_spread(ratio, words):
    text = Latency(1.0, 0.8, ratio=ratio, where="LiteRT").sentence()
    assert text.startswith("Latency (batch 1, LiteRT): 1.000 → 0.800 ms per example")
    assert words in text


def test_the_whole_is_one_line():
    metric = Metric("top-1", 98.59, 98.59, 360, "%", True)
    text = verdict(
        flops=(2_532_992, 1_265_012),
        parameters=(273_754, 110_574),
        metric=metric,
        latency=Latency(1.376, 1.254),
        written="run/pruned.keras",
        following=next_step(metric, finetuned=True, folder="run"),
    )
    assert text.startswith(
        "49.9 % of the FLOPs (2.53 M → 1.27 M) and 40.4 % of the parameters (274 k → 111 k) are "
        "left. Test top-1 on 360 examples: 98.59 ± 0.62 % → 98.59 ± 0.62 %, no difference"
    )
    assert "Written: run/pruned.keras. Next: export it" in text and "\n" not in text
    assert "before any fine-tuning" in verdict(flops=(2, 1), parameters=(2, 1), finetuned=False)


def test_the_next_step_fits_the_outcome():
    worse = Metric("top-1", 95.0, 80.0, 1000, "%", True)
    assert next_step(None, finetuned=True, finished=False).startswith("run the same command again")
    assert next_step(worse, finetuned=False, folder="a").startswith("fine-tune it (ekg-tf finetune")
    assert "fine-tune longer" in next_step(worse, finetuned=True)
    spaced = next_step(worse, finetuned=True, folder="my runs/a")
    assert "(ekg-tf export 'my runs/a/pruned.keras')" in spaced
    assert "a/pruned.keras" in next_step(None, finetuned=True, folder="a")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0"), (9999, "9,999"), (10_000, "10.0 k"), (12_345, "12.3 k"), (100_000, "100 k")),
        *((999_499, "999 k"), (999_950, "1.00 M"), (2_532_992, "2.53 M"), (4.09e9, "4.09 G")),
    ],
)
def test_counts_are_short(count, text):
    assert short(count) == text
