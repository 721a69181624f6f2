"""Prunes a small CNN of one's own, trained on arrays: scikit-learn's handwritten digits.

    python examples/own_classifier.py            # two minutes on two cores
    python examples/own_classifier.py --quick

Needs: pip install "ekg_tf[data]", which brings scikit-learn, and for LiteRT "ekg_tf[export]".
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ekg_tf as ekg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("own_classifier_run"), help="run folder")
parser.add_argument("--quick", action="store_true", help="a short training, to try it out")
args = parser.parse_args()
keras.utils.set_random_seed(0)

# ---- The data: 1797 grey images of 8 x 8 pixels, values 0..16, as a pair of arrays for each split.
digits = load_digits()
images = digits.images[..., None].astype("float32")
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=0.25, random_state=0, stratify=digits.target
)


# ---- The network, trained and compiled as always with Keras.
def convolution(filters):
    return [
        keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
    ]


model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 16),
        *convolution(32),
        *convolution(64),
        keras.layers.MaxPooling2D(),
        *convolution(64),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=32, epochs=8 if args.quick else 30, verbose=0)
before = model.evaluate(x_test, y_test, verbose=0, return_dict=True)

# ---- What can be pruned, what stays whole and why, and how far it can go.
print(ekg.inspect(model))

# ---- Half of the FLOPs. The same call takes up a run that was killed, where it was.
result = ekg.prune(
    model,
    (x_train, y_train),
    (x_test, y_test),
    args.out,
    budget=0.5,
    # Digits must not be mirrored, and the network was trained without shifting them.
    data=ekg.Data(flip=False, crop=0),
    # Adam trained the network: a small rate for the fine-tuning, whose SGD has momentum.
    training=ekg.Training(epochs=3 if args.quick else 20, batch_size=32, learning_rate=0.01),
    # Fewer interim networks to remember, and larger steps of the search: quicker.
    bank=ekg.Bank(teachers=2) if args.quick else "auto",
    method=ekg.EKG(step=0.5) if args.quick else None,
    overwrite=True,
)

# ---- The result is an ordinary Keras model, compiled as the given one.
after = result.model.evaluate(x_test, y_test, verbose=0, return_dict=True)
result.model.save(args.out / "small.keras")
print(f"accuracy   {before['accuracy']:.4f} -> {after['accuracy']:.4f}")
print(f"parameters {model.count_params():,} -> {result.model.count_params():,}")
print(f"FLOPs      {result.before['flops']:,} -> {result.after['flops']:,}")

# ---- Its file is opened by Keras alone, without this package.
again = keras.models.load_model(args.out / "small.keras")
accuracy = again.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"read back  {accuracy:.4f}")

# ---- For a phone: LiteRT (in the full form int8 as well), run by its own runtime and compared.
if find_spec("ai_edge_litert"):
    data = (x_train, y_train), (x_test, y_test)
    ekg.export(args.out / "small.keras", ["litert"], *data, int8=not args.quick)
    for path in sorted(args.out.glob("small*.tflite")):
        print(f"wrote {path.name}, {path.stat().st_size / 1024:.0f} KiB")
else:
    print('LiteRT is left out: pip install "ekg_tf[export]"')
