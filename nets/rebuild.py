"""Copies and rebuilds of networks: the only place that clones."""

import keras

L = keras.layers


def resized(model: keras.Model, widths: dict[str, int]) -> keras.Model:
    """The model with other layer widths; weights of unchanged shape are copied, others fresh.

    Args:
        widths: {layer name: output channels}; layers without a width of their own (batch norm,
            depthwise convolutions) are ignored.
    """
    return rebuilt(model, {name: {"filters": n, "units": n} for name, n in widths.items()})


def rebuilt(model: keras.Model, changes: dict[str, dict]) -> keras.Model:
    """The model with changed configurations, {layer name: {key: value}}, keys it has alone."""

    def convert(layer):
        config = layer.get_config()
        new = changes.get(layer.name, {})
        config |= {key: value for key, value in new.items() if key in config}
        return type(layer).from_config(config)

    smaller = keras.models.clone_model(model, clone_function=convert)
    for new, old in zip(smaller.weights, model.weights, strict=True):
        if new.shape == old.shape:
            new.assign(old)
    return smaller


def to_policy(model: keras.Model, policy: str) -> keras.Model:
    """A functional model of the same layers and weights under a dtype policy ("mixed_bfloat16").

    Variables stay float32 and in the same order, so clone and model exchange weights by
    set_weights; the output layer, and what a concatenation there joins, computes float32.

    Raises:
        ValueError: nested models.
    """
    # not model.output: a Sequential read from a file has none
    last = [model.outputs[0]._keras_history.operation]
    if isinstance(last[0], L.Concatenate):
        last += [one._keras_history.operation for one in last[0].input]
    if any(isinstance(layer, keras.Model) for layer in model.layers):
        raise ValueError("a model that contains models cannot change its dtype policy")

    def clone(layer):
        config = layer.get_config() | {"dtype": "float32" if layer in last else policy}
        return type(layer).from_config(config)

    converted = keras.models.clone_model(model, clone_function=clone)
    converted.set_weights(model.get_weights())
    return converted


def copied(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def with_activation(model: keras.Model, name: str, activation: str) -> keras.Model:
    def convert(layer):
        config = layer.get_config()
        if layer.name == name:
            config["activation"] = activation
        return type(layer).from_config(config)

    changed = keras.models.clone_model(model, clone_function=convert)
    changed.set_weights(model.get_weights())
    return changed
