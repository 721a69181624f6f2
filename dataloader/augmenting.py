"""An augmentation of the user's: a function of inputs and targets, or Keras layers.

Its numbers depend on (seed, epoch) alone, so that a killed and resumed run sees the same examples.
Layers are run without their state: the seeds of their generators come from (seed, epoch, batch).
A function's `tf.random` operations are seeded where they are traced, once for every epoch, and run
in order.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..utils.errors import USERS, UserError, words_of

FUNCTION_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
LOOPS = ("While", "StatelessWhile")
RANDOM = ("Random", "Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal")
STATE = "seed_generator_state"  # how Keras calls the variable of a generator


class Augment:
    """What `options.data.Data.augment` is, applied to batches.

    Attributes:
        changes_targets: whether views of an example may have targets of their own.
    """

    def __init__(self, given: Any):
        """
        Args:
            given: a function (inputs, targets) -> (inputs, targets), a Keras layer, or a tuple of
                Keras layers.

        Raises:
            UserError: a tuple of other things than layers.
        """
        layers = given if isinstance(given, tuple) else (given,)
        self._layers = layers if all(isinstance(one, keras.Layer) for one in layers) else None
        if self._layers is None and isinstance(given, tuple):
            raise UserError("augment= is a list of other things than Keras layers: give a function")
        # Its decorator would keep the graph, and with it the numbers, of the first epoch.
        self._function = None if self._layers else getattr(given, "python_function", given)
        self.changes_targets = False

    def checked(self, examples: tf.data.Dataset) -> Augment:
        """Runs it twice on the first batch; learns whether it changes targets.

        Args:
            examples: dicts with "inputs" and "targets", as of `Split.batches`.

        Raises:
            UserError: it fails, it gives other shapes, or other numbers the second time.
        """
        first = examples.take(1)
        spec = first.element_spec
        if self._layers and isinstance(spec["inputs"], tuple):
            raise UserError(
                "augment= is a Keras layer, but the network has several inputs: give a function "
                "(inputs, targets) -> (inputs, targets)"
            )
        self.changes_targets = self._function is not None
        try:
            self.changes_targets = self._changed(spec)
            runs = [next(self.views(first, 1, 0, 0).as_numpy_iterator()) for _ in range(2)]
        except UserError:
            raise
        except USERS as error:
            raise UserError(f"augment= fails on the first batch ({words_of(error)})") from error
        for one, other in zip(*map(tf.nest.flatten, runs), strict=True):
            if not np.isfinite(one).all():
                raise UserError("augment= gives NaN or infinite values")
            if not np.array_equal(one, other):
                raise UserError(
                    "augment= gives other numbers for the same seed: draw them by tf.random alone, "
                    "not by numpy or a generator of your own, and give Keras layers themselves"
                )
        if self.changes_targets and np.ndim(runs[0].get("weights", 0)) > 2:
            raise UserError("augment= can't move sample weights per pixel: leave these out")
        return self

    def views(
        self, examples: tf.data.Dataset, views: int, seed: int, epoch: int
    ) -> tf.data.Dataset:
        """Batches [n, ...] as differing views; see `Dataset.views`."""
        number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])

        def make(step: tf.Tensor, example: dict) -> dict:
            # In a function's graph, that graph alone is seeded.
            tf.random.set_seed(number)
            repeated = tf.nest.map_structure(lambda leaf: tf.repeat(leaf, views, axis=0), example)
            key = tf.random.fold_in(tf.constant([seed, epoch], tf.int64), step, alg="philox")
            inputs, targets = self._run(repeated["inputs"], repeated["targets"], key)
            _same_shapes(inputs, repeated["inputs"])
            if self.changes_targets:
                changed = repeated | {"inputs": inputs, "targets": targets}
                return tf.nest.map_structure(lambda leaf: in_views(leaf, views), changed)
            inputs = tf.nest.map_structure(lambda leaf: in_views(leaf, views), inputs)
            return example | {"inputs": inputs}

        # One after the other: a parallel map would deal the random numbers out by chance.
        return tf.data.Dataset.zip(tf.data.Dataset.range(2**62), examples).map(make)

    def _run(self, inputs: Any, targets: Any, key: tf.Tensor) -> tuple[Any, Any]:
        if self._layers:
            return self._through_layers(inputs, key), targets
        made = self._function(inputs, targets)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise UserError(f"augment= returned {type(made).__name__}: (inputs, targets) expected")
        new_inputs, new_targets = made
        for new, old, what in ((new_inputs, inputs, "inputs"), (new_targets, targets, "targets")):
            if isinstance(old, tuple) != isinstance(new, (tuple, list)):
                raise UserError(f"augment= returned other {what} than it got: give all of them")
        new_inputs = tuple(new_inputs) if isinstance(inputs, tuple) else new_inputs
        new_targets = tuple(new_targets) if isinstance(targets, tuple) else new_targets
        new_inputs = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float32), new_inputs)
        return new_inputs, tf.nest.map_structure(_as_target, new_targets)

    @tf.autograph.experimental.do_not_convert
    def _through_layers(self, inputs: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        for number, layer in enumerate(self._layers):
            with tf.init_scope():  # outside the graph, where variables have values
                if not layer.built:
                    layer.build(inputs.shape)
                values = [variable.numpy() for variable in layer.variables]
            states, kept = [], {id(weight) for weight in layer.weights}
            for place, (variable, value) in enumerate(zip(layer.variables, values, strict=True)):
                if id(variable) not in kept and variable.path.endswith(STATE):
                    own = tf.random.fold_in(key, 1000 * number + place, alg="philox")
                    value = tf.cast(own, variable.dtype)
                states.append((variable, tf.convert_to_tensor(value)))
            with keras.StatelessScope(state_mapping=states):
                inputs = tf.cast(layer(inputs, training=True), tf.float32)
        return inputs

    def _changed(self, spec: dict) -> bool:
        """Whether the function gives other targets than it got; refuses what can't be seeded."""
        if self._layers:
            return False
        found = []

        def trace(inputs: Any, targets: Any) -> Any:
            made = self._run(inputs, targets, tf.zeros([2], tf.int64))
            pairs = zip(tf.nest.flatten(made[1]), tf.nest.flatten(targets), strict=True)
            found.append(any(new is not old for new, old in pairs))
            return made

        concrete = tf.function(trace).get_concrete_function(spec["inputs"], spec["targets"])
        if problem := _unseeded(concrete.graph.as_graph_def()):
            raise UserError(f"augment= {problem}")
        return found[-1]


