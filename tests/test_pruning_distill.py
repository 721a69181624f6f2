"""The losses of the fine-tuning against numpy, on typed-in logits."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.pruning.knowledge.distill import (
    ensemble_loss,
    plain_loss,
    select_teachers,
    single_loss,
    teachers_of_code,
)
from ekg_tf.training.task import classification

TASK = classification()

LN3 = math.log(3)
LABELS = np.array([0, 1, 1], np.int32)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits, labels):
    return -np.take_along_axis(log_softmax(logits), labels[:, None], -1)[:, 0]


def divergence(teacher, student, temperature):
    """KL per example, without any factor."""
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return (np.exp(p) * (p - q)).sum(-1)


def views_of(count, seed=0):
    """Student logits of two views, three examples and four classes."""
    return np.random.default_rng(seed).normal(size=(count, 3, 4)).astype(np.float32)


def test_label_losses_of_views():
    logits = tf.constant([[[0, 0], [LN3, 0]], [[LN3, 0], [0, 0]]], tf.float32)
    losses = TASK.view_losses(logits, tf.constant([0, 1]))
    ln2, ln4 = math.log(2), math.log(4)
    np.testing.assert_allclose(losses, [[ln2, ln4], [math.log(4 / 3), ln2]], rtol=1e-6)


def test_the_factor_is_the_temperature_not_its_square():
    # At T = 2 the teacher's (2 ln 3, 0) is (3/4, 1/4) and the student is (1/2, 1/2).
    teacher, student = tf.constant([[2 * LN3, 0]]), tf.constant([[0.0, 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.1308
    assert float(TASK.distillation(teacher, student, 2.0)) == pytest.approx(2 * kl, rel=1e-6)
    assert 2 * kl == pytest.approx(0.2616, abs=1e-4)


def test_equal_logits_have_nothing_to_teach():
    logits = tf.constant(views_of(2))
    assert float(TASK.distillation(logits, logits, 4.0)) == pytest.approx(0, abs=1e-6)


def bank_of(values):
    """A bank [3 examples, 2 classes, K] whose k-th teacher has `values[k]` for the right class."""
    bank = np.zeros((3, 2, len(values)), np.float32)
    for k, value in enumerate(values):
        bank[np.arange(3), LABELS, k] = value
    return bank


@pytest.mark.parametrize(
    ("student_loss", "chosen"),
    [
        (math.log(2), [0, 1, 2]),  # the teacher of zeros is exactly as good as the student
        (math.log(2) - 1e-3, [1, 2]),
        (math.log(1 + math.exp(-2)) + 1e-4, [2]),
        (0.05, []),
    ],
)
def test_teachers_at_least_as_good_as_the_student(student_loss, chosen):
    values = [0.0, 1.0, 2.0]  # losses ln 2, ln(1 + 1/e), ln(1 + 1/e^2)
    mean, count = select_teachers(
        TASK,
        tf.constant(bank_of(values)),
        {"targets": tf.constant(LABELS)},
        np.float32(student_loss),
    )
    assert float(count) == len(chosen)
    expected = np.mean([values[k] for k in chosen]) if chosen else 0.0
    np.testing.assert_allclose(mean, bank_of([expected])[..., 0], rtol=1e-6)


def test_plain_loss():
    student = views_of(1)
    loss, metrics = plain_loss(TASK)(tf.constant(student), {"targets": tf.constant(LABELS)}, [])
    assert float(loss) == pytest.approx(cross_entropy(student[0], LABELS).mean(), rel=1e-5)
    hits = 100 * (student[0].argmax(-1) == LABELS).mean()
    assert {k: float(v) for k, v in metrics.items()} == {"accuracy": pytest.approx(hits)}


def test_single_teacher_compares_view_with_view():
    student, teacher = views_of(2), views_of(2, seed=1)
    loss, metrics = single_loss(TASK, 4.0)(
        tf.constant(student), {"targets": tf.constant(LABELS)}, [tf.constant(teacher)]
    )
    label = np.mean([cross_entropy(view, LABELS).mean() for view in student])
    distilled = 4 * np.mean(
        [divergence(t, s, 4).mean() for t, s in zip(teacher, student, strict=True)]
    )
    assert float(metrics["label_loss"]) == pytest.approx(label, rel=1e-5)
    assert float(metrics["distillation_loss"]) == pytest.approx(distilled, rel=1e-4)
    assert float(loss) == pytest.approx(label + distilled, rel=1e-5)


@pytest.mark.parametrize("good", [[], [0], [0, 1]])
def test_ensemble_of_the_banks_good_teachers(good):
    student = views_of(2)
    bank = np.random.default_rng(2).normal(size=(3, 4, 2)).astype(np.float32)
    for k in range(2):  # surely better or surely worse than the student
        bank[np.arange(3), LABELS, k] += 8 if k in good else -8
    batch = {"targets": tf.constant(LABELS), "teacher": tf.constant(bank)}
    loss, metrics = ensemble_loss(TASK, 4.0)(tf.constant(student), batch, [])
    label = np.mean([cross_entropy(view, LABELS).mean() for view in student])
    distilled = 0.0
    if good:
        mean = bank[..., good].mean(-1)
        distilled = 4 * np.mean([divergence(mean, view, 4).mean() for view in student])
        assert distilled > 0.1
    assert float(metrics["teachers"]) == len(good)
    assert float(metrics["distillation_loss"]) == pytest.approx(distilled, rel=1e-4, abs=1e-7)
    assert float(loss) == pytest.approx(label + distilled, rel=1e-5)


def softened(first, second, temperature=4.0):
    """The published code's sum, as a mean: T * KL of two arrays of logits [3, 4]."""
    return temperature * divergence(first, second, temperature).mean()


