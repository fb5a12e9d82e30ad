"""What visitors draw or upload reaches a student as the real images of its set would."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_distill.data.preprocessing import Preprocessing
from hf_distill.demo.drawings import of_canvas, of_drawing, of_upload, share_of

DARK, LIGHT = Preprocessing(1, (8, 8), (0.3,), (0.4,)), Preprocessing(1, (8, 8), (0.9,), (0.4,))
COLOUR = Preprocessing(3, (8, 8), (0.5,) * 3, (0.2,) * 3)


@pytest.fixture
def sign() -> np.ndarray:
    """(8, 6) bytes, light on dark, of which ink touches all four sides."""
    ink = np.random.default_rng(0).integers(80, 256, (8, 6)).astype(np.uint8)
    ink[2:5, 1:4] = 0
    return ink


def canvas(ink: np.ndarray, pixel: int, left: int, top: int, side: int = 400, mode: str = "L") -> Image.Image:
    """The sign in dark on white, each of its pixels so large, somewhere on a canvas."""
    sheet = Image.new("L", (side, side), 255)
    sheet.paste(Image.fromarray(255 - np.kron(ink, np.ones((pixel, pixel), np.uint8))), (left, top))
    if mode == "RGBA":  # black on nothing
        clear = Image.new("RGBA", sheet.size, (0, 0, 0, 0))
        clear.putalpha(Image.fromarray(255 - np.asarray(sheet)))
        return clear
    return sheet.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(("pixel", "left", "top"), [(48, 0, 0), (40, 100, 60), (8, 310, 3)])
def test_strokes_fill_the_image_wherever_and_however_large_they_are_drawn(sign, mode, pixel, left, top):
    expected = np.pad(sign, ((0, 0), (1, 1)))
    drawn = of_drawing(canvas(sign, pixel, left, top, mode=mode), DARK)
    assert drawn.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(drawn[0, 0].numpy().astype(int), expected, atol=1)
    assert torch.equal(of_drawing(canvas(sign, pixel, left, top, mode=mode), LIGHT), 255 - drawn)


def test_strokes_of_framed_datasets_have_their_frame():
    look = Preprocessing(1, (28, 28), (0.13,), (0.3,))
    block = np.full((10, 10), 255, np.uint8)
    (drawn,) = of_drawing(canvas(block, 20, 50, 90), look, share=share_of("mnist"))[0]
    rows, columns = torch.nonzero(drawn > 128).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 4, 23)
    assert share_of("digits") == 1


@pytest.mark.parametrize("shape", [(200, 1), (1, 200), (1, 1)])
def test_a_line_and_a_dot_are_drawings_too(shape):
    sheet = np.full((400, 400), 255, np.uint8)
    sheet[100 : 100 + shape[0], 100 : 100 + shape[1]] = 0
    assert of_drawing(Image.fromarray(sheet), DARK).max() > 0


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_empty_canvas_and_a_set_in_colour_are_one_line(mode):
    ground = (0, 0, 0, 0) if mode == "RGBA" else "white"
    with pytest.raises(ValueError, match=r"^nothing is drawn; draw something first$"):
        of_drawing(Image.new(mode, (50, 50), ground), DARK)
    with pytest.raises(ValueError, match=r"^drawings are for sets of gray images"):
        of_drawing(Image.new(mode, (50, 50), ground), COLOUR)


def address(image: Image.Image) -> str:
    """As a canvas sends it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_canvas_sends_its_drawing_as_it_is(sign):
    drawn = canvas(sign, 20, 30, 40, mode="RGBA")
    assert of_canvas(address(drawn)).tobytes() == drawn.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        *("data:image/png;base64,AAAA", "data:image/png;base64,%%", "x", "x" * 2**21, "file:///etc/passwd"),
        *(5, [5], {"path": "/etc/passwd"}),
        address(Image.new("1", (1025, 10))),
        address(Image.new("L", (9, 9))).replace("png", "gif"),
    ],
)
def test_what_no_canvas_sends_is_no_drawing(value):
    with pytest.raises(ValueError, match=r"^the drawing did not arrive whole; draw it again$"):
        of_canvas(value)
    for nothing in (None, ""):
        with pytest.raises(ValueError, match=r"^nothing is drawn; draw something first$"):
            of_canvas(nothing)


def test_uploads_are_resized_by_their_centre_and_lie_on_white():
    wide = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (12, 0, 20, 16))
    seen = of_upload(wide, COLOUR)
    assert seen.shape == (1, 3, 8, 8)
    assert seen[0, :, 4, 4].tolist() == [255, 0, 0]
    assert seen[0, :, 4, 0].tolist() == [255, 255, 255]
    assert of_upload(wide, DARK).shape == (1, 1, 8, 8)


def test_uploads_stand_as_their_camera_says():
    lying = Image.new("L", (8, 8), 0)
    lying.paste(255, (0, 0, 8, 2))
    lying.getexif()[0x0112] = 6  # to be turned clockwise
    assert of_upload(lying, DARK)[0, 0, 0].tolist() == [0] * 6 + [255] * 2


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_upload_without_pixels_is_one_line(size):
    with pytest.raises(ValueError, match=r"^this image cannot be used: it has no pixels; upload another one$"):
        of_upload(Image.new("L", size), DARK)


def test_an_upload_of_floats_is_one_line():
    with pytest.raises(ValueError, match=r"^this image cannot be used: .*; upload one of 8 bits$"):
        of_upload(Image.new("F", (8, 8)), DARK)
