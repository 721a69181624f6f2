"""What a network is compiled with, for another one."""

from __future__ import annotations

from typing import Any

import keras

from .keras_graph import compiled_with


def compile_like(given: keras.Model, model: keras.Model) -> None:
    """Compiles a model as the given one: loss, metrics and a fresh optimizer alike; does nothing
    where that isn't compiled."""
    if not getattr(given, "compiled", False):
        return
    used = compiled_with(given)
    optimizer = used.optimizer
    model.compile(
        type(optimizer).from_config(optimizer.get_config()) if optimizer is not None else "rmsprop",
        loss=used.loss,
        loss_weights=used.loss_weights,
        metrics=fresh(used.metrics),
        weighted_metrics=fresh(used.weighted_metrics),
        jit_compile=given.jit_compile,
    )


def fresh(metrics: Any) -> Any:
    """Metrics with states of their own; names and functions are passed on."""

    def one(metric: Any) -> Any:
        if isinstance(metric, keras.metrics.Metric):
            return type(metric).from_config(metric.get_config())
        return metric

    return keras.tree.map_structure(one, metrics)
