"""The ConvNet-D family that trajectory methods distil with."""

from torch import Tensor, nn

__all__ = ["CONVNETS", "MAX_DEPTH", "NORMS", "ConvNet"]

NORMS = ("instance", "batch", "none")
MAX_DEPTH = 8
CONVNETS = tuple(f"convnet_d{depth}" for depth in range(1, MAX_DEPTH + 1))


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "instance":  # one group per channel: no running statistics, training and testing agree
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if kind == "batch" else nn.Identity()


class ConvNet(nn.Module):
    """`depth` blocks of convolution 3x3, normalisation, ReLU and average pooling 2x2, then one linear layer.

    This is the student and expert of the trajectory-matching literature (MTT, arXiv:2203.11932, and the papers after
    it): width 128, instance normalisation. Differs from the authors' code: gray images are padded like colour ones
    (they pad the first convolution by 3 to make 28x28 into 32x32).

    Args:
        depth: Blocks; each halves height and width, rounding down.
        num_classes: Logits; 0 leaves the linear layer out.
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels, or one number for both.
        width: Channels of every convolution.
        norm: "instance", "batch" or "none".

    Raises:
        ValueError: The images are too small for `depth`, or `norm` is unknown.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        width: int = 128,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        height, breadth = (img_size, img_size) if isinstance(img_size, int) else img_size
        if norm not in NORMS:
            raise ValueError(f"the norm of a ConvNet is {norm!r}; expected one of {', '.join(NORMS)}")
        # The last normalisation sees 1/2^(depth-1) of the image; over a single pixel it would erase it.
        if min(height, breadth) >> depth < 1:
            deepest = min(height, breadth).bit_length() - 1
            raise ValueError(
                f"convnet_d{depth} halves its images {depth} times and they are {height}x{breadth}; "
                f"use convnet_d{deepest} or less, or a larger --resolution"
            )
        self.num_classes = num_classes
        self.num_features = width * (height >> depth) * (breadth >> depth)
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(in_chans if block == 0 else width, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, width, H >> depth, W >> depth)
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.flatten(1)  # (N, num_features)
        return x if pre_logits else self.classifier(x)  # (N, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        return self.forward_head(self.forward_features(x))
