"""Prunes a small RetinaNet-like detector that is trained by a loop of one's own.

    python examples/detector.py            # several minutes on two cores
    python examples/detector.py --quick

ekg.prune trains by losses that Keras knows. Where the loss is a loop's own, ekg.search_with prunes
by a score instead, and the same loop fine-tunes. Needs nothing beside the package: the script draws
its images, one to three rectangles of three colours on noise.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import ekg_tf as ekg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("detector_run"), help="run folder")
parser.add_argument("--quick", action="store_true", help="few images, to try it out")
args = parser.parse_args()
keras.utils.set_random_seed(0)
SIZE, CLASSES, STRIDES, SHAPES = 64, 3, (8, 16), ((1.5, 1.5), (1, 2), (2, 1))

# Three anchors at every place of both levels, [anchors, 4]: y, x, height, width in pixels.
anchors = np.float32(
    [
        (y + stride / 2, x + stride / 2, height * stride, width * stride)
        for stride in STRIDES
        for y in range(0, SIZE, stride)
        for x in range(0, SIZE, stride)
        for height, width in SHAPES
    ]
)


def overlaps(a, b):
    """Intersection over union of boxes a [..., 4] and b [..., 4]."""
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    inside = np.prod(np.maximum(high - low, 0), -1)
    return inside / (np.prod(a[..., 2:], -1) + np.prod(b[..., 2:], -1) - inside)


def draw(count, seed):
    """Images, the anchors' targets (classes and boxes, used, positive), and the true boxes."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.5, 0.15, (count, SIZE, SIZE, 3)).astype(np.float32)
    classes = np.zeros((count, len(anchors), CLASSES), np.float32)
    boxes, truth = np.zeros((count, len(anchors), 4), np.float32), []
    best = np.zeros((count, len(anchors)), np.float32)
    for k in range(count):
        truth.append([])
        for _ in range(rng.integers(1, 4)):
            colour, size = rng.integers(CLASSES), rng.integers(10, 30, 2)
            corner = [rng.integers(0, SIZE - side) for side in size]
            box = np.float32([*(corner + size / 2), *size])
            rows, columns = (slice(c, c + s) for c, s in zip(corner, size, strict=True))
            images[k, rows, columns] *= 0.5
            images[k, rows, columns, colour] += 0.5
            truth[-1].append((colour, box))
            share = overlaps(anchors, box)
            # An anchor answers for the box that it overlaps most, from 0.5 on, or best.
            mine = (share > best[k]) & ((share >= 0.5) | (share == share.max()))
            best[k] = np.where(share == share.max(), 1, np.maximum(best[k], share))
            offsets = (box[:2] - anchors[:, :2]) / anchors[:, 2:], np.log(box[2:] / anchors[:, 2:])
            classes[k, mine], boxes[k, mine] = np.eye(CLASSES)[colour], np.hstack(offsets)[mine]
    # Anchors that overlap a box by 0.4 to 0.5 are neither: no class is asked of them.
    positive = classes.max(-1)
    used = np.maximum(positive, best < 0.4).astype(np.float32)
    return (images, classes, boxes, used, positive), truth


def detector(width=16):
    """A backbone, a feature pyramid of two levels, and heads that both levels share."""

    def conv(x, filters, strides=1):
        x = keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))

    def head(name, depth, start=0.0):
        start = keras.initializers.Constant(start)
        hidden = keras.layers.Conv2D(4 * width, 3, padding="same", activation="relu")
        last = keras.layers.Conv2D(len(SHAPES) * depth, 3, padding="same", bias_initializer=start)
        answers = [keras.layers.Reshape((-1, depth))(last(hidden(level))) for level in levels]
        return keras.layers.Concatenate(axis=1, name=name)(answers)

    inputs = keras.Input((SIZE, SIZE, 3))
    x = conv(conv(inputs, width, 2), 2 * width, 2)
    fine = conv(conv(x, 4 * width, 2), 4 * width)
    coarse = conv(conv(fine, 8 * width, 2), 8 * width)
    top = keras.layers.Conv2D(4 * width, 1)(coarse)
    side = keras.layers.Conv2D(4 * width, 1)(fine)
    levels = conv(keras.layers.Add()([side, keras.layers.UpSampling2D()(top)]), 4 * width), top
    # Most anchors show nothing: begin with a probability of 0.02.
    outputs = {"classes": head("classes", CLASSES, -4.0), "boxes": head("boxes", 4)}
    return keras.Model(inputs, outputs, name="detector")


def loss_of(outputs, classes, boxes, used, positive):
    """Focal loss of the classes, smooth L1 of the boxes, by the number of positive anchors."""
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(classes, outputs["classes"])
    wrong = tf.abs(classes - tf.sigmoid(outputs["classes"]))
    focal = (0.25 * classes + 0.75 * (1 - classes)) * wrong**2 * entropy * used[..., None]
    apart = tf.abs(boxes - outputs["boxes"])
    smooth = tf.where(apart < 1, apart**2 / 2, apart - 0.5) * positive[..., None]
    return (tf.reduce_sum(focal) + tf.reduce_sum(smooth)) / tf.reduce_sum(positive)


def fit(model, data, epochs, rate):
    """The loop: Adam, with a learning rate that falls along a cosine."""
    batches = tf.data.Dataset.from_tensor_slices(data).shuffle(len(data[0])).batch(32, True)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    optimizer = keras.optimizers.Adam(schedule)

    @tf.function
    def step(images, *targets):
        with tf.GradientTape() as tape:
            loss = loss_of(model(images, training=True), *targets)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(epochs):
        for batch in batches:
            step(*batch)


def recall(model, data, truth):
    """The share of true boxes that one of an image's ten surest answers finds, at IoU 0.5."""
    outputs = model.predict(data[0], verbose=0)
    centre = anchors[:, :2] + outputs["boxes"][..., :2] * anchors[:, 2:]
    found = np.concatenate([centre, np.exp(outputs["boxes"][..., 2:]) * anchors[:, 2:]], -1)
    hits = []
    for logits, boxes, objects in zip(outputs["classes"], found, truth, strict=True):
        surest = np.argsort(logits.max(-1))[-10:]
        colours, boxes = logits[surest].argmax(-1), boxes[surest]
        hits += [(overlaps(boxes, box)[colours == colour] >= 0.5).any() for colour, box in objects]
    return np.mean(hits)


# ---- Trained by its loop; a part of the training images is kept for the search.
train, _ = draw(640 if args.quick else 2000, seed=1)
held_out, _ = draw(64 if args.quick else 256, seed=2)
test, truth = draw(100 if args.quick else 400, seed=3)
model = detector(8 if args.quick else 16)
fit(model, train, epochs=12 if args.quick else 40, rate=0.003)
before = recall(model, test, truth)


# ---- Half of the FLOPs, by a score: minus the loss on images that the training did not see.
def score(network):
    return -float(loss_of(network(held_out[0], training=False), *held_out[1:]))


budget, coarse = 0.5, {"step": 0.5, "proposals": 4} if args.quick else {}
result = ekg.search_with(model, score, args.out, budget=budget, overwrite=True, **coarse)
searched = recall(result.model, test, truth)

# ---- The pruned detector learns by the same loop.
fit(result.model, train, epochs=12 if args.quick else 40, rate=0.003)
result.model.save(args.out / "small.keras")
after = recall(result.model, test, truth)
print(f"recall     {before:.4f} -> {searched:.4f} after the search -> {after:.4f} fine-tuned")
print(f"parameters {model.count_params():,} -> {result.model.count_params():,}")
print(f"FLOPs      {result.before['flops']:,} -> {result.after['flops']:,}")
