"""The way of images to a device: the same pixels whatever is kept there, and no more of them than are asked for."""

import math
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Value
from PIL import Image
from torch import Tensor

from hf_distill.data import feed
from hf_distill.data.feed import HOST_BYTES, Pool, free_memory
from hf_distill.data.images import RealImages
from hf_distill.data.pixels import Pixels
from hf_distill.data.preprocessing import Preprocessing, fit_mean_std, fit_zca
from hf_distill.data.ragged import Ragged
from hf_distill.evaluation.protocols import CropProtocol, EvalProtocol
from hf_distill.evaluation.students import train_students
from hf_distill.networks.architectures import StudentSpec
from hf_distill.training.experts import ExpertConfig, train_experts
from hf_distill.training.teachers import TeacherConfig, train_teacher

COUNT = 40
SHAPES = {"gray": (1, 5, 7), "rgb": (3, 6, 4)}
KEPT = ("floats", "pixels", "nothing")


@pytest.fixture(params=SHAPES)
def pixels(request) -> np.ndarray:
    """(N, C, H, W) uint8."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPES[request.param]), dtype=np.uint8)


@pytest.fixture(params=("mean_std", "zca"))
def preprocessing(request, pixels) -> Preprocessing:
    batches, (channels, *size) = [torch.from_numpy(pixels)], pixels.shape[1:]
    if request.param == "zca":
        return Preprocessing(channels, tuple(size), (0.0,) * channels, (1.0,) * channels, fit_zca(batches, 0.1))
    return Preprocessing(channels, tuple(size), *fit_mean_std(batches))


class Counted(Pixels):
    """Counts how often each image is read, and how often in the thread that computes."""

    def __init__(self, pixels: np.ndarray) -> None:
        parts = [pa.array([image.tobytes() for image in part], pa.binary()) for part in np.array_split(pixels, 3)]
        super().__init__(pa.chunked_array(parts), pixels.shape[1:], resized=False)
        self.reads, self.waited = np.zeros(len(pixels), int), 0

    def take(self, rows):
        np.add.at(self.reads, rows.numpy(), 1)
        self.waited += threading.current_thread() is threading.main_thread()
        return super().take(rows)


def real_images(pixels: np.ndarray, preprocessing: Preprocessing) -> RealImages:
    labels = torch.arange(len(pixels)) % 4
    about = {"name": "numbers", "config": None, "split": "train", "revision": "0", "license": None, "gated": False}
    about = {**about, "homepage": None, "num_images": len(pixels)}
    return RealImages(Counted(pixels), torch.arange(len(pixels)), labels, list("abcd"), preprocessing, about)


def seen(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """What a network sees of `pixels` (N, C, H, W), in float64 from the definitions."""
    x = pixels.astype(np.float64) / 255
    if preprocessing.zca is None:
        mean, std = (np.array(part).reshape(-1, 1, 1) for part in (preprocessing.mean, preprocessing.std))
        return (x - mean) / std
    flat = x.reshape(len(x), -1)
    covariance = np.cov(flat, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    whiten = vectors @ np.diag((values + preprocessing.zca.eps) ** -0.5) @ vectors.T
    return ((flat - flat.mean(0)) @ whiten).reshape(x.shape)


def memory_for(kept: str, pixels: np.ndarray) -> int:
    """Just enough free memory to keep that much: a quarter of it for floats, half of it for pixels."""
    return {"floats": 4 * 4 * pixels.size, "pixels": 2 * pixels.size, "nothing": 2 * pixels.size - 1}[kept]


def pool(images, preprocessing: Preprocessing, **options) -> Pool:
    labels = images.labels if isinstance(images, RealImages) else torch.arange(len(images)) % 4
    return Pool(images, labels, preprocessing=preprocessing, **options)


ROWS = {
    "several": torch.tensor([3, 0, 39, 3]),
    "experts x batch": torch.tensor([[3, 0, 7], [1, 1, 39]]),
    "cube": torch.arange(24).view(2, 3, 4),
    "one": torch.tensor([5]),
    "none": torch.tensor([], dtype=torch.long),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_images_and_labels_are_those_of_the_bytes_whatever_is_kept(rows, kept, pixels, preprocessing):
    real = real_images(pixels, preprocessing)
    images, labels = pool(real, preprocessing, keep="floats", free=memory_for(kept, pixels)).take(rows)
    assert images.shape == (*rows.shape, *pixels.shape[1:])
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    np.testing.assert_allclose(images.numpy(), seen(pixels, preprocessing)[rows.numpy()], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(labels.numpy(), rows.numpy() % 4)


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("kept", KEPT)
def test_no_more_is_kept_than_is_asked_for_and_fits(keep, kept, pixels):
    preprocessing = Preprocessing(
        pixels.shape[1], pixels.shape[2:], (0.5,) * pixels.shape[1], (0.25,) * pixels.shape[1]
    )
    real = real_images(pixels, preprocessing)
    images = pool(real, preprocessing, keep=keep, free=memory_for(kept, pixels))
    before = real._pixels.reads.copy()
    for _ in range(3):
        images.images(torch.arange(COUNT))
    kept_at_all = "nothing" not in (keep, kept)
    assert (before == (1 if kept_at_all else 0)).all()
    assert (real._pixels.reads - before == (0 if kept_at_all else 3)).all()
    assert images.rows_device.type == "cpu"
    before = real._pixels.reads.sum()
    np.testing.assert_array_equal(images.pixels(torch.arange(COUNT)).numpy(), pixels)
    from_memory = kept_at_all and "pixels" in (keep, kept)  # floats hold no pixels: these are read again
    assert real._pixels.reads.sum() - before == (0 if from_memory else COUNT)


@pytest.mark.parametrize("kept", KEPT)
def test_standardised_images_have_the_same_bits_whatever_is_kept(kept, pixels):
    preprocessing = Preprocessing(pixels.shape[1], pixels.shape[2:], *fit_mean_std([torch.from_numpy(pixels)]))
    real = real_images(pixels, preprocessing)
    images = pool(real, preprocessing, keep="floats", free=memory_for(kept, pixels))
    x = pixels.astype(np.float32) / np.float32(255)
    mean, std = (np.array(part, np.float32).reshape(-1, 1, 1) for part in (preprocessing.mean, preprocessing.std))
    for rows in torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).split(7):
        np.testing.assert_array_equal(images.images(rows).numpy(), ((x - mean) / std)[rows.numpy()])


def test_a_host_keeps_what_it_keeps_whatever_else_runs_on_it():
    assert free_memory(torch.device("cpu")) == HOST_BYTES


def test_on_a_gpu_what_pytorch_set_aside_and_does_not_use_is_free_too(monkeypatch):
    known = {"mem_get_info": (5, 100), "memory_reserved": 60, "memory_allocated": 20}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda")) == 45


def test_floats_that_are_kept_are_made_in_parts_of_bounded_size(pixels, preprocessing, monkeypatch):
    real, taken = real_images(pixels, preprocessing), []
    whole = pool(real, preprocessing, keep="floats").images(torch.arange(COUNT))
    monkeypatch.setattr(feed, "FILLED_BYTES", 4 * 7 * pixels[0].size)
    monkeypatch.setattr(real, "uint8", lambda rows: taken.append(len(rows)) or type(real).uint8(real, rows))
    parts = pool(real, preprocessing, keep="floats").images(torch.arange(COUNT))
    torch.testing.assert_close(parts, whole)
    assert taken == [7] * 5 + [5]


@pytest.mark.parametrize("kept", KEPT)
def test_batches_are_everything_in_order(kept, pixels, preprocessing):
    images = pool(real_images(pixels, preprocessing), preprocessing, keep="floats", free=memory_for(kept, pixels))
    rows, batches = zip(*images.batches(16), strict=True)
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert torch.equal(torch.cat(rows), torch.arange(COUNT))
    np.testing.assert_allclose(torch.cat(batches).numpy(), seen(pixels, preprocessing), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", KEPT)
def test_what_is_taken_may_be_written_on(kept, pixels, preprocessing):
    images = pool(real_images(pixels, preprocessing), preprocessing, keep="floats", free=memory_for(kept, pixels))
    rows = torch.arange(8)
    for take in (images.images, images.pixels, lambda rows: images.take(rows)[1]):
        first = take(rows).clone()
        take(rows).zero_()
        assert torch.equal(take(rows), first)


def test_a_part_that_is_asked_again_and_again_is_gathered_once_and_nothing_else_is(pixels, preprocessing):
    real = real_images(pixels, preprocessing)
    whole = pool(real, preprocessing, keep="nothing")
    rows = torch.tensor([[30, 2, 17], [2, 5, 30]])
    part = whole.holding(rows)
    for _ in range(4):
        images, labels = part.take(rows)
    np.testing.assert_array_equal(real._pixels.reads, np.isin(np.arange(COUNT), rows.numpy()).astype(int))
    np.testing.assert_allclose(images.numpy(), seen(pixels, preprocessing)[rows.numpy()], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(labels.numpy(), rows.numpy() % 4)
    np.testing.assert_array_equal(part.pixels(rows[0]).numpy(), pixels[rows[0].numpy()])
    assert len(part) == COUNT  # numbers are those of the whole
    assert torch.equal(whole.images(rows[0]), images[0])  # which is as it was


@pytest.mark.parametrize("row", [0, 3, 39])
def test_a_part_refuses_rows_that_it_does_not_hold(row, pixels, preprocessing):
    part = pool(real_images(pixels, preprocessing), preprocessing, keep="nothing").holding(torch.tensor([2, 30]))
    with pytest.raises(ValueError, match=rf"rows \[2, {row}\] .* holds 2 of its 40 images"):
        part.images(torch.tensor([2, row]))


def test_a_part_for_which_there_is_no_room_and_a_part_of_a_part_are_gathered_too(pixels, preprocessing):
    whole = pool(real_images(pixels, preprocessing), preprocessing, keep="nothing")
    rows = torch.tensor([30, 2, 17])
    part = whole.holding(rows, free=0)
    images = [part.images(rows[:2]), part.holding(rows[:2]).images(rows[:2])]
    for found in images:
        np.testing.assert_allclose(found.numpy(), seen(pixels, preprocessing)[[30, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", ["floats", "pixels"])
def test_a_pool_that_keeps_everything_is_its_own_part(kept, pixels, preprocessing):
    images = pool(real_images(pixels, preprocessing), preprocessing, keep="floats", free=memory_for(kept, pixels))
    assert images.holding(torch.tensor([1])) is images


def test_tensors_feed_as_datasets_do_and_floats_without_preprocessing_are_taken_as_they_are(pixels, preprocessing):
    rows = torch.tensor([[3, 0], [7, 7]])
    from_bytes = pool(torch.from_numpy(pixels), preprocessing).take(rows)[0]
    np.testing.assert_allclose(from_bytes.numpy(), seen(pixels, preprocessing)[rows.numpy()], atol=1e-5, rtol=1e-5)
    floats = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for keep in KEPT:
        images = pool(floats, None, keep=keep).take(rows)[0]
        assert torch.equal(images, floats[rows])
        assert not images.requires_grad


def test_black_is_what_a_network_sees_of_it(pixels, preprocessing):
    black = pool(torch.from_numpy(pixels), preprocessing).black
    if preprocessing.zca is not None:
        assert black == 0.0
    else:
        wanted = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
        np.testing.assert_allclose(black.flatten().numpy(), wanted, rtol=1e-6)
        assert black.shape == (pixels.shape[1], 1, 1)
    assert pool(torch.zeros(math.prod((4, 1, 2, 2))).view(4, 1, 2, 2), None).black == 0.0


def test_preprocessing_that_was_first_used_in_inference_mode_is_still_differentiable(pixels, preprocessing):
    with torch.inference_mode():
        preprocessing(torch.from_numpy(pixels))
    x = torch.from_numpy(pixels).double().div(255).requires_grad_()
    (gradient,) = torch.autograd.grad(preprocessing(x).square().sum(), x)
    assert gradient.abs().max() > 0


def test_students_on_few_of_many_images_are_those_on_the_few_which_are_gathered_once(pixels, preprocessing):
    real = real_images(pixels, preprocessing)
    spec = StudentSpec("convnet_d1", 4, pixels.shape[1], pixels.shape[2:], {"width": 4})
    protocol = EvalProtocol("short", epochs=3, full_data_epochs=1, batch_size=5)
    rows = torch.tensor([[30, 2, 17, 9, 11, 4], [4, 2, 5, 39, 0, 1]])

    def trained(images: Pool) -> list[torch.Tensor]:
        students = train_students(images, images.labels, rows, spec, protocol, 3, [0.1, 0.2], [0, 1])
        return [value for student in students for value in student.state_dict().values()]

    gathered = trained(pool(real, preprocessing, keep="nothing"))
    np.testing.assert_array_equal(real._pixels.reads, np.isin(np.arange(COUNT), rows.numpy()).astype(int))
    kept = trained(pool(real, preprocessing))
    assert all(torch.equal(one, other) for one, other in zip(gathered, kept, strict=True))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_what_is_expected_is_read_once_in_another_thread_and_is_what_it_would_have_been(rows, pixels, preprocessing):
    real, others = real_images(pixels, preprocessing), torch.tensor([8, 9])
    images = pool(real, preprocessing, keep="nothing")
    expected = images.take(rows)[0]
    for _ in range(3):
        real._pixels.reads[:], real._pixels.waited = 0, 0
        for _ in range(2):  # said twice
            images.expect(rows)
        images.take(others)
        assert real._pixels.waited == 1
        assert torch.equal(images.take(rows)[0], expected)
        assert real._pixels.waited == 1
        np.testing.assert_array_equal(
            real._pixels.reads, np.bincount(np.concatenate([rows.numpy().ravel(), [8, 9]]), minlength=COUNT)
        )


@pytest.mark.parametrize("kept", ["floats", "pixels"])
def test_of_what_is_in_memory_nothing_is_read_ahead(kept, pixels, preprocessing):
    real = real_images(pixels, preprocessing)
    images = pool(real, preprocessing, keep="floats", free=memory_for(kept, pixels))
    before = real._pixels.reads.copy()
    images.expect(torch.arange(COUNT))
    images.images(torch.arange(COUNT))
    np.testing.assert_array_equal(real._pixels.reads, before)


def test_what_nobody_asks_for_is_forgotten_and_an_error_comes_where_it_would_have(pixels, preprocessing):
    images = pool(real_images(pixels, preprocessing), preprocessing, keep="nothing")
    for number in range(20):
        images.expect(torch.tensor([number]))
    assert len(images._read._waiting) < 10
    part = images.holding(torch.tensor([2, 30]), free=0)
    part.expect(torch.tensor([30]))
    assert torch.equal(part.images(torch.tensor([30])), images.images(torch.tensor([30])))
    images.expect(torch.tensor([COUNT]))
    images.images(torch.tensor([0]))
    with pytest.raises(IndexError):
        images.images(torch.tensor([COUNT]))


def _teacher(real: RealImages, folder: Path) -> Tensor:
    config = TeacherConfig(student="convnet_d1", student_width=4, teacher_epochs=2, batch_train=8)
    model = train_teacher(real, None, config, folder, disable_tqdm=True).model
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def _experts(real: RealImages, folder: Path) -> Tensor:
    config = ExpertConfig(student="convnet_d1", student_width=4, num_experts=2, batch_train=8, experts_at_once="2")
    return train_experts(real, config, folder, epochs=2, disable_tqdm=True).row(1, 2)


def _student(real: RealImages, folder: Path) -> Tensor:
    spec = StudentSpec("convnet_d1", 4, real.shape[0], real.shape[1:], {"width": 4})
    images = Pool(real, real.labels, preprocessing=real.preprocessing)
    protocol = CropProtocol("short", epochs=2, full_data_epochs=1, batch_size=8)
    (student,) = train_students(images, images.labels, torch.arange(COUNT)[None], spec, protocol, 2, [0.1], [0])
    return torch.cat([value.flatten() for value in student.state_dict().values()])


def _batches(real: RealImages, folder: Path) -> Tensor:
    return torch.cat([batch for _, batch in Pool(real, real.labels).batches(8)])


@pytest.mark.parametrize("work", [_teacher, _experts, _student, _batches])
def test_whoever_goes_through_images_that_do_not_fit_waits_for_few_of_them(work, monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
    preprocessing = Preprocessing(1, (8, 8), (0.5,), (0.25,))
    expected = work(real_images(pixels, preprocessing), tmp_path / "in memory")
    monkeypatch.setattr(feed, "HOST_BYTES", 0)
    real = real_images(pixels, preprocessing)
    assert torch.equal(work(real, tmp_path / "on disk"), expected)
    assert real._pixels.waited <= real._pixels.reads.sum() / 8 / 2


@pytest.mark.parametrize("side", ["8", "source"])
def test_images_at_their_own_shapes_are_read_ahead_too(side, monkeypatch, tmp_path):
    draw = np.random.default_rng(0)
    shown = [Image.fromarray(draw.integers(0, 256, (9 + number % 3, 10), dtype=np.uint8)) for number in range(24)]
    features = Features({"image": datasets.Image(), "label": Value("int64")})
    data = Dataset.from_dict({"image": shown, "label": [0, 1] * 12}, features=features)
    real = RealImages.from_dataset(data, resolution=8, keep_side=side)
    config = TeacherConfig(
        student="convnet_d1", student_width=4, teacher_epochs=1, batch_train=6, teacher_augment="rrc"
    )
    waited, take = [], RealImages.kept

    def read(real: RealImages, rows: Tensor) -> Ragged:
        waited.append(threading.current_thread() is threading.main_thread())
        return take(real, rows)

    monkeypatch.setattr(RealImages, "kept", read)
    train_teacher(real, None, config, tmp_path / "teacher", disable_tqdm=True)
    assert sorted(waited) == [False, False, False, True]  # the first of four batches


@pytest.mark.gpu
@pytest.mark.parametrize("kept", ["floats", "pixels", "nothing"])
def test_an_accelerator_keeps_what_fits_and_gives_the_images_of_the_cpu(cuda, kept, pixels, preprocessing):
    real = real_images(pixels, preprocessing)
    values = len(real) * math.prod(real.shape)
    free = {"floats": 16 * values, "pixels": 2 * values, "nothing": 0}[kept]
    pool = Pool(real, real.labels, preprocessing=real.preprocessing, device=cuda, keep="floats", free=free)
    rows = torch.tensor([[3, 0, 7], [1, 1, 2]])
    x, labels = pool.take(rows)
    assert (x.device.type, labels.device.type) == ("cuda", "cuda")
    assert pool.rows_device.type == ("cpu" if kept == "nothing" else "cuda")
    torch.testing.assert_close(x.cpu(), real.images(rows.flatten()).view(x.shape), rtol=1e-5, atol=1e-5)
    assert torch.equal(labels.cpu(), real.labels[rows])
