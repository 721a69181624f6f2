"""What a network takes and gives, as far as its data have to fit."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.kinds import CLASSES

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Output:
    """One output of a network.

    name: its key where targets come as a dict.
    kind: "classes" (exclusive ones, along the last axis), "sigmoids" or "numbers".
    shape: without the batch, such as (10,) or (64, 64, 3); None: unknown, or of as many classes as
      the labels say.
    free: its loss takes targets of any shape, as one of the user's own may.
    ignored: label of pixels or steps that its loss leaves out; None: it has none.
    labels: where the shape is unknown: whether its loss takes the numbers of classes, of every
      example, pixel or step, or else a row for each; None: that is unknown, too.
    """

    name: str = "output"
    kind: str = CLASSES
    shape: Shape | None = None
    free: bool = False
    ignored: int | None = None
    labels: bool | None = None

    @property
    def classes(self) -> int | None:
        """How many exclusive classes it tells apart, None where it doesn't or isn't known."""
        return self.shape[-1] if self.kind == CLASSES and self.shape else None

    @property
    def dense(self) -> bool:
        """Whether there is an answer for every pixel or step, not one for an example."""
        return self.shape is not None and len(self.shape) > 1


@dataclass(frozen=True)
class Fit:
    """The inputs and outputs of a network, in its own order.

    input_names: their keys where inputs come as a dict.
    input_shapes: without the batch; None in one: any size; None for one: not known.
    built_on: of a network that may take other sizes, the shape of the first input it was built on.
    """

    input_names: tuple[str, ...]
    input_shapes: tuple[Shape | None, ...]
    outputs: tuple[Output, ...] = (Output(),)
    built_on: Shape | None = None

    @classmethod
    def of_images(cls, shape: Shape) -> Fit:
        """A classifier's, with one input of this shape."""
        return cls(("input",), (shape,))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs)

    @property
    def words(self) -> tuple[str, str]:
        """What an example's two sides are called: image and label, or input and target."""
        shape = self.input_shapes[0]
        image = len(self.input_shapes) == 1 and shape is not None and len(shape) == 3
        label = len(self.outputs) == 1 and self.outputs[0].kind == CLASSES
        return "image" if image else "input", "label" if label else "target"
