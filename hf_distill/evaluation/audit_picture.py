"""The picture of an audit: distilled images beside the training images that they are nearest to."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.tables import pictures
from ..hub.cards import image_grid
from .copies import Copies, Found
from .nearest import working

__all__ = ["audit_picture"]

MOST_ROWS, NEIGHBOURS = 10, 5
SIDE = 112  # of an image in the picture, in pixels
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")  # of a piece and of what it is nearest to
COPY = "copy"


def audit_picture(distilled: DistilledSet, train: RealImages, copies: Copies) -> Image.Image:
    """A row for each of ten images, the rarest first: the image, and what the rarest of its pieces are nearest to.

    A frame is a piece, and the window that is nearest to it. Of tiles, each of five has its nearest image; of anything
    else there are the five nearest.
    """
    images: list[Image.Image | None] = []
    captions, flagged = [], set(copies.images)
    for image in copies.p_values.argsort(stable=True)[:MOST_ROWS].tolist():
        kind, piece = copies.rarest(image)
        found = copies.found[kind]
        pieces = found.nearness[image].argsort(stable=True)[:NEIGHBOURS] if kind == "tiles" else torch.tensor([piece])
        own = distilled.images_uint8(slice(image, image + 1))
        frames = [found.kind.boxes[number] for number in pieces.tolist()] if found.kind else []
        name = distilled.class_names[distilled.labels[image]]
        images.append(_framed(own, list(zip(frames, COLOURS, strict=False))))
        captions.append(f"{image}: {name}" + (f", {COPY}" if image in flagged else ""))
        nearest = _nearest(found, image, pieces)
        for number in range(NEIGHBOURS):
            if number >= len(nearest):
                images.append(None)
                captions.append("")
                continue
            row, distance, box = nearest[number]
            colour = COLOURS[number] if kind == "tiles" else COLOURS[0]
            images.append(_framed(train.uint8([row]), [(box, colour)] if found.kind else []))
            captions.append(f"{distance:.2f}  #{int(train.rows[row])}")
    return image_grid(images, 1 + NEIGHBOURS, captions=captions, cell=SIDE)


def _nearest(found: Found, image: int, pieces: Tensor) -> list[tuple[int, float, Tensor]]:
    """Row, distance and window of what to show beside an image: the nearest of each piece, or all of the only one."""
    places = [(int(piece), 0) for piece in pieces]
    if len(places) == 1:
        places = [(places[0][0], number) for number in range(min(NEIGHBOURS, found.rows.shape[2]))]
    return [
        (
            int(found.rows[image, piece, number]),
            float(found.distances[image, piece, number]),
            found.boxes[image, piece, number],
        )
        for piece, number in places
    ]


def _framed(pixels: Tensor, frames: list[tuple[Tensor, str]]) -> Image.Image:
    """The image (1, C, H, W) uint8 at the size of the picture, with frames at boxes in pixels of `working` images."""
    (picture,) = pictures(pixels)
    sizes = working(pixels).shape[2:]
    scale = SIDE / max(picture.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    width, height = (max(1, round(scale * side)) for side in picture.size)
    picture = picture.convert("RGB").resize((width, height), method)
    draw = ImageDraw.Draw(picture)
    for box, colour in frames:
        top, left, tall, wide = box.tolist()
        down, across = height / sizes[0], width / sizes[1]
        corners = (across * left, down * top, across * (left + wide) - 1, down * (top + tall) - 1)
        draw.rectangle([round(corner) for corner in corners], outline=colour, width=2)
    return picture