@pytest.mark.parametrize(("best", "chosen"), [(0, [0, 1]), (1, [0, 1]), (2, [2])])
def test_the_codes_rule_takes_teachers_nearer_to_the_best_one_than_the_student(best, chosen):
    """Teachers 0 and 1 are alike; the student's mean is between them and teacher 2, though each of
    its views is far from both. Labels have no say."""
    bank = np.random.default_rng(2).normal(size=(3, 4, 3)).astype(np.float32)
    bank[0, 0, 1] = bank[0, 0, 0] + 0.1
    bank[..., 1] = bank[..., 0]
    bank[0, 0, 1] += 0.1
    bank[..., 2] = -2 * bank[..., 0]
    aside = views_of(1)[0] * 9
    student = np.stack([-0.5 * bank[..., 0] + aside, -0.5 * bank[..., 0] - aside])
    far = softened(bank[..., best], student.mean(0))
    apart = [softened(bank[..., best], bank[..., k]) for k in range(3)]
    assert [k for k in range(3) if apart[k] < far or k == best] == chosen
    found, count = teachers_of_code(TASK, tf.constant(bank), tf.constant(student), 4.0, best)
    assert float(count) == len(chosen)
    np.testing.assert_allclose(found, bank[..., chosen].mean(-1), rtol=1e-5, atol=1e-6)
    batch = {"targets": tf.constant(LABELS), "teacher": tf.constant(bank)}
    of_loss = ensemble_loss(TASK, 4.0, rule="code", best=best)(tf.constant(student), batch, [])[1]
    assert float(of_loss["teachers"]) == len(chosen)


def test_the_best_teacher_stays_by_the_codes_rule_when_the_student_is_as_good():
    bank, student = tf.constant(bank_of([1.0, 2.0])), tf.constant(bank_of([2.0])[None, ..., 0])
    # Number 1 is the student itself: strictly nearer to it is nobody, to number 0 only that.
    for best in (0, 1):
        assert float(teachers_of_code(TASK, bank, student, 4.0, best)[1]) == 1
    beside = tf.transpose(bank, [2, 0, 1])[:, None]  # [K, views, b, classes]
    assert float(teachers_of_code(TASK, beside, student, 4.0, 1, axis=0)[1]) == 1


