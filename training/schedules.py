"""Learning-rate schedules. A step is one update of the weights, counted from 0."""

import math
from collections.abc import Sequence

import keras

Schedule = keras.optimizers.schedules.LearningRateSchedule


def steps_in(epochs: int, examples: int, batch: int) -> int:
    """Steps in so many epochs when a last, incomplete batch is left out.

    Raises ValueError when there are fewer examples than one batch.
    """
    if batch > examples:
        raise ValueError(f"a batch of {batch} is larger than the {examples} training examples")
    return epochs * (examples // batch)


def step_decay(
    learning_rate: float, decay_points: Sequence[float], decay_rate: float, total_steps: int
) -> Schedule:
    """Multiplies the rate by `decay_rate` at each of `decay_points`, fractions of the training.

    A decay takes effect at the first step at or after its fraction: 10 steps and points
    (0.25, 0.6) decay at steps 3 and 6. Raises ValueError for points that are not increasing or not
    strictly between 0 and 1.
    """
    if list(decay_points) != sorted(set(decay_points)) or not all(0 < p < 1 for p in decay_points):
        raise ValueError(f"decay points {tuple(decay_points)}: expected increasing fractions of 1")
    # Keras changes the value after its boundary; rounding, because 0.07 * 100 is above 7
    boundaries = [math.ceil(round(point * total_steps, 6)) - 1 for point in decay_points]
    values = [learning_rate * decay_rate**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def cosine(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """A half cosine from `learning_rate` to 0 at step `total_steps`, after a linear warm-up.

    During the warm-up, step s has learning_rate * (s + 1) / (warmup_steps + 1). Raises ValueError
    unless 0 <= warmup_steps < total_steps.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"{warmup_steps} warm-up steps do not fit into {total_steps} steps")
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / (warmup_steps + 1),
        total_steps - warmup_steps,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
