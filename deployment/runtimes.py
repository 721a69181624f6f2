"""Exported networks in their own runtimes, all behind one call.

A runtime is a function: images float32 [b, h, w, c], b >= 1 -> outputs float32 [b, classes], logits
or probabilities as the network gives them. LiteRT and ONNX Runtime use one CPU thread, so that
their latencies can be compared with each other; TensorFlow uses its own setting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..training.evaluation import make_forward

Runtime = Callable[[np.ndarray], np.ndarray]


def open_keras(model: keras.Model) -> Runtime:
    """Keras's inference mode, traced."""
    forward = make_forward(model, bn="inference")
    return lambda images: forward(tf.constant(images)).numpy()


def open_savedmodel(path: Path) -> Runtime:
    """A SavedModel folder through `tf.saved_model.load`; Keras takes no part."""
    loaded = tf.saved_model.load(str(path))

    def run(images: np.ndarray) -> np.ndarray:
        return loaded.serve(tf.constant(images)).numpy()

    run.keep = loaded  # the function alone does not keep the variables alive
    return run


def open_litert(path: Path) -> Runtime:
    """A .tflite file through the LiteRT interpreter.

    int8 inputs and outputs are quantised and dequantised here by the scale and zero point that the
    file names. The batch size may change from call to call.
    """
    from ai_edge_litert.interpreter import Interpreter

    @cache
    def prepared(batch: int) -> Interpreter:
        # One for every batch size: resizing again and again costs time and the delegate.
        interpreter = Interpreter(str(path), num_threads=1)
        entry = interpreter.get_input_details()[0]
        interpreter.resize_tensor_input(entry["index"], [batch, *entry["shape"][1:]])
        interpreter.allocate_tensors()
        return interpreter

    def run(images: np.ndarray) -> np.ndarray:
        interpreter = prepared(len(images))
        entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.set_tensor(entry["index"], _quantised(images, entry))
        interpreter.invoke()
        return _dequantised(interpreter.get_tensor(exit_["index"]), exit_)

    return run


def _quantised(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
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


def open_onnx(path: Path) -> Runtime:
    """An .onnx file through ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
