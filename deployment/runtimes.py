"""Exported networks in their own runtimes, all behind one call.

A runtime is a function: inputs float32 [b, ...], b >= 1 -> outputs float32 [b, ...], logits or
probabilities as the network gives them; tuples in the order of `model.inputs` and `model.outputs`
where there are several. LiteRT and ONNX Runtime use one CPU thread, so that their latencies can be
compared with each other; TensorFlow uses its own setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..nets.keras_graph import ends
from ..training.evaluation import make_forward
from ..utils.trees import mapped, parts_of, tree_of

Runtime = Callable[[Any], Any]
ONNX_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Names:
    """What a file calls a network's inputs and outputs, in the network's order.

    LiteRT sorts them by name, so that the file alone doesn't tell the order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: keras.Model) -> Names:
        """Those that Keras exports a functional or Sequential model with."""
        outputs = []
        for path, _ in keras.tree.flatten_with_path(ends(model)[1]):
            key = path[0] if path else 0
            outputs.append(key if isinstance(key, str) else f"output_{key}")
        return cls(tuple(one.name for one in model.inputs), tuple(outputs))


def open_keras(model: keras.Model) -> Runtime:
    """Keras's inference mode, traced."""
    forward = make_forward(model, bn="inference")
    return lambda inputs: mapped(_array, forward(mapped(tf.constant, inputs)))


def open_savedmodel(path: Path, names: Names | None = None) -> Runtime:
    """A SavedModel folder through `tf.saved_model.load`; Keras takes no part.

    Args:
        names: not needed, the file itself has the network's structure.
    """
    loaded = tf.saved_model.load(str(path))
    (structure,) = loaded.serve.input_signature
    dtypes = [one.dtype for one in keras.tree.flatten(structure)]

    def run(inputs: Any) -> Any:  # `loaded` in here keeps the variables alive
        parts = zip(parts_of(inputs), dtypes, strict=True)
        values = [tf.constant(part, dtype) for part, dtype in parts]
        outputs = loaded.serve(keras.tree.pack_sequence_as(structure, values))
        return tree_of(map(_array, keras.tree.flatten(outputs)))

    return run


def _array(tensor: tf.Tensor) -> np.ndarray:
    return tensor.numpy()


def open_litert(path: Path, names: Names | None = None) -> Runtime:
    """A .tflite file through the LiteRT interpreter.

    int8 inputs and outputs are quantised and dequantised here by the scale and zero point that the
    file names. The batch size may change from call to call.

    Args:
        names: of inputs and outputs; needed where there are several.
    """
    from ai_edge_litert.interpreter import Interpreter

    @cache
    def prepared(batch: int) -> tuple[Interpreter, list[dict], list[dict]]:
        # One for every batch size: resizing again and again costs time and the delegate.
        interpreter = Interpreter(str(path), num_threads=1)
        entries, exits = _ordered(interpreter, names)
        for entry in entries:
            interpreter.resize_tensor_input(entry["index"], [batch, *entry["shape"][1:]])
        interpreter.allocate_tensors()
        return interpreter, entries, exits

    def run(inputs: Any) -> Any:
        parts = parts_of(inputs)
        interpreter, entries, exits = prepared(len(parts[0]))
        for entry, values in zip(entries, parts, strict=True):
            interpreter.set_tensor(entry["index"], _quantised(values, entry))
        interpreter.invoke()
        return tree_of(_dequantised(interpreter.get_tensor(one["index"]), one) for one in exits)

    return run


def _ordered(interpreter: Any, names: Names | None) -> tuple[list[dict], list[dict]]:
    """The details of the inputs and of the outputs in the network's order."""
    entries, exits = interpreter.get_input_details(), interpreter.get_output_details()
    if names is None or len(entries) == len(exits) == 1:
        return entries, exits
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    return [inputs[name] for name in names.inputs], [outputs[name] for name in names.outputs]


def _quantised(values: np.ndarray, details: dict) -> np.ndarray:
    scale, zero = details["quantization"]
    if not scale:  # numbers as they are: float32, or integers that a table is looked up by
        return values.astype(details["dtype"], copy=False)
    limits = np.iinfo(details["dtype"])
    steps = np.round(values / scale) + zero
    return np.clip(steps, limits.min, limits.max).astype(details["dtype"])


def _dequantised(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)


def float_tensors(path: Path) -> list[str]:
    """Names of the float32 tensors of a .tflite file; none in a full-integer network."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # A delegate would add tensors of its own to the list.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver)
    details = interpreter.get_tensor_details()
    return [tensor["name"] for tensor in details if tensor["dtype"] == np.float32]


def open_onnx(path: Path, names: Names | None = None) -> Runtime:
    """An .onnx file through ONNX Runtime on the CPU.

    Args:
        names: not needed, the file keeps the network's order.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entries = [(one.name, ONNX_DTYPES[one.type]) for one in session.get_inputs()]

    def run(inputs: Any) -> Any:
        pairs = zip(entries, parts_of(inputs), strict=True)
        values = {name: part.astype(dtype, copy=False) for (name, dtype), part in pairs}
        return tree_of(session.run(None, values))

    return run
