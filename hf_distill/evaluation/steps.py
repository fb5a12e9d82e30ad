"""How many steps of an optimizer a student makes, and how many images it sees in them, by arithmetic alone."""

from typing import NamedTuple

from typing_extensions import Self

from ..networks.architectures import CONVNETS, StudentSpec
from .protocols import CropProtocol, ProbeProtocol, TrainingProtocol

__all__ = ["Epoch", "is_stateless"]


def is_stateless(spec: StudentSpec) -> bool:
    """True where training needs nothing but parameters: no running statistics, no dropout."""
    return spec.name in CONVNETS and spec.kwargs.get("norm") != "batch"


class Epoch(NamedTuple):
    """One pass of a student over its images, in batches of which the last one may be shorter.

    Attributes:
        steps: Of the optimizer. A last batch of one image is none: BatchNorm has no statistics of it.
        images: That are seen in them.
        batches: With such a last one.
        batch: Images of a whole one.
    """

    steps: int
    images: int
    batches: int
    batch: int

    @classmethod
    def of(cls, count: int, spec: StudentSpec, protocol: TrainingProtocol) -> Self:
        """The epoch of a student of `count` images under a protocol."""
        batch = min(count, protocol.batch_size)
        batches = -(-count // batch)
        heads = isinstance(protocol, ProbeProtocol)
        needs_two = not heads and (isinstance(protocol, CropProtocol) or not is_stateless(spec))
        left_out = int(needs_two and count - (batches - 1) * batch == 1)
        return cls(batches - left_out, count - left_out, batches, batch)

    def images_in(self, steps: int) -> int:
        """The images seen in so many steps, from the first epoch on."""
        if not self.steps:
            return 0
        epochs, rest = divmod(steps, self.steps)
        return epochs * self.images + rest * self.batch

    def batches_in(self, steps: int) -> int:
        """The batches after which so many steps are made."""
        epochs, rest = divmod(steps, self.steps)
        return epochs * self.batches + rest if rest else (epochs - 1) * self.batches + self.steps

    def epochs_in(self, steps: int) -> int:
        """The epochs that so many steps take, the last of them in part where they do not fill it."""
        return -(-steps // self.steps)

    def steps_for(self, images: float) -> int:
        """The steps, one at least, in which the number of images seen is nearest to `images`."""
        epochs, rest = divmod(images, self.images)
        within = min(range(self.steps + 1), key=lambda step: abs(self._images_within(step) - rest))
        return max(1, int(epochs) * self.steps + within)

    def _images_within(self, step: int) -> int:
        return self.images if step == self.steps else step * self.batch
