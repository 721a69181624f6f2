"""The formats a network is exported to: how each is written, checked and opened.

Exports take a float32 Keras model whose inputs have a fixed size; the batch dimension of all
inputs and outputs stays dynamic in every format. Inputs and outputs are one array, or a tuple of
several in the order of `model.inputs` and `model.outputs`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..nets.keras_graph import ends
from ..utils.devices import full_float32, hold_stderr
from ..utils.errors import UserError
from ..utils.extras import how_to_install
from ..utils.files import atomic_folder, atomic_write
from ..utils.trees import parts_of, rows_of
from . import runtimes

TOLERANCE = 1e-3  # of the largest output: what a float32 export may differ from Keras
CALIBRATION_BATCH = 32
MARK = "saved_model.pb"


@dataclass(frozen=True)
class Format:
    """One kind of export.

    name, int8: what the user asks for. suffix: follows the network's name. packages: {module:
    package} of the extras it needs. write(model, path, calibration): calibration is inputs float32
    [n, ...] and read by the int8 kinds alone. open(path, names): see `deployment.runtimes`.
    """

    name: str
    int8: bool
    suffix: str
    packages: dict[str, str]
    write: Callable[[keras.Model, Path, Any], None]
    open: Callable[[Path, runtimes.Names], runtimes.Runtime]

    @property
    def title(self) -> str:
        return f"{self.name} int8" if self.int8 else self.name


def _write_savedmodel(model: keras.Model, path: Path, _) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _write_litert(model: keras.Model, path: Path, _) -> None:
    _convert(model, path, tf.lite.OpsSet.TFLITE_BUILTINS)


def _write_litert_int8(model: keras.Model, path: Path, calibration: Any) -> None:
    """Full-integer: weights per channel, activations, inputs and outputs are int8."""
    _convert(
        model,
        path,
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: _one_by_one(model, calibration),
        inference_input_type=tf.int8,
        inference_output_type=tf.int8,
    )
    if left := runtimes.float_tensors(path):
        raise UserError(
            f"{model.name} can't be quantised to integers alone: {len(left)} tensors stay float32 "
            f"({', '.join(left[:3])}): export it without int8"
        )


def _one_by_one(model: keras.Model, calibration: Any) -> Iterator[list | dict]:
    """The calibration examples as the converter takes them: a list of one input, or by name."""
    for row in range(len(parts_of(calibration)[0])):
        one = parts_of(rows_of(calibration, slice(row, row + 1)))
        pairs = zip(one, model.inputs, strict=True)
        named = {entry.name: part.astype(entry.dtype, copy=False) for part, entry in pairs}
        yield named if len(named) > 1 else [*named.values()]


def _convert(model: keras.Model, path: Path, operations: tf.lite.OpsSet, **options) -> None:
    # Keras would admit operations that only the flex delegate runs, a second TensorFlow on the
    # device. With the built-in ones alone the converter refuses the network instead.
    target = {"supported_ops": [operations]}
    with hold_stderr() as held:
        try:
            model.export(path, format="litert", verbose=False, target_spec=target, **options)
            return
        except Exception as error:  # the converter has several classes of its own
            text, cause = str(error), error
        held.clear()
    raise UserError(f"LiteRT can't take {model.name}: {_reason(text)}") from cause


def _reason(text: str) -> str:
    """The converter's reason in one line: the operations that are not built in, if it names any."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    flex = [line for line in lines if line.startswith(("Flex ops:", "TF Select ops:"))]
    if flex:
        names = flex[0].split(":", 1)[1].strip()
        return f"it has no operation of its own for {names}: leave out litert"
    return lines[0] if lines else "the converter gives no reason"


def _write_onnx(model: keras.Model, path: Path, _) -> None:
    import onnx

    with hold_stderr():
        model.export(path, format="onnx", verbose=False)
    graph = onnx.load(path)
    tensors = (*model.inputs, *model.outputs)
    for value, tensor in zip((*graph.graph.input, *graph.graph.output), tensors, strict=True):
        sizes = value.type.tensor_type.shape.dim
        sizes[0].dim_param = "batch"  # instead of unk__676
        for size, known in zip(sizes[1:], tensor.shape[1:], strict=True):
            if known is not None:
                size.dim_value = known
    onnx.save(graph, path)


