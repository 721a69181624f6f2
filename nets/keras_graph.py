"""The calls of a functional model in the order they run, nested models inlined."""

from dataclasses import dataclass

import keras
import numpy as np

from ..utils.errors import UserError


@dataclass(frozen=True)
class Call:
    """One call of one operation; tensors are named by the `id` of their KerasTensor."""

    operation: keras.Operation
    arguments: object  # has fill_in(values) -> args, kwargs
    inputs: tuple
    outputs: tuple

    @property
    def constants(self) -> list:
        """Arguments that are numbers or arrays, not tensors of the network."""
        flat = keras.tree.flatten((self.arguments.args, self.arguments.kwargs))
        return [
            one
            for one in flat
            if not isinstance(one, keras.KerasTensor)
            and (isinstance(one, (int, float, np.ndarray)) or hasattr(one, "shape"))
        ]


def _functional(model: keras.Model) -> keras.Model:
    if isinstance(model, keras.Sequential):
        model = model._functional
    # Keras has no public view of a functional graph; Function.call walks it by this attribute.
    if not hasattr(model, "_nodes_by_depth"):
        name = "the model" if model is None else model.name
        raise UserError(
            f"{name} is no functional Keras model, or was not built: its graph can't be read; "
            "rewrite it with keras.Input and keras.Model(inputs, outputs)"
        )
    return model


def calls_of(model: keras.Model) -> list[Call]:
    """The calls of a functional model in an order in which they can be run.

    Raises:
        UserError: not a functional (or built Sequential) model.
    """
    nodes = _functional(model)._nodes_by_depth
    return [
        Call(node.operation, node.arguments, tuple(node.input_tensors), tuple(node.outputs))
        for depth in sorted(nodes, reverse=True)
        for node in nodes[depth]
        if not node.is_input
    ]


def without_nesting(model: keras.Model) -> keras.Model:
    """The model itself or, where it contains models, an equal one whose calls are all its own.

    Layers of the flat model are copies with copied weights, under their own names where these are
    unique; a model that is called twice becomes shared layers.

    Raises:
        UserError: the model or one inside it isn't functional.
    """
    if not any(isinstance(call.operation, keras.Model) for call in calls_of(model)):
        return model
    return _Inliner(model).flat


class _Inliner:
    def __init__(self, model: keras.Model):
        self._copies: dict[int, keras.Operation] = {}
        self._pairs: list[tuple] = []  # (layer, its copy)
        self._names: set[str] = set()
        outer = _functional(model)
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), outer.input
        )
        outputs = self._replay(outer, keras.tree.flatten(inputs), {})
        outputs = keras.tree.pack_sequence_as(outer.output, outputs)
        self.flat = keras.Model(inputs, outputs, name=model.name)
        for layer, copy in self._pairs:
            copy.set_weights(layer.get_weights())

    def _replay(self, model: keras.Model, inputs: list, context: dict) -> list:
        """Calls the copies of a model's layers on `inputs`; its outputs, flat."""
        owner, model = model.name, _functional(model)
        values = {
            id(tensor): value
            for tensor, value in zip(keras.tree.flatten(model.inputs), inputs, strict=True)
        }
        for call in calls_of(model):
            args, kwargs = call.arguments.fill_in(values)
            if isinstance(call.operation, keras.Model):
                training = kwargs.pop("training", None)
                inner = {} if training is None else {"training": training}
                if isinstance(args[0], dict) != isinstance(call.operation.input, dict):
                    raise UserError(
                        f"{call.operation.name} is called with inputs by name but was not made "
                        "with inputs by name, or the other way round: use the same form"
                    )
                tensors = [values[id(tensor)] for tensor in call.inputs]
                results = self._replay(call.operation, tensors, context | inner)
            else:
                if getattr(call.operation, "_call_has_training_arg", False):
                    kwargs |= context
                results = keras.tree.flatten(self._copy(call.operation, owner)(*args, **kwargs))
            values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
        return [values[id(tensor)] for tensor in keras.tree.flatten(model.outputs)]

    def _copy(self, operation: keras.Operation, owner: str) -> keras.Operation:
        if id(operation) not in self._copies:
            name = operation.name
            if name in self._names:
                name = f"{owner}_{name}"
            while name in self._names:
                name += "_"
            self._names.add(name)
            copy = type(operation).from_config(operation.get_config() | {"name": name})
            self._copies[id(operation)] = copy
            if isinstance(operation, keras.Layer):
                self._pairs.append((operation, copy))
        return self._copies[id(operation)]
