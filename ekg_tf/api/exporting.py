"""Writing a network in formats for deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ekg_tf.dataloader import unreadable_named
from ekg_tf.deployment import exporting
from ekg_tf.deployment import formats as deployment
from ekg_tf.nets.keras_graph import Compiled
from ekg_tf.options.data import Data
from ekg_tf.options.kinds import FORMATS
from ekg_tf.phases.opening import work_on
from ekg_tf.utils import progress
from ekg_tf.utils.errors import UserError

from .arguments import PathLike, Split, path_of, reader, shown


@shown
@unreadable_named()
def export(
    network: PathLike,
    formats: Sequence[str],
    train: Split,
    test: Split,
    *,
    int8: bool = False,
    out: PathLike | None = None,
    reference: PathLike | None = None,
    calibration_images: int = 256,
    data: Data | None = None,
    loss: Any = None,
    metrics: Any = None,
    verbose: progress.Verbose = "auto",
) -> dict[str, Any]:
    """Writes a network in formats for deployment; each is run by its own runtime and measured.

    Args:
        network: a .keras file, such as the pruned.keras of a run.
        formats: of "savedmodel", "litert" and "onnx".
        train, test: as of `prune`; int8 kinds are calibrated on train, test is measured on.
        int8: int8 LiteRT and ONNX as well.
        out: folder to write to; None: the network's own.
        reference: the unpruned network, measured for comparison.
        calibration_images: of train.
        data: the normalisation.
        loss, metrics, verbose: as of `prune`.

    Returns:
        The figures, one dict per format under "exports".

    Raises:
        UserError: a file that can't be read, an extra that isn't installed, a format that can't
            take the network.

    Examples:
        >>> figures = ekg.export("small.keras", ["litert"], (x_train, y_train), (x_test, y_test))
        >>> [one["file"] for one in figures["exports"]]
        ['small.keras', 'small.tflite']
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats {tuple(formats)}: choose from {', '.join(FORMATS)}")
    path = path_of(network)
    model = exporting.load_float32(path)
    folder = path.parent if out is None else path_of(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: make it first")
    work = work_on(model, reader(train, test, data, "export"), aims=Compiled(loss, metrics=metrics))
    return exporting.export(
        model,
        path,
        deployment.chosen(list(formats), int8),
        work.data,
        work.task,
        out=folder,
        reference=None if reference is None else path_of(reference),
        calibration_images=calibration_images,
    )