def _write_onnx_int8(model: keras.Model, path: Path, calibration: Any) -> None:
    """QDQ form: weights per channel and activations int8; inputs and outputs stay float32."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self, names: list[str]):
            self.batches = _batches(names, model, calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder, "plain.onnx"), Path(folder, "prepared.onnx")
        _write_onnx(model, plain, None)
        with hold_stderr():
            # The symbolic shape inference needs another package and is for transformers.
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                Calibration([one.name for one in onnx.load(plain).graph.input]),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )


def _batches(
    names: list[str], model: keras.Model, calibration: Any
) -> Iterator[dict[str, np.ndarray]]:
    dtypes = [one.dtype for one in model.inputs]
    for start in range(0, len(parts_of(calibration)[0]), CALIBRATION_BATCH):
        some = parts_of(rows_of(calibration, slice(start, start + CALIBRATION_BATCH)))
        yield {
            name: part.astype(dtype, copy=False)
            for name, part, dtype in zip(names, some, dtypes, strict=True)
        }


_LITERT = {"ai_edge_litert": "ai-edge-litert"}
_ONNX = {name: name for name in ("onnx", "onnxruntime", "tf2onnx")}
FORMATS = (
    Format("savedmodel", False, "_savedmodel", {}, _write_savedmodel, runtimes.open_savedmodel),
    Format("litert", False, ".tflite", _LITERT, _write_litert, runtimes.open_litert),
    Format("litert", True, "_int8.tflite", _LITERT, _write_litert_int8, runtimes.open_litert),
    Format("onnx", False, ".onnx", _ONNX, _write_onnx, runtimes.open_onnx),
    Format("onnx", True, "_int8.onnx", _ONNX, _write_onnx_int8, runtimes.open_onnx),
)
NAMES = tuple(dict.fromkeys(kind.name for kind in FORMATS))


def chosen(names: list[str], int8: bool) -> list[Format]:
    """The formats of these names, with their int8 kinds too if `int8`.

    Raises:
        UserError: int8 without a format that has it, or an extra is not installed.
    """
    kinds = [kind for kind in FORMATS if kind.name in names and (int8 or not kind.int8)]
    if int8 and not any(kind.int8 for kind in kinds):
        raise UserError("int8 needs litert or onnx: a SavedModel has no int8 kind")
    needed = {module: package for kind in kinds for module, package in kind.packages.items()}
    missing = [package for module, package in needed.items() if not _is_there(module)]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: {how_to_install('export')}")
    return kinds


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def unnested(model: keras.Model) -> keras.Model:
    """The model as it is, or with a list of its outputs where they are lists in lists: neither
    SavedModel nor LiteRT name those."""
    inputs, outputs = ends(model)
    if all(len(path) < 2 for path, _ in keras.tree.flatten_with_path(outputs)):
        return model
    return keras.Model(inputs, keras.tree.flatten(outputs), name=model.name)


@full_float32()
def write(kind: Format, model: keras.Model, path: Path, probe: Any, calibration: Any) -> None:
    """Writes one export; it takes its place only after its own runtime has run it.

    Args:
        model: from `unnested`.
        probe: inputs float32 [b, ...] on which the export is compared with Keras.
        calibration: inputs float32 [n, ...] of the training set, for int8; else None.

    Raises:
        UserError: the format can't take the network; its outputs are not finite or, in float32,
            differ from Keras's by more than TOLERANCE of the largest; no place to write.
    """
    expected = parts_of(runtimes.open_keras(model)(probe))
    names = runtimes.Names.of(model)

    def write_checked(temporary: Path) -> None:
        try:
            kind.write(model, temporary, calibration)
            outputs = parts_of(kind.open(temporary, names)(probe))
        except (UserError, OSError):
            raise
        except Exception as error:  # converters and runtimes have classes of their own
            raise UserError(
                f"{kind.title} can't take {model.name}: {_reason(str(error))}"
            ) from error
        for output, wanted in zip(outputs, expected, strict=True):
            _check(kind, path, output, wanted)

    if kind.name == "savedmodel":
        atomic_folder(path, write_checked, MARK)
    else:
        atomic_write(path, write_checked)


def _check(kind: Format, path: Path, output: np.ndarray, wanted: np.ndarray) -> None:
    if output.shape != wanted.shape:
        raise UserError(
            f"{path} would give outputs {output.shape}, Keras {wanted.shape}: it was not written"
        )
    if not np.isfinite(output).all():
        raise UserError(f"{path} would give outputs that are not finite: it was not written")
    worst = float(np.abs(output - wanted).max())
    if not kind.int8 and worst > TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        raise UserError(f"{path} would differ from Keras by {worst:.3g}: it was not written")