def in_views(leaf: tf.Tensor, views: int) -> tf.Tensor:
    """[n * views, ...] -> [n, views, ...]."""
    count = leaf.shape[0]
    first = -1 if count is None else count // views
    return tf.reshape(leaf, [first, views, *leaf.shape[1:]])


def _as_target(leaf: Any) -> tf.Tensor:
    leaf = tf.convert_to_tensor(leaf)
    kind = tf.int32 if leaf.dtype.is_integer else tf.float32
    return leaf if leaf.dtype == kind else tf.cast(leaf, kind)


def _same_shapes(new: Any, old: Any) -> None:
    for one, other in zip(tf.nest.flatten(new), tf.nest.flatten(old), strict=True):
        if one.shape.as_list()[1:] != other.shape.as_list()[1:]:
            raise UserError(
                f"augment= made inputs {tuple(one.shape[1:])} of {tuple(other.shape[1:])}: the "
                "network's shape has to stay"
            )


def _unseeded(graph: Any) -> str | None:
    """Where a traced function draws random numbers that no seed fixes, with the remedy."""
    functions = {function.signature.name: function for function in graph.library.function}

    def draws(name: str, known: frozenset[str] = frozenset()) -> bool:
        """Whether a function, or one that it calls, draws random numbers."""
        if name in known or name not in functions:
            return False
        return any(
            node.op.startswith(RANDOM)
            or any(draws(other, known | {name}) for other in _functions_of(node))
            for node in functions[name].node_def
        )

    for node in (*graph.node, *(node for one in functions.values() for node in one.node_def)):
        if node.op in FUNCTION_CALLS and draws(node.attr["f"].func.name):
            return (
                "calls a tf.function that draws random numbers, which would be the same in every "
                "epoch: take its decorator off"
            )
        parallel = node.op in LOOPS and node.attr["parallel_iterations"].i > 1
        if parallel and draws(node.attr["body"].func.name):
            return (
                "draws random numbers in a loop whose steps run at the same time, in any order: "
                "draw them for the whole batch, or give tf.map_fn parallel_iterations=1"
            )
    return None


def _functions_of(node: Any) -> list[str]:
    return [value.func.name for value in node.attr.values() if value.HasField("func")] + [
        one.name for value in node.attr.values() for one in value.list.func
    ]