def test_all_teachers_are_used_without_a_test():
    student, bank = views_of(2), bank_of_four() - 30  # far worse than the student
    both = np.concatenate([bank, bank + 1], -1)
    batch = {"targets": tf.constant(1 - LABELS), "teacher": tf.constant(both)}
    paper, every = (
        ensemble_loss(TASK, 4.0, rule=rule)(tf.constant(student), batch, [])[1]
        for rule in ("paper", "all")
    )
    assert float(paper["teachers"]) == 0 and float(every["teachers"]) == 2
    distilled = 4 * np.mean([divergence(both.mean(-1), view, 4).mean() for view in student])
    assert float(every["distillation_loss"]) == pytest.approx(distilled, rel=1e-4)


def test_ensemble_of_a_top_k_bank():
    """Rows of which everything is kept give what the whole logits give."""
    student, bank = views_of(2), np.random.default_rng(2).normal(size=(3, 4, 2)).astype(np.float32)
    bank[np.arange(3), LABELS] += 8
    classes = np.broadcast_to([3, 1, 0, 2], (3, 2, 4))
    rows = {
        "teacher_logits": np.take_along_axis(bank.transpose(0, 2, 1), classes, -1),
        "teacher_classes": classes.astype(np.float32),
        "teacher_rest": np.full((3, 2), -np.inf, np.float32),
    }
    losses = [
        float(
            ensemble_loss(TASK, 4.0)(
                tf.constant(student), {"targets": tf.constant(LABELS)} | one, []
            )[0]
        )
        for one in ({"teacher": tf.constant(bank)}, rows)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_student_is_measured_over_both_views():
    # View 0 is perfect, view 1 is wrong: 5.0 on average. A teacher of loss ln 2 is chosen.
    student = np.zeros((2, 3, 2), np.float32)
    student[0, np.arange(3), LABELS] = 10
    student[1, np.arange(3), 1 - LABELS] = 10
    batch = {"targets": tf.constant(LABELS), "teacher": tf.constant(bank_of([0.0]))}
    metrics = ensemble_loss(TASK, 4.0)(tf.constant(student), batch, [])[1]
    assert float(metrics["label_loss"]) == pytest.approx(5.0, abs=1e-3)
    assert float(metrics["teachers"]) == 1


def test_without_good_teachers_the_gradient_is_that_of_the_labels():
    student = tf.Variable(views_of(2))
    bad = np.zeros((3, 4, 2), np.float32)
    bad[np.arange(3), LABELS] = -30
    batch = {"targets": tf.constant(LABELS), "teacher": tf.constant(bad)}
    with tf.GradientTape(persistent=True) as tape:
        loss = ensemble_loss(TASK, 4.0)(student, batch, [])[0]
        plain = plain_loss(TASK)(student, batch, [])[0]
    np.testing.assert_allclose(
        tape.gradient(loss, student), tape.gradient(plain, student), atol=1e-8
    )


def test_the_gradient_is_averaged_over_views():
    views, batch = (
        views_of(2),
        {"targets": tf.constant(LABELS), "teacher": tf.constant(bank_of_four())},
    )

    def gradient(logits):
        variable = tf.Variable(logits)
        with tf.GradientTape() as tape:
            loss = ensemble_loss(TASK, 4.0)(variable, batch, [])[0]
        return tape.gradient(loss, variable).numpy()

    both = gradient(views)
    for number in range(2):
        np.testing.assert_allclose(both[number], gradient(views[[number]])[0] / 2, atol=1e-7)


def bank_of_four():
    """A perfect teacher [3 examples, 4 classes, 1]."""
    bank = np.zeros((3, 4, 1), np.float32)
    bank[np.arange(3), LABELS] = 9
    return bank
