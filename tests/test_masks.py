"""Masks of Keras's, such as those of padded words: what they leave out stays out everywhere."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import given_data, own
from ekg_tf.dataloader.batches import eval_batches
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.openers import OPENERS
from ekg_tf.nets.proof import difference
from ekg_tf.nets.stateless import batch_norms
from ekg_tf.phases.opening import work_on
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.training.evaluation import evaluate, make_forward
from ekg_tf.utils.errors import UserError

from tests.helpers.own_kinds import EncoderBlock, PositionEmbedding

L = keras.layers
LENGTH, WORDS, WIDTH, COUNT = 12, 20, 8, 10
RNG = np.random.default_rng(0)


def words(length=LENGTH, **options):
    return keras.Input((length,), dtype="int32", **options)


def embedded(tokens):
    return L.Embedding(WORDS, WIDTH, mask_zero=True)(tokens)


def ended(inputs, x):
    return keras.Model(inputs, L.Dense(3)(L.Dense(6, activation="relu")(x)))


def recurrent():
    i = words()
    x = L.BatchNormalization()(L.Dense(WIDTH)(embedded(i)))
    x = L.Bidirectional(L.LSTM(6, return_sequences=True), merge_mode="sum")(x)
    return ended(i, L.GRU(5, go_backwards=True)(x))


def cells():
    """Keras's cells in an RNN, stacked and alone, one of them backwards."""
    i = words()
    x = L.RNN([L.LSTMCell(6), L.GRUCell(5)], return_sequences=True)(embedded(i))
    return ended(i, L.RNN(L.SimpleRNNCell(6), go_backwards=True)(x))


def series():
    i = keras.Input((LENGTH, 4))
    x = L.LSTM(6, return_sequences=True)(L.Masking()(i))
    return ended(i, L.SimpleRNN(5)(L.BatchNormalization()(x)))


def states():
    """An encoder hands its states to a decoder, which begins with them."""
    i, j = words(name="source"), words(7, name="target")
    x, *state = L.LSTM(6, return_sequences=True, return_state=True)(embedded(i))
    y = L.LSTM(6, return_sequences=True)(embedded(j), initial_state=state)
    z, last = L.GRU(5, return_state=True)(x)
    start = L.Dense(5, activation="sigmoid")(L.Concatenate()([z, last]))
    return ended([i, j], L.GRU(5)(y, initial_state=start))


def nested():
    i, j = words(), words()
    encoder = keras.Model(j, L.GRU(6, return_sequences=True)(embedded(j)))
    return ended(i, L.Bidirectional(L.GRU(5))(encoder(i)))


def each_step():
    i = words()
    x = L.TimeDistributed(L.Dense(6, activation="relu"))(embedded(i))
    return ended(i, L.LSTM(5)(x))


def attention(**options):
    i = words()
    x = embedded(i)
    x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4, **options)(x, x)]))
    return ended(i, L.GlobalAveragePooling1D()(x))


def attention_with_dropout():
    return attention(dropout=0.1)


def blocks():
    """As the Keras guides write a classifier of texts and a decoder."""
    i = words()
    x = EncoderBlock(WIDTH)(PositionEmbedding(LENGTH, WORDS, WIDTH)(i))
    x = EncoderBlock(WIDTH, causal=True)(x)
    return ended(i, L.GlobalAveragePooling1D()(x))


def causal():
    i = words()
    x = PositionEmbedding(LENGTH, WORDS, WIDTH)(i)
    y = L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return ended(i, L.LSTM(6)(L.Concatenate()([x, L.Attention()([x, y])])))


def two_texts():
    i, j = words(name="long"), words(7, name="short")
    embedding = L.Embedding(WORDS, WIDTH, mask_zero=True)
    x, y = embedding(i), embedding(j)
    z = L.LayerNormalization()(L.Add()([y, L.MultiHeadAttention(2, 4)(y, x)]))
    return ended([i, j], L.GlobalAveragePooling1D()(z))


def scored():
    """The attention of the usual translators: of a decoder on an encoder, each with padding."""
    i, j = words(name="source"), words(7, name="target")
    x = L.GRU(6, return_sequences=True)(embedded(i))
    y = L.GRU(6, return_sequences=True)(embedded(j))
    y = L.Add()([y, L.AdditiveAttention()([y, x])])
    z = L.Attention(use_scale=True, dropout=0.1)([y, y], use_causal_mask=True)
    return ended([i, j], L.GlobalAveragePooling1D()(L.Dense(6)(z)))


