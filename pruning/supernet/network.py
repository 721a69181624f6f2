"""Supernets: one network's weights trained so that its sub-networks work as they are.

A sub-network keeps the leading channels of every gate (`pruning.space.width_grid`) and computes
what `ChannelGraph.pruned` would compute. One training step adds up the losses of several
sub-networks:

* the sandwich rule (AutoSlim; Yu & Huang 2019): the task's loss of the whole network; the
  narrowest network and random ones learn the whole network's outputs (the softmax of classes);
* stage-wise (SWP; Zhang et al., arXiv 2011.04908; docs/method.md 6): the task's loss of the whole
  network; the narrowest and random versions of every stage get the whole network's feature before
  that stage and learn its feature behind it, those of the last stage its outputs.

All run on the statistics of the batch and without dropout; the whole network's pass, as in any
training, updates the moving statistics. What the whole network teaches is a constant to the
gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...nets.keras_graph import draws_random, takes_training
from ...options.control import Control
from ...options.methods import SWP, AutoSlim
from ...training.task import Task
from ...utils.trees import mapped
from ..engine.cuts import bound, find_cuts, run_calls, taken
from ..space.limits import least_widths
from ..space.stages import Stage, find_stages, frozen_gates
from ..space.width_grid import WidthGrid

SANDWICH_RANDOM = 2  # random networks per step, as in the paper
NO_LIMITS = Control()


def feature_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """||student - teacher||^2 / size: the mean squared difference of two features, a scalar.

    Both float [n, ..., channels] of one shape.
    """
    return tf.reduce_mean(tf.math.squared_difference(student, teacher))


class Supernet:
    """A network and all its sub-networks as pure functions of the network's variables.

    Args:
        model: the whole network, of stock layers, without models inside it.
        order: rank of every unit in its gate, int32 [U], 0 = most important.
        options: the width grid and, for stage-wise training, the stages.
        task: what the network is trained for.
        round_to: of the widths.
        control: what groups must keep.
        stagewise: cut the network into stages, whose border gates stay whole; else one stage.

    Attributes:
        graph: the channel graph of `model`.
        stages: at least one.
        grid: the widths.
    """

    def __init__(
        self,
        model: keras.Model,
        order: np.ndarray,
        options: SWP | AutoSlim,
        task: Task,
        *,
        round_to: int = 1,
        control: Control = NO_LIMITS,
        stagewise: bool = False,
    ):
        self.model, self.graph, self.task = model, ChannelGraph(model), task
        self._twin, _ = self.graph.gated()
        self._layers = {name: self._twin.get_layer(name) for name in self.graph.units}
        self._bounds, cuts = find_cuts(self.graph, self._layers)
        count = options.stages if stagewise else 1
        self.stages = find_stages(self.graph, self._bounds, cuts, count)
        frozen = frozen_gates(self.graph, self.stages)
        gates = Gates(self.graph.groups, least_widths(self.graph, control))
        gates.set_order(order)
        self.grid = WidthGrid(gates, options.width_steps, round_to, frozen)
        # The tensors at the start of every stage, and the outputs.
        self._ends = [*(cuts[stage.first] for stage in self.stages), tuple(model.outputs)]

    def _scope(self, values: Sequence[tf.Tensor]) -> keras.StatelessScope:
        """The network's variables, and those of its mask-aware twin, have these values inside."""
        pairs = [*zip(self.model.variables, values, strict=True)]
        return keras.StatelessScope(pairs + [*zip(self._twin.variables, values, strict=True)])

    def features(self, values: Sequence, inputs: Any, updated: Sequence) -> tuple[list, list]:
        """The whole network in training: its features behind every stage, the last one the outputs,
        and the new values of the `updated` variables.

        Inputs and outputs are trees (`utils.trees`). Layers that draw random numbers (dropout,
        augmentation) are off: a sub-network that gets the inputs or a feature couldn't see what
        they did.
        """
        tensors = bound(self._ends[0], inputs)
        with self._scope(values) as scope:
            for call in self.graph.calls:
                args, kwargs = call.arguments.fill_in(tensors)
                layer = call.operation
                if takes_training(layer) and call.training is not False:
                    kwargs["training"] = not draws_random(layer)
                results = keras.tree.flatten(layer(*args, **kwargs))
                tensors |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
            state = [scope.get_current_value(one) for one in updated]
        return [taken(end, tensors) for end in self._ends[1:]], state

    def run_stage(self, values: Sequence, number: int, x: Any, mask: tf.Tensor) -> Any:
        """A stage under a unit mask, float32 [U + 1], on the feature (or inputs) x before it."""
        stage = self.stages[number]
        calls = self.graph.calls[self._bounds[stage.first] : self._bounds[stage.last]]
        names = {call.operation.name for call in calls} & self._layers.keys()
        tensors = bound(self._ends[number], x)
        with self._scope(values):
            weights = {name: self._layers[name].masked(mask) for name in sorted(names)}
            run_calls(self.graph, calls, self._layers, tensors, weights)
        return taken(self._ends[number + 1], tensors)

    def masks(self, seed: int, step: tf.Tensor, random_widths: int) -> list[tf.Tensor]:
        """Masks of a training step: the narrowest network's, then random ones'; float32 [U + 1].

        A pure function of (seed, step): the same in all replicas and after a resume.
        """
        choices = [tf.zeros_like(self.grid.sizes)]
        choices += [self.grid.random_choice(seed, step, one) for one in range(random_widths)]
        return [self.grid.mask_tensor(choice) for choice in choices]

    def _output_loss(self, student: Any, teacher: Any) -> tf.Tensor:
        """How far outputs are from the whole network's, a scalar."""
        return self.task.distillation(teacher, student, 1.0)

    def make_forward(self, seed: int, random_widths: int) -> Callable:
        """The `forward` of op_utils.make_train_step: losses of every stage added up.

        With a single stage this is the sandwich rule. Batches hold one view and "step".
        """

        def forward(values, batch, updated):
            inputs = mapped(lambda one: one[:, 0], batch["inputs"])
            features, state = self.features(values, inputs, updated)
            outputs = features[-1]
            own_loss = self.task.example_losses(outputs, batch["targets"], batch.get("weights"))
            own_loss = tf.reduce_mean(own_loss)
            taught = [mapped(tf.stop_gradient, one) for one in (inputs, *features)]
            losses = []
            for mask in self.masks(seed, batch["step"][0], random_widths):
                parts = []
                for number in range(len(self.stages)):
                    output = self.run_stage(values, number, taught[number], mask)
                    last = number == len(self.stages) - 1
                    loss = self._output_loss if last else feature_loss
                    parts.append(loss(output, taught[number + 1]))
                losses.append(tf.add_n(parts))
            metrics = {"label_loss": own_loss, "narrowest_loss": losses[0]}
            if self.task.is_classifier:
                metrics = {"accuracy": self.task.accuracy(outputs, batch["targets"])} | metrics
            if random_widths:
                metrics["random_loss"] = tf.add_n(losses[1:]) / random_widths
            return own_loss + tf.add_n(losses), metrics, state

        return forward


def stages_of(graph: ChannelGraph, count: int | str) -> list[Stage]:
    """The stages of a network, as `find_stages` gives them."""
    gated, _ = graph.gated()
    layers = {name: gated.get_layer(name) for name in graph.units}
    return find_stages(graph, *find_cuts(graph, layers), count)
