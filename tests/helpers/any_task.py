"""Small networks for tasks of every kind, compiled, with a dozen examples."""

import keras
import numpy as np

L = keras.layers
COUNT, SIZE = 12, 8


def _images(count):
    return np.random.default_rng(1).normal(size=(count, SIZE, SIZE, 2)).astype(np.float32)


def _body(filters=6):
    i = L.Input((SIZE, SIZE, 2), name="image")
    x = L.Conv2D(filters, 3, padding="same", use_bias=False)(i)
    return i, L.ReLU()(L.BatchNormalization()(x))


def _top(x, units, activation=None, name="out"):
    return L.Dense(units, activation=activation, name=name)(L.GlobalAveragePooling2D()(x))


def _classes(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 4, "softmax"))
    model.compile(
        "sgd", "categorical_crossentropy", metrics=["accuracy", "top_k_categorical_accuracy"]
    )
    labels = np.arange(count, dtype=np.int32) % 4
    return model, _images(count), labels, (_images(count), np.eye(4, dtype=np.float32)[labels])


def _from_logits(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 4))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    labels = np.arange(count, dtype=np.int32) % 4
    return model, _images(count), labels, (_images(count), labels)


def _smoothed(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 4, "softmax"))
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile("sgd", loss, metrics=["accuracy"])
    labels = np.arange(count, dtype=np.int32) % 4
    return model, _images(count), labels, (_images(count), np.eye(4, dtype=np.float32)[labels])


def _one_sigmoid(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 1, "sigmoid"))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy", "auc"])
    targets = (np.arange(count) % 2).astype(np.float32)[:, None]
    return model, _images(count), targets, (_images(count), targets)


def _labels(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 5, "sigmoid"))
    model.compile("sgd", keras.losses.BinaryFocalCrossentropy(), metrics=["binary_accuracy"])
    targets = (np.random.default_rng(2).random((count, 5)) > 0.5).astype(np.float32)
    return model, _images(count), targets, (_images(count), targets)


def _regression(count):
    i, x = _body()
    model = keras.Model(i, _top(x, 2))
    model.compile("sgd", "huber", metrics=["mae"])
    targets = np.random.default_rng(3).normal(size=(count, 2)).astype(np.float32)
    return model, _images(count), targets, (_images(count), targets)


def _unet(end):
    i, a = _body(6)
    b = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, 2, "same", use_bias=False)(a)))
    x = L.Conv2DTranspose(6, 2, 2)(b)
    x = L.Conv2D(6, 3, padding="same", activation="relu")(L.Concatenate()([x, a]))
    return keras.Model(i, end(x))


def _segmentation(count):
    model = _unet(L.Conv2D(1, 1, activation="sigmoid", name="mask"))
    model.compile("sgd", "binary_crossentropy", metrics=["binary_accuracy"])
    targets = (_images(count).mean(-1, keepdims=True) > 0).astype(np.float32)
    return model, _images(count), targets, (_images(count), targets)


def _classes_per_pixel(count):
    model = _unet(L.Conv2D(3, 1, activation="softmax", name="kinds"))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    targets = np.digitize(_images(count)[..., 0], (-0.4, 0.4)).astype(np.int32)
    return model, _images(count), targets, (_images(count), targets)


def _two_ends(count):
    i, x = _body()
    j = L.Input((3,), name="extra")
    x = L.Concatenate()([L.GlobalAveragePooling2D()(x), L.Dense(4, activation="relu")(j)])
    kind = L.Dense(4, activation="softmax", name="kind")(x)
    size = L.Dense(1, name="size")(x)
    model = keras.Model({"image": i, "extra": j}, {"size": size, "kind": kind})
    model.compile(
        "sgd",
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.25},
        metrics={"kind": "accuracy", "size": "mae"},
    )
    extra = np.random.default_rng(4).normal(size=(count, 3)).astype(np.float32)
    labels = np.arange(count, dtype=np.int32) % 4
    sizes = np.random.default_rng(5).normal(size=(count, 1)).astype(np.float32)
    inputs = {"image": _images(count), "extra": extra}
    return (
        model,
        (extra, _images(count)),
        (labels, sizes),
        (inputs, {"kind": labels, "size": sizes}),
    )


def _series(count):
    i = L.Input((16, 3), name="series")
    x = L.Conv1D(6, 5, padding="same", activation="relu")(i)
    x = L.Conv1D(8, 5, 2, "same", activation="relu")(x)
    model = keras.Model(i, L.Dense(1, name="next")(L.GlobalAveragePooling1D()(x)))
    model.compile("sgd", "mae", metrics=["mse"])
    x = np.random.default_rng(6).normal(size=(count, 16, 3)).astype(np.float32)
    y = x.mean((1, 2))[:, None]
    return model, x, y, (x, y)


_BUILDERS = {
    "classes": _classes,
    "from_logits": _from_logits,
    "smoothed": _smoothed,
    "one_sigmoid": _one_sigmoid,
    "labels": _labels,
    "regression": _regression,
    "segmentation": _segmentation,
    "classes_per_pixel": _classes_per_pixel,
    "two_ends": _two_ends,
    "series": _series,
}
TASKS = tuple(_BUILDERS)


def examples_for(name, count=COUNT):
    """A compiled network and a dozen examples, or so many.

    Returns:
        (model, inputs and targets as trees in the core's order, (x, y) as Keras takes them).
    """
    keras.utils.set_random_seed(0)
    return _BUILDERS[name](count)