def side_by_side():
    """Words beside numbers that have no mask, and beside other words."""
    i, j, k = words(name="one"), words(name="two"), keras.Input((LENGTH, 3), name="numbers")
    x = L.LSTM(6, return_sequences=True)(L.Concatenate()([embedded(i), embedded(j)]))
    y = L.GlobalAveragePooling1D()(L.Dense(6)(L.Concatenate()([embedded(i), L.Dense(5)(k)])))
    return ended([i, j, k], L.Concatenate()([L.GlobalAveragePooling1D()(x), y]))


def told_scores():
    """Attention that gives its scores, too."""
    i = words()
    x = embedded(i)
    y, scores = L.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    z, others = L.Attention()([x, L.Dense(WIDTH)(y)], return_attention_scores=True)
    weights = L.Concatenate()([keras.ops.mean(scores, axis=1), others])
    return ended(i, keras.ops.mean(L.Concatenate()([L.Dense(5)(weights), z]), axis=1))


NETWORKS = {
    build.__name__: build
    for build in (
        *(recurrent, cells, series, states, nested, each_step, attention, attention_with_dropout),
        *(blocks, causal, two_texts, scored, side_by_side, told_scores),
    )
}


def examples(model):
    """Texts of several lengths, the rest zeros."""
    found = []
    for one in model.inputs:
        shape = (COUNT, *one.shape[1:])
        values = RNG.integers(1, WORDS, shape) if len(shape) == 2 else RNG.normal(size=shape)
        for row in values:
            row[RNG.integers(3, shape[1]) :] = 0
        found.append(values.astype(np.float32))
    return tuple(found) if len(found) > 1 else found[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("error:.*destroy the mask information")
def test_parts_segments_and_the_pruned_network_leave_out_what_the_given_one_does(name, tmp_path):
    model = NETWORKS[name]()
    for variable in model.trainable_weights:
        variable.assign(RNG.normal(0.3, 0.4, variable.shape))
    x = examples(model)
    tensors = tuple(map(tf.constant, x)) if isinstance(x, tuple) else tf.constant(x)
    given = Given.read(model, x)
    assert not given.closed
    listed = list(tensors) if isinstance(tensors, tuple) else tensors
    expected = model(listed, training=False)
    np.testing.assert_allclose(given.core(listed, training=False), expected, rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(given.core)
    assert not [one.name for one in model.layers if type(one) in OPENERS and one.name in graph.left]
    mask = graph.open_mask()
    for group in graph.groups:
        mask[group.start + RNG.permutation(group.channels)[: group.channels // 2]] = 0
    pruned = graph.pruned(mask)
    segments = Segments(graph)
    found = segments.outputs_from(tensors, segments.weights(mask))
    np.testing.assert_allclose(
        found, make_forward(pruned, bn="batch")(tensors), rtol=1e-4, atol=1e-5
    )
    finished = given.finished(pruned)
    finished.save(tmp_path / "pruned.keras")
    again = keras.models.load_model(tmp_path / "pruned.keras")
    assert again.count_params() < 0.8 * model.count_params()
    small = again(listed, training=False)
    if not batch_norms(given.core):
        np.testing.assert_allclose(small, found, rtol=1e-4, atol=1e-5)
    padded = np.array(tensors[0] if isinstance(tensors, tuple) else tensors)
    assert (padded == 0).any() and np.ptp(small, axis=0).max() > 1e-4


def test_half_precision_knows_no_score_of_minus_infinity():
    """A query that may look at nothing, such as padding, has the mean of all, not NaN."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = attention()
    finally:
        keras.config.set_dtype_policy("float32")
    x = examples(model)
    given = Given.read(model, x)
    half = given.finished(given.core)
    assert half.get_layer(model.layers[-1].name).compute_dtype == "float16"
    found, expected = (np.asarray(one(x), np.float32) for one in (half, model))
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


# ---------------------------------------------------------------- masks of the outputs


def tagging(ends="softmax"):
    """A tag for every word; what Keras leaves out of its loss are the zeros behind a text."""
    i = words()
    x = L.Bidirectional(L.LSTM(6, return_sequences=True))(embedded(i))
    return keras.Model(i, L.Dense(3, activation=ends)(x))


def tagging_by_blocks():
    i = words()
    x = EncoderBlock(WIDTH)(PositionEmbedding(LENGTH, WORDS, WIDTH)(i))
    return keras.Model(i, L.Dense(3, activation="softmax")(x))


def tagging_plainly():
    """Nothing in it is opened."""
    i = words()
    return keras.Model(
        i, L.Dense(3, activation="softmax")(L.GRU(5, return_sequences=True)(embedded(i)))
    )


def two_outputs():
    i = words()
    x = L.Bidirectional(L.GRU(6, return_sequences=True))(embedded(i))
    kind = L.Dense(3, activation="softmax", name="kind")(L.GlobalAveragePooling1D()(x))
    return keras.Model(i, {"tags": L.Dense(1, name="tags")(x), "kind": kind})


TAGGERS = {
    build.__name__: build for build in (tagging, tagging_by_blocks, tagging_plainly, two_outputs)
}


@pytest.mark.parametrize(
    ("name", "weighted"), [*((name, False) for name in TAGGERS), ("two_outputs", True)]
)
def test_losses_and_metrics_leave_out_what_keras_does(name, weighted):
    model = TAGGERS[name]()
    for variable in model.trainable_weights:
        variable.assign(RNG.normal(0.3, 0.6, variable.shape))
    x = examples(model).astype(np.int32)
    y = RNG.integers(0, 3, x.shape)
    loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
    if name == "two_outputs":
        loss, metrics = {"tags": "mse", "kind": loss}, {"tags": ["mae"], "kind": ["accuracy"]}
        y = {"tags": RNG.normal(size=(*x.shape, 1)).astype(np.float32), "kind": y[:, 0]}
    model.compile("sgd", loss, metrics=metrics)
    pair = (x, y)
    if weighted:
        steps = RNG.uniform(0.5, 2, x.shape).astype(np.float32)
        both = {"tags": steps, "kind": steps[:, 0]}
        pair = (x, y, both if isinstance(y, dict) else steps)
    work = work_on(model, lambda fit: own.dataset(*given_data.read(pair, pair, fit)))
    found = evaluate(work.given.core, work.task, eval_batches(work.data, "test", 4))
    keras_says = model.evaluate(*pair[:2], sample_weight=pair[2] if weighted else None, **ONE)
    assert found["loss"] == pytest.approx(keras_says["loss"], rel=1e-4)
    assert len(found["metrics"]) >= 1
    for key, value in found["metrics"].items():
        assert value == pytest.approx(keras_says[key], rel=1e-4), key
    again = work.given.finished(work.given.core)
    same = again.evaluate(*pair[:2], sample_weight=pair[2] if weighted else None, **ONE)
    assert same["loss"] == pytest.approx(keras_says["loss"], rel=1e-4)
    twice = Given.read(again, x.astype(np.float32))
    small = twice.finished(twice.core)
    assert len(small.layers) == len(again.layers)
    same = small.evaluate(*pair[:2], sample_weight=pair[2] if weighted else None, **ONE)
    assert same["loss"] == pytest.approx(keras_says["loss"], rel=1e-4)


ONE = {"batch_size": COUNT, "verbose": 0, "return_dict": True}


def test_a_mask_that_comes_of_more_than_the_inputs_is_refused():
    i, j = words(), keras.Input((LENGTH, 4))
    x = L.Bidirectional(L.GRU(4, return_sequences=True))(embedded(i))
    x = L.Concatenate(axis=1)([x, L.Dense(8)(j)])
    model = keras.Model([i, j], L.Dense(3)(x))
    given = Given.read(model, examples(model))
    with pytest.raises(UserError, match="comes of more than its inputs; let the Embedding make"):
        given.finished(given.core)


def test_what_attention_was_called_on_has_no_mask_afterwards():
    """Keras's symbolic tensors keep it, those of a run don't: the second attention sees padding."""
    i = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 8, mask_zero=True)(i)
    for _ in range(2):
        x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4, dropout=0.1)(x, x)]))
    model = keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x)))
    for variable in model.weights:
        variable.assign(RNG.normal(0.2, 0.6, variable.shape))
    tokens = np.array([[3, 4, 0, 0, 0, 0], [5, 1, 2, 7, 0, 0], [8, 8, 1, 2, 3, 4]])
    given = Given.read(model, tokens.astype(np.float32))
    expected = np.asarray(model(tokens))
    np.testing.assert_allclose(given.core(tokens.astype(np.float32)), expected, atol=1e-5)
    np.testing.assert_allclose(given.finished(given.core)(tokens), expected, atol=1e-5)
    shuffled = Given.read(keras.models.clone_model(model), tokens.astype(np.float32))
    runs = given.as_core(), shuffled.as_core()
    apart, noise = difference(*runs, tokens.astype(np.float32))
    assert apart > 0.1 > 10 * noise, "a token isn't another one by noise"
