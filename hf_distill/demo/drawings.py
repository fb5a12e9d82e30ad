"""What visitors draw or upload, as the real images of a set are. No gradio.

An upload goes the way of every real image: on white where it is transparent, resized, its centre cut out. A drawing is
taken for strokes on paper, and the strokes are brought to where those of scanned signs are: fitted into a box in the
middle, as bright on dark as the images of the set are.
"""

import base64
import binascii
import io
import math

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.pixels import Misfit, Plan
from ..data.preprocessing import Preprocessing

__all__ = ["is_light_on_dark", "of_canvas", "of_drawing", "of_upload", "share_of"]

FAINTEST = 64  # levels below white from which on a pixel is a stroke
LARGEST, WIDEST = 2**20, 2**10  # characters of a drawing on its way, and pixels of a side: a canvas has 320
FULL = ("digits",)  # sources whose strokes fill the image; others are taken to be framed as MNIST's are
FRAMED = 20 / 28


def of_canvas(value: str | None) -> Image.Image:
    """The drawing that a canvas of a page sends, as an address that holds a PNG.

    Raises:
        ValueError: It sent nothing yet, or no such drawing.
    """
    if not value:
        raise ValueError("nothing is drawn; draw something first")
    head, _, data = str(value).partition("base64,")  # whoever asks may send anything
    try:
        if head != "data:image/png;" or len(data) > LARGEST:
            raise ValueError("no picture of a canvas")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]) as image:
            if max(image.size) > WIDEST:
                raise ValueError("no picture of a canvas")
            return image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError("the drawing did not arrive whole; draw it again") from error


def of_upload(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An image as the real images of a set are, (1, C, H, W) uint8.

    Raises:
        ValueError: It has no pixels, or nothing tells its black and white: it is of floats.
    """
    if not all(image.size):
        raise ValueError("this image cannot be used: it has no pixels; upload another one")
    plan = Plan(preprocessing.image_size, preprocessing.channels, resize=True, reject_colour=False)
    try:
        pixels = plan.pixels(ImageOps.exif_transpose(image))
    except Misfit as error:
        raise ValueError(f"this image cannot be used: {error.reason}; upload one of 8 bits") from error
    return torch.from_numpy(np.array(pixels))[None]


def of_drawing(drawing: Image.Image, preprocessing: Preprocessing, *, share: float = 1.0) -> Tensor:
    """Strokes as the gray images of a set have them, (1, 1, H, W) uint8.

    Their box is scaled, in its shape, until it fills `share` of the height or of the width, and lies in the middle; a
    pixel is the mean of what it covers.

    Args:
        drawing: Dark strokes on white, or on nothing.
        preprocessing: Of a set of gray images; whether these are light on dark is told by their mean.
        share: Of the height and width of an image, in (0, 1].

    Raises:
        ValueError: Nothing is drawn, or the images of the set are no gray ones.
    """
    if preprocessing.channels != 1:
        raise ValueError("drawings are for sets of gray images, and this one is in colour; upload an image")
    plain = Plan((drawing.height, drawing.width), 1, resize=False, reject_colour=False)
    ink = 255 - plain.pixels(drawing)[0]
    box = Image.fromarray(np.where(ink >= FAINTEST, ink, 0).astype(np.uint8)).getbbox()
    if box is None:
        raise ValueError("nothing is drawn; draw something first")
    left, top, right, bottom = box
    height, width = preprocessing.image_size
    scale = share * min(height / (bottom - top), width / (right - left))  # pixels of the image for one of the drawing
    tall, wide = height / scale, width / scale  # of the drawing, that the image shows
    margin = math.ceil(max(tall, wide))
    field = ImageOps.expand(Image.fromarray(ink), margin)
    x, y = margin + (left + right - wide) / 2, margin + (top + bottom - tall) / 2
    seen = field.resize((width, height), Image.Resampling.BOX, box=(x, y, x + wide, y + tall))
    pixels = torch.from_numpy(np.array(seen))[None, None]
    return pixels if is_light_on_dark(preprocessing) else 255 - pixels


def share_of(source: str | None) -> float:
    """The share of the height or width of an image that strokes fill in a dataset of this name."""
    return 1.0 if source in FULL else FRAMED


def is_light_on_dark(preprocessing: Preprocessing) -> bool:
    """True where most of the images that a preprocessing was fitted on is dark, as the ground of light strokes is."""
    mean = preprocessing.mean[0] if preprocessing.zca is None else preprocessing.zca.mean.mean().item()
    return mean < 0.5
