"""What peers saved becomes the same artifact: exact values, nothing run, and one line for what does not fit."""

import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import load_dataset
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import EpochLabels
from hf_distill.hub.files import STAGING
from hf_distill.importing import describes_itself, import_image_folder, import_images, import_trajectories
from hf_distill.importing.epoch_labels import sampler_order
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.trajectories import ExpertTrajectories

NAMES = ["cat", "dog", "eel"]
GIVEN = {"class_names": NAMES, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
SAMPLES = {"max_train_samples": 300, "max_test_samples": 60}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def syn(ipc: int = 2, **kwargs) -> torch.Tensor:
    """Images as a peer has them when it saves: a copy of a leaf that was optimised."""
    return noise(ipc * len(NAMES), 3, 8, 8, **kwargs).requires_grad_().detach().cpu()


def blocks(ipc: int = 2) -> torch.Tensor:
    return torch.tensor(np.array([np.ones(ipc, dtype=np.int_) * i for i in range(len(NAMES))])).view(-1)


@pytest.fixture(scope="module")
def digits() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(**SAMPLES))


@pytest.fixture(scope="module")
def whitened() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(**SAMPLES, normalization="zca"))


# Images


def test_mtt_images_come_with_labels_and_lr_from_beside_them(tmp_path):
    torch.save(syn(), tmp_path / "images_best.pt")
    torch.save(syn(seed=1), tmp_path / "images_500.pt")
    torch.save(blocks().flip(0), tmp_path / "labels_best.pt")
    torch.save(blocks(), tmp_path / "labels_500.pt")
    torch.save(torch.tensor(0.0314, requires_grad=True).detach(), tmp_path / "lr_best.pt")
    distilled = import_images(tmp_path, **GIVEN, method="mtt")
    assert torch.equal(distilled.pixel_values, syn())
    assert distilled.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert distilled.lr.item() == pytest.approx(0.0314, rel=1e-6)
    assert distilled.soft_labels is None
    assert distilled.config["method"] == "mtt"
    first, *rest = distilled.config["imported_from"]["files"]
    digest = hashlib.sha256((tmp_path / "images_best.pt").read_bytes()).hexdigest()
    assert first == {"file": "images_best.pt", "sha256": digest}
    assert [file["file"] for file in rest] == ["labels_best.pt", "lr_best.pt"]
    # What is standardised is (x - mean) / std, so this is its picture.
    mean, std = (torch.tensor(GIVEN[name]).view(3, 1, 1) for name in ("mean", "std"))
    wanted = ((syn() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(distilled.images_uint8(), wanted)
    other = import_images(tmp_path / "images_500.pt", **GIVEN)
    assert torch.equal(other.pixel_values, syn(seed=1))
    assert other.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert other.lr is None


def test_dc_results_give_the_pair_of_the_experiment_that_is_asked_for(tmp_path):
    data = [[syn(seed=number), blocks()] for number in range(2)]
    accuracies = {"ConvNet": [np.mean([0.25, 0.5]), np.float64(0.5)], "MLP": [np.float32(0.125), np.sum([3])]}
    path = tmp_path / "res_DC_ConvNet_CIFAR10_2ipc.pt"
    torch.save({"data": data, "accs_all_exps": accuracies}, path)
    for number in range(2):
        distilled = import_images(path, **GIVEN, experiment=number)
        assert torch.equal(distilled.pixel_values, syn(seed=number))
    with pytest.raises(ValueError, match="holds 2 experiments; --experiment is 2"):
        import_images(path, **GIVEN, experiment=2)


def test_old_pickles_of_numpy_one_are_read_too(tmp_path):
    path = tmp_path / "res_DM.pt"
    content = {"data": [[syn(), blocks()]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert b"numpy._core.multiarray" in raw
    path.write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(import_images(path, **GIVEN).pixel_values, syn())


def test_probabilities_become_logits_with_the_same_softmax_and_logits_stay(tmp_path):
    logits = 3 * noise(6, 3, seed=2)
    logits[:, 0] -= 30  # a class that is out of the question
    probabilities = F.softmax(logits, dim=1)
    torch.save(syn(), tmp_path / "images_best.pt")
    torch.save(probabilities, tmp_path / "labels_best.pt")
    distilled = import_images(tmp_path, **GIVEN)
    torch.testing.assert_close(F.softmax(distilled.soft_labels.float(), dim=1), probabilities, atol=2e-3, rtol=0)
    assert distilled.label_source.kind == "soft"
    torch.save(logits, tmp_path / "labels_best.pt")
    assert torch.equal(import_images(tmp_path, **GIVEN).soft_labels, logits.half())


def test_classes_under_soft_labels_are_those_of_the_blocks_unless_the_labels_say_otherwise(tmp_path):
    torch.save(syn(), tmp_path / "images_best.pt")
    soft = 0.8 * F.one_hot(blocks(), 3) + 0.2 / 3
    soft[0] = torch.tensor([0.2, 0.7, 0.1])  # a teacher that errs
    torch.save(soft, tmp_path / "labels_best.pt")
    assert import_images(tmp_path, **GIVEN).labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.save(soft[[5, 4, 2, 3, 1, 1]], tmp_path / "labels_best.pt")
    assert import_images(tmp_path, **GIVEN).labels.tolist() == [2, 2, 1, 1, 0, 0]


def test_one_hot_rows_are_classes(tmp_path):
    torch.save(syn(), tmp_path / "images_best.pt")
    torch.save(F.one_hot(blocks(), 3).float(), tmp_path / "labels_best.pt")
    distilled = import_images(tmp_path, **GIVEN)
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert distilled.soft_labels is None


def test_without_labels_classes_come_in_blocks_and_a_warning_says_so(tmp_path, caplog):
    torch.save(syn(), tmp_path / "images_best.pt")
    assert import_images(tmp_path, **GIVEN).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "no labels: 2 images for each class" in caplog.text
    torch.save(syn()[:5], tmp_path / "images_best.pt")
    with pytest.raises(ValueError, match="no labels, and 5 images are no equal share for each of 3 classes"):
        import_images(tmp_path, **GIVEN)


def test_bytes_pixels_and_network_values_give_the_same_set(tmp_path, caplog):
    caplog.set_level("INFO", "hf_distill")
    mean, std = (torch.tensor(GIVEN[name]).view(3, 1, 1) for name in ("mean", "std"))
    raw = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    raw[0, 0, 0, :2] = torch.tensor([0, 255])
    pixels = raw.float() / 255
    for values, said in ((raw, "bytes"), (pixels, "pixels"), ((pixels - mean) / std, "network")):
        torch.save({"images": values, "labels": blocks()}, tmp_path / f"{said}.pt")
        caplog.clear()
        distilled = import_images(tmp_path / f"{said}.pt", **GIVEN)
        assert f"images are read as {said}" in caplog.text
        assert distilled.config["imported_from"]["space"] == said
        torch.testing.assert_close(distilled.pixel_values.detach(), (pixels - mean) / std)
        assert torch.equal(distilled.images_uint8(), raw)
    as_asked = import_images(tmp_path / "pixels.pt", **GIVEN, space="network")
    assert torch.equal(as_asked.pixel_values, pixels)
    torch.save({"images": raw.float(), "labels": blocks()}, tmp_path / "floats.pt")
    with pytest.raises(ValueError, match="go from 0 to 255, as bytes do"):
        import_images(tmp_path / "floats.pt", **GIVEN)


def test_whitened_images_and_their_unwhitened_copy_are_the_same_pixels(whitened, tmp_path):
    real, _ = whitened
    # Whitening by the book, in float64, from the same images.
    x = real.uint8(range(len(real))).double().flatten(1) / 255
    values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / (len(x) - 1))
    images = x[real.labels.argsort(stable=True)[:: len(x) // 10][:10]]
    transformed = (images - x.mean(0)) @ (vectors * (values + 0.1) ** -0.5) @ vectors.T
    torch.save(transformed.float().view(10, 1, 8, 8), tmp_path / "images_best.pt")
    # As optimised images do, it goes beyond [0, 1] here and there.
    torch.save((images + 0.01).float().view(10, 1, 8, 8), tmp_path / "images_zca_best.pt")
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    network = import_images(tmp_path, real=real)
    assert network.config["imported_from"]["space"] == "network"
    assert torch.equal(network.images_uint8().double().flatten(1), (255 * images).round())
    pixels = import_images(tmp_path / "images_zca_best.pt", real=real)
    assert pixels.config["imported_from"]["space"] == "pixels"
    shown = pixels.preprocessing.inverse(pixels.pixel_values.detach())
    torch.testing.assert_close(shown.double().flatten(1), images + 0.01, atol=1e-5, rtol=0)
    assert network.config["source"] == real.provenance


def test_whitened_images_are_not_taken_for_standardised_ones(digits, tmp_path):
    torch.save(noise(10, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(noise(10, 1, 8, 8).sigmoid(), tmp_path / "images_zca_best.pt")
    with pytest.raises(ValueError, match="says that its images are whitened; give --normalization zca"):
        import_images(tmp_path, real=digits[0])


@pytest.mark.parametrize("zca", [False, True])
def test_what_export_pt_wrote_comes_back_bit_for_bit(zca, tmp_path):
    preprocessing = Preprocessing(3, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    if zca:
        raw = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        preprocessing = Preprocessing(3, (8, 8), (0.0,) * 3, (1.0,) * 3, fit_zca([raw], 0.1))
    was = DistilledSet(3 * syn(), blocks().flip(0), NAMES, preprocessing, lr=0.013, soft_labels=9 * noise(6, 3))
    path = was.export_pt(tmp_path / "set.pt")
    assert describes_itself(path)
    if zca:
        content = torch.load(path, weights_only=True)
        content.setdefault("zca_eps", preprocessing.zca.eps)
        content.setdefault("zca_digest", preprocessing.zca.digest)
        torch.save(content, path)
    now = import_images(path)
    for name in ("pixel_values", "labels", "soft_labels", "lr"):
        assert torch.equal(getattr(now, name), getattr(was, name)), name
    assert now.class_names == NAMES
    torch.testing.assert_close(now.preprocessing.mean, was.preprocessing.mean)
    assert torch.equal(now.images_uint8(), was.images_uint8())
    if zca:
        assert now.preprocessing.to_config() == was.preprocessing.to_config()


def test_the_imported_folder_is_a_dataset_like_any_other(digits, tmp_path):
    torch.save(noise(20, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(10).repeat_interleave(2), tmp_path / "labels_best.pt")
    distilled = import_images(tmp_path / "images_best.pt", real=digits[0], method="dm")
    folder = distilled.save_pretrained(tmp_path / "set")
    rows = load_dataset(str(folder), "tensor", split="train", cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(np.array(rows["pixel_values"], dtype=np.float32), noise(20, 1, 8, 8).numpy())
    pictures = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert pictures.features["label"].names == [str(digit) for digit in range(10)]
    assert np.array_equal(np.stack(pictures["image"]), distilled.images_uint8()[:, 0].numpy())
    again = DistilledSet.from_pretrained(folder)
    assert again.config["imported_from"] == distilled.config["imported_from"]
    card = (folder / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "`dm`" in card
    said = json.dumps(again.config)
    assert str(tmp_path) not in said


def test_a_licence_that_is_not_known_stays_so(tmp_path):
    torch.save({"images": syn(), "labels": blocks()}, tmp_path / "x.pt")
    folder = import_images(tmp_path / "x.pt", **GIVEN).save_pretrained(tmp_path / "set")
    card = (folder / "README.md").read_text()
    assert "license: other" in card
    assert "licence is not known" in card


# Refused


class System:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_runs_code_is_refused_and_does_not_run(zipped, digits, tmp_path):
    proof = tmp_path / "proof"
    path = tmp_path / "images_best.pt"
    torch.save([System(proof), syn()], path, _use_new_zipfile_serialization=zipped)
    # The file does what it says to whoever trusts it.
    torch.load(path, weights_only=False)
    assert proof.exists()
    proof.unlink()
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "instance"})
    beside = tmp_path / "beside"
    beside.mkdir()
    torch.save(syn(), beside / "images_best.pt")
    (beside / "labels_best.pt").write_bytes(path.read_bytes())
    reads = [
        lambda: import_images(path, **GIVEN),
        lambda: describes_itself(path),
        lambda: import_images(beside, **GIVEN),
        lambda: import_images(beside / "images_best.pt", **GIVEN, labels=path),
        lambda: import_trajectories([path], tmp_path / "out", spec, real=digits[0], disable_tqdm=True),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"refused: reading it would run code \((posix|nt)\.system\)") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_numpy_numbers_are_allowed_only_while_a_file_is_read(tmp_path):
    path = tmp_path / "res_DC.pt"
    torch.save({"data": [[syn(), blocks()]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)
    import_images(path, **GIVEN)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        ({"images": syn().double().index_fill(0, torch.tensor(3), torch.nan)}, {}, "image 3 of .* 'dog'. has NaN"),
        ({"images": syn().index_fill(0, torch.tensor(5), torch.inf)}, {}, "image 5 of .* 'eel'. has NaN or infinite"),
        ({"images": syn().long()}, {}, "expected .N, C, H, W., floats or uint8"),
        ({"images": syn()[0]}, {}, r"holds images \(3, 8, 8\)"),
        ({"labels": blocks()[:5]}, {}, r"labels of .* have shape \(5,\); expected \(6,\)"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, {}, "go from 0 to 3; expected whole numbers from 0 to 2"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, -1])}, {}, "go from -1 to 2"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 1.5])}, {}, "expected whole numbers"),
        ({"labels": torch.tensor([0, 0, 1, 1, 0, 0])}, {}, "no image of class 'eel'"),
        ({"labels": torch.rand(6, 4)}, {}, r"expected \(6,\), or \(6, 3\)"),
        ({"soft_labels": torch.full((6, 3), torch.nan)}, {}, "soft labels of .* have NaN"),
        ({"soft_labels": [0.5]}, {}, "soft_labels of .* are a list"),
        ({"labels": "cats"}, {}, "are a str; expected a tensor"),
        ({"lr": -0.01}, {}, "learning rate of .* is -0.01; expected one above 0"),
        ({"lr": "0.1"}, {}, "is a str; expected one number"),
        ({}, {"class_names": None}, "does not name its classes; give the source data"),
        ({}, {"mean": None}, "does not say how its images were normalised"),
        ({}, {"mean": [0.5]}, "expected one number per channel"),
        ({}, {"space": "zca"}, "--space is 'zca'; expected one of auto, network, pixels"),
        ({}, {"class_names": ["cat", "dog", "cat"]}, "named twice"),
        ({}, {"class_names": ["cat", "dog"]}, "for 2 classes"),
    ],
)
def test_what_does_not_fit_is_one_line(content, changes, says, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"images": syn(), "labels": blocks(), **content}, path)
    with pytest.raises(ValueError, match=says) as caught:
        import_images(path, **{**GIVEN, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # of prototypes and betas
@pytest.mark.parametrize(
    "value",
    [
        *(syn().to_sparse(), torch.eye(6).to_sparse_csr(), syn().cfloat(), syn().to("meta")),
        *(torch.nested.nested_tensor([syn()[0], syn()[1]]), syn().to(torch.float8_e5m2), torch.tensor(1.0)),
        *(torch.tensor(0.5).expand(6, 3, 90_000, 90_000), torch.empty(6, 3, 0, 8), "text", [], 1j, b"bytes"),
    ],
)
def test_tensors_of_another_kind_are_one_line_that_names_the_file(value, tmp_path):
    path = tmp_path / "x.pt"
    contents = [(value, {}), ([value, blocks()], {}), ([syn(), value], {}), ({"images": value}, {})]
    for content, options in [*contents, ({"x": value, "labels": blocks()}, {"images_key": "x"})]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"x\.pt") as caught:
            import_images(path, **GIVEN, **options)
        assert "\n" not in str(caught.value)


def test_tensors_that_lie_otherwise_in_memory_are_read_as_they_are(tmp_path):
    large = torch.rand(12, 3, 16, 16)
    for images in (
        syn()[:1].expand(6, 3, 8, 8),
        large[::2, :, ::2, 1::2],
        syn().mT,
        syn().to(memory_format=torch.channels_last),
    ):
        torch.save([images, blocks()], tmp_path / "x.pt")
        assert torch.equal(import_images(tmp_path / "x.pt", **GIVEN, space="network").floats(), images)


UNFETCHED = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "is a pointer of Git LFS",
    b"\n <!DOCTYPE html>\n<html><title>Sign in</title>": "is a page or a message of a server",
    b"<?xml version='1.0'?>\n<Error>": "is a page or a message of a server",
    b'{"error":\n"not found"}': "is a page or a message of a server",
    b"": "it is empty",
    b"Not Found": "",
    b"\x00": "",
}


@pytest.mark.parametrize("content", UNFETCHED)
@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.npy", "replay_buffer_0.pt", "cat/0.png", "eel/0.png"])
def test_what_stands_in_the_place_of_a_file_that_was_not_fetched_is_named(name, content, tmp_path):
    for folder in NAMES:
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    (tmp_path / name).write_bytes(content)
    spec = StudentSpec("convnet_d1", 3, 3, (8, 8), {"width": 4, "norm": "instance"})
    reads = {
        "x": lambda: import_images(tmp_path / name, **GIVEN),
        "replay_buffer_0": lambda: import_trajectories([tmp_path / name], tmp_path / "out", spec, **GIVEN),
        "0": lambda: import_image_folder(tmp_path, **GIVEN),
    }
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{UNFETCHED[content]}") as caught:
        reads[Path(name).stem]()
    assert "\n" not in str(caught.value)


def test_a_folder_with_the_name_of_a_picture_is_named(tmp_path):
    for folder in NAMES:
        (tmp_path / folder / "0.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cat/0\.png cannot be read \(Is a directory\)"):
        import_image_folder(tmp_path, **GIVEN)


@pytest.mark.filterwarnings("ignore")  # quantized tensors go from a later torch
def test_quantized_tensors_are_one_line_that_names_the_file(tmp_path):
    torch.save(torch.quantize_per_tensor(syn(), 0.1, 0, torch.quint8), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds a quint8 tensor"):
        import_images(tmp_path / "x.pt", **GIVEN)


def test_images_of_other_data_are_refused(digits, tmp_path):
    torch.save({"images": syn(), "labels": blocks()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"holds images 3x8x8 .* and the source data are 1x8x8"):
        import_images(tmp_path / "x.pt", real=digits[0])
    was = DistilledSet(noise(3, 1, 8, 8), torch.arange(3), NAMES, Preprocessing(1, (8, 8), (0.5,), (0.2,)))
    with pytest.raises(ValueError, match="preprocessed otherwise than the source data are"):
        import_images(was.export_pt(tmp_path / "set.pt"), real=digits[0])
    own = DistilledSet(noise(3, 1, 8, 8), torch.arange(3), NAMES, digits[0].preprocessing)
    with pytest.raises(ValueError, match="the classes are cat, dog, eel and those of the source data 0, 1, 2"):
        import_images(own.export_pt(tmp_path / "set.pt"), real=digits[0])


def test_a_folder_in_which_no_file_stands_out_lists_them(tmp_path):
    with pytest.raises(ValueError, match=r"\(none\); name the one"):
        import_images(tmp_path, **GIVEN)
    for name in ("images_0.pt", "images_500.pt", "labels_0.pt"):
        torch.save(syn(), tmp_path / name)
    with pytest.raises(ValueError, match=r"images_0\.pt, images_500\.pt\); name the one"):
        import_images(tmp_path, **GIVEN)


@pytest.mark.parametrize("length", [0, 10, 400])
def test_a_file_that_is_cut_off_or_something_else_is_one_line(length, tmp_path):
    path = tmp_path / "images_best.pt"
    torch.save(syn(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        import_images(path, **GIVEN)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"\x89PNG\r\n" + bytes(length))
    with pytest.raises(ValueError, match=r"cannot be read|refused"):
        import_images(path, **GIVEN)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="holds keys a; expected a tensor of images"):
        import_images(path, **GIVEN)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_read_or_refused_in_one_line(zipped, tmp_path):
    path = tmp_path / "res_DC.pt"
    content = {"data": [[syn(), blocks()]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    said = []
    for _ in range(60):
        damaged = bytearray(whole)
        where = draw.integers(len(damaged) if draw.random() < 0.5 else 600, size=4)
        for place, value in zip(where, draw.integers(256, size=4), strict=True):
            damaged[place] = value
        path.write_bytes(damaged)
        try:
            import_images(path, **GIVEN)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 10
    assert not any("\n" in line for line in said)


# Trajectories


def dc_convnet(channels: int = 3, width: int = 6, depth: int = 2, classes: int = 3, size: int = 8) -> nn.Sequential:
    """The ConvNet of DC and MTT, from its description alone."""
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [nn.Conv2d(channels if block == 0 else width, width, 3, padding=1)]
        layers += [nn.GroupNorm(width, width, affine=True), nn.ReLU(), nn.AvgPool2d(2, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (size // 2**depth) ** 2, classes))


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, lr: float = 0.05) -> list[list[torch.Tensor]]:
    """A trajectory as MTT keeps it, with copies."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    timestamps = [[p.detach().cpu().clone() for p in net.parameters()]]
    for _ in range(epochs):
        for batch in torch.arange(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        timestamps.append([p.detach().cpu().clone() for p in net.parameters()])
    return timestamps


SPEC = StudentSpec("convnet_d2", 3, 3, (8, 8), {"width": 6, "norm": "instance"})


@pytest.fixture(scope="module")
def buffers(tmp_path_factory) -> tuple[Path, list[nn.Module], list]:
    """Two files of three experts, the last networks themselves, and the trajectories."""
    folder = tmp_path_factory.mktemp("buffers")
    torch.manual_seed(0)
    nets = [dc_convnet() for _ in range(3)]
    x, y = noise(60, 3, 8, 8), torch.arange(60) % 3
    trajectories = [train(net, x, y, 12) for net in nets]
    torch.save(trajectories[:2], folder / "replay_buffer_2.pt")
    torch.save(trajectories[2:], folder / "replay_buffer_10.pt")
    return folder, nets, trajectories


def test_segments_of_imported_buffers_are_the_original_tensors(buffers, tmp_path):
    folder, _, trajectories = buffers
    experts = import_trajectories([folder], tmp_path / "experts", SPEC, **GIVEN, disable_tqdm=True)
    assert (experts.num_experts, experts.num_epochs) == (3, 12)
    for expert, snapshots in enumerate(trajectories):
        for start in range(12):
            found = experts.segment(expert, start, 1)
            for theta, parts in zip(found, snapshots[start : start + 2], strict=True):
                assert torch.equal(theta, torch.cat([part.reshape(-1) for part in parts]))
    files = experts.config["imported_from"]["files"]
    assert [file["file"] for file in files] == ["replay_buffer_2.pt", "replay_buffer_10.pt"]
    assert files[1]["sha256"] == hashlib.sha256((folder / "replay_buffer_10.pt").read_bytes()).hexdigest()
    assert not list(tmp_path.glob(".importing-*"))


def test_the_flat_model_of_an_imported_row_is_the_network_that_was_trained(buffers, tmp_path):
    folder, nets, _ = buffers
    experts = import_trajectories([folder], tmp_path / "experts", SPEC, **GIVEN, disable_tqdm=True)
    x = noise(5, 3, 8, 8, seed=3)
    model = experts.flat_model()
    for expert, net in enumerate(nets):
        torch.testing.assert_close(model(experts.row(expert, 12), x), net(x), rtol=1e-5, atol=1e-5)


def test_what_is_not_known_of_imported_experts_is_left_out_everywhere(buffers, tmp_path):
    folder, _, _ = buffers
    experts = import_trajectories(
        [folder / "replay_buffer_2.pt"], tmp_path / "experts", SPEC, **GIVEN, method="mtt", disable_tqdm=True
    )
    assert "accuracy" not in experts.summary()
    assert experts.config["results"]["epoch_loss"] == [[None] * 12] * 2
    card = (tmp_path / "experts" / "README.md").read_text()
    assert "Imported from 1 file" in card
    assert "None" not in card
    assert str(tmp_path) not in card + json.dumps(experts.config)
    view = experts.limited(1, 5)
    assert (view.num_experts, view.num_epochs) == (1, 5)
    again = view.save_pretrained(tmp_path / "limited")
    assert torch.equal(ExpertTrajectories.from_pretrained(again).row(0, 5), experts.row(0, 5))


def test_accuracies_are_measured_on_the_source_where_it_is_given(digits, tmp_path, caplog):
    real, test = digits
    torch.manual_seed(0)
    net = dc_convnet(channels=1, width=16, classes=10)
    x, y = real.images(range(len(real))), real.labels
    trajectory = train(net, x, y, 8, lr=0.1)
    torch.save([trajectory], tmp_path / "replay_buffer_0.pt")
    spec = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 16, "norm": "instance"})
    experts = import_trajectories(
        [tmp_path / "replay_buffer_0.pt"], tmp_path / "experts", spec, real=real, test=test, disable_tqdm=True
    )
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean().item()
        right_test = (net(test.images(range(len(test)))).argmax(1) == test.labels).float().mean().item()
    assert right > 0.5
    assert experts.config["results"]["train_accuracy"] == [pytest.approx(right, abs=0.004)]
    assert experts.config["results"]["test_accuracy"] == [pytest.approx(right_test, abs=0.02)]
    assert "test accuracy" in experts.summary()
    assert "chance" not in caplog.text
    assert "pads gray images by 3 pixels" in caplog.text
    experts.check_matches(real, spec)


def test_experts_at_chance_are_imported_with_a_warning_that_names_the_preprocessing(whitened, tmp_path, caplog):
    torch.manual_seed(1)
    net = dc_convnet(channels=1, width=16, classes=10)
    torch.save([train(net, noise(64, 1, 8, 8), torch.zeros(64, dtype=torch.long), 3)], tmp_path / "replay_buffer_0.pt")
    spec = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 16, "norm": "instance"})
    import_trajectories([tmp_path], tmp_path / "experts", spec, real=whitened[0], disable_tqdm=True)
    assert re.search(r"chance is 10\.0 %: most likely .* other preprocessing than the ZCA whitening", caplog.text)


def test_snapshots_that_are_aliases_of_the_last_one_are_refused(tmp_path):
    torch.manual_seed(0)
    net = dc_convnet()
    timestamps = [[p.detach().cpu() for p in net.parameters()]]
    with torch.no_grad():
        for _ in range(3):
            for p in net.parameters():
                p.add_(1)
            timestamps.append([p.detach().cpu() for p in net.parameters()])
    torch.save([timestamps], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=r"all 4 snapshots of expert 0 .* are the same: they are aliases"):
        import_trajectories([tmp_path], tmp_path / "experts", SPEC, **GIVEN, disable_tqdm=True)
    assert not (tmp_path / "experts").exists()
    assert not list(tmp_path.glob(".importing-*"))


def refuse(content: object, tmp_path: Path, says: str, spec: StudentSpec = SPEC, **changes) -> None:
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=says) as caught:
        import_trajectories([tmp_path], tmp_path / "experts", spec, **{**GIVEN, **changes}, disable_tqdm=True)
    assert "\n" not in str(caught.value)


def test_buffers_that_do_not_fit_are_one_line(buffers, tmp_path):
    _, _, trajectories = buffers
    wide = StudentSpec("convnet_d2", 3, 3, (8, 8), {"width": 8, "norm": "instance"})
    refuse(trajectories, tmp_path, r"parameter 0 of epoch 0 .* has shape \(6, 3, 3, 3\), .* is \(8, 3, 3, 3\)", wide)
    deep = StudentSpec("convnet_d3", 3, 3, (8, 8), {"width": 6, "norm": "instance"})
    refuse(trajectories, tmp_path, r"parameter 8 .* has shape \(3, 24\), and .* \(features.8.weight\) is", deep)
    shuffled = [[[*snapshot[1::-1], *snapshot[2:]] for snapshot in trajectories[0]]]
    refuse(shuffled, tmp_path, r"parameter 0 .* has shape \(6,\)")
    refuse([trajectories[0], trajectories[1][:-1]], tmp_path, "an expert of 11 epochs and those before have 12")
    refuse([trajectories[0][:1]], tmp_path, "no list of two or more snapshots")
    refuse([], tmp_path, "expected list")
    refuse(trajectories[0], tmp_path, "epoch 0 of expert 0 .* is no list of tensors")
    broken = [[torch.full_like(part, torch.nan) for part in snapshot] for snapshot in trajectories[0]]
    refuse([broken], tmp_path, "NaN or infinite")
    refuse(trajectories, tmp_path, "the student has 3 classes and 2 are named", class_names=["cat", "dog"])
    assert not (tmp_path / "experts").exists()


def test_what_a_killed_save_wrote_aside_is_nothing_to_an_import(buffers, tmp_path):
    folder, _, _ = buffers
    aside = tmp_path / "experts" / f"{STAGING}x" / "experts"
    aside.mkdir(parents=True)
    (aside / "README.md").touch()
    experts = import_trajectories([folder], tmp_path / "experts", SPEC, **GIVEN, disable_tqdm=True)
    assert experts.num_experts


def test_what_a_folder_holds_is_never_replaced(buffers, tmp_path):
    folder, _, _ = buffers
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts" / "expert-00000.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        import_trajectories([folder], tmp_path / "experts", SPEC, **GIVEN, disable_tqdm=True)
    assert (tmp_path / "experts" / "expert-00000.safetensors").read_bytes() == b"mine"
    file = folder / "replay_buffer_2.pt"
    with pytest.raises(ValueError, match="named twice"):
        import_trajectories([file, folder], tmp_path / "new", SPEC, **GIVEN, disable_tqdm=True)


# Folders of images


def pictures(root: Path, folders: list[str], *, ipc: int = 2, size: int = 8, name: str = "class{:03d}_id{:03d}.png"):
    """Lossless pictures, so that values can be compared; class c has the gray level 40 c + id."""
    for label, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(ipc):
            level = 40 * label + number
            Image.new("RGB", (size, size), (level, level, 9)).save(root / folder / name.format(label, number))


@pytest.mark.parametrize(
    "folders",
    [["new000", "new001", "new002"], ["00000", "00001", "00002"], ["0", "1", "2"], NAMES],
    ids=lambda folders: folders[1],
)
def test_folders_by_number_or_name_become_the_classes_of_the_source(folders, tmp_path):
    pictures(tmp_path, folders)
    distilled = import_image_folder(tmp_path, **GIVEN, method="sre2l")
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert distilled.images_uint8()[:, 0, 0, 0].tolist() == [0, 1, 40, 41, 80, 81]
    assert distilled.images_uint8()[:, 2].unique().tolist() == [9]
    assert distilled.config["imported_from"]["files"][0]["file"] == tmp_path.name


def test_jpeg_files_are_decoded_as_pillow_does(tmp_path):
    pixels = np.asarray(noise(3, 8, 8, 3).sigmoid().mul(255).byte())
    for label in range(3):
        (tmp_path / f"new{label:03d}").mkdir()
        path = tmp_path / f"new{label:03d}" / f"class{label:03d}_id000.jpg"
        Image.fromarray(pixels[label]).save(path)
        with Image.open(path) as image:
            pixels[label] = np.asarray(image)
    distilled = import_image_folder(tmp_path, **GIVEN)
    assert np.array_equal(distilled.images_uint8().permute(0, 2, 3, 1).numpy(), pixels)


def test_numbers_count_in_all_classes_of_the_source_when_some_are_chosen(tmp_path):
    pictures(tmp_path, ["new000", "new001", "new002"])
    given = {**GIVEN, "class_names": ["eel", "cat"]}
    distilled = import_image_folder(tmp_path, **given, original_classes=NAMES)
    assert distilled.labels.tolist() == [0, 0, 1, 1]
    assert distilled.images_uint8()[:, 0, 0, 0].tolist() == [80, 81, 0, 1]


def test_our_own_image_folders_come_back(tmp_path):
    names = ["a/b", ".hidden", "eel"]
    raw = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    preprocessing = Preprocessing(3, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    was = DistilledSet(preprocessing(raw), blocks(), names, preprocessing)
    folder = was.export_image_folder(tmp_path / "out") / "train"
    now = import_image_folder(folder, **{**GIVEN, "class_names": names})
    assert torch.equal(now.images_uint8(), raw)
    assert torch.equal(now.labels, was.labels)


def test_pictures_are_brought_to_the_size_that_is_asked_for(tmp_path):
    pictures(tmp_path, NAMES, size=16)
    small = import_image_folder(tmp_path, **GIVEN, resolution=[8])
    assert tuple(small.pixel_values.shape) == (6, 3, 8, 8)
    assert small.images_uint8()[:, 0, 4, 4].tolist() == [0, 1, 40, 41, 80, 81]
    Image.new("RGB", (9, 9)).save(tmp_path / "eel" / "z.png")
    (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cat/a\.png. cannot be dec.*eel/z\.png: the image is 9x9 .* expected 16x16"):
        import_image_folder(tmp_path, **GIVEN)


def test_source_data_say_colour_size_and_preprocessing(digits, tmp_path):
    real, _ = digits
    for label in range(10):
        (tmp_path / f"{label:05d}").mkdir()
        raw = real.uint8(real.class_rows(label)[:1])[0, 0].numpy()
        Image.fromarray(raw).save(tmp_path / f"{label:05d}" / "x.png")
    distilled = import_image_folder(tmp_path, real=real)
    wanted = torch.cat([real.images(real.class_rows(label)[:1]) for label in range(10)])
    assert torch.equal(distilled.floats(), wanted)
    assert distilled.config["source"] == real.provenance


def test_folders_that_do_not_fit_are_one_line(tmp_path):
    def refuse(says: str, **changes) -> None:
        with pytest.raises(ValueError, match=says) as caught:
            import_image_folder(tmp_path / "root", **{**GIVEN, **changes})
        assert "\n" not in str(caught.value)

    refuse("is no folder")
    (tmp_path / "root").mkdir()
    refuse("holds no folders")
    pictures(tmp_path / "root", ["cat", "dog", "n01440764"])
    refuse(r"1 of 3 folders .* are no class of the source \(n01440764\)")
    (tmp_path / "root" / "n01440764").rename(tmp_path / "root" / "eel")
    refuse(r"no folder for 1 of 4 classes \(fox\)", class_names=[*NAMES, "fox"])
    refuse("does not name its classes", class_names=None)
    (tmp_path / "root" / "dog" / "a.jpg").write_bytes(b"no picture")
    refuse(r"dog/a\.jpg. cannot be decoded")
    (tmp_path / "root" / "dog" / "a.jpg").unlink()
    refuse("does not say how its images were normalised", mean=None)
    for path in (tmp_path / "root" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    refuse("dog holds no JPEG or PNG files")


def test_numbers_are_refused_where_names_are_other_numbers(tmp_path):
    pictures(tmp_path / "numbered", ["00000", "00001", "00002"])
    pictures(tmp_path / "named", ["0", "1", "10", "2"])
    named = import_image_folder(tmp_path / "named", **{**GIVEN, "class_names": ["0", "1", "10", "2"]})
    assert named.images_uint8()[::2, 0, 0, 0].tolist() == [0, 40, 80, 120]
    with pytest.raises(
        ValueError, match=r"00001 of the folders in .* could be class '10' by its place or class '1' by its name"
    ):
        import_image_folder(tmp_path / "numbered", **{**GIVEN, "class_names": ["0", "10", "2"]})


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_leave_the_folder_are_refused(what, tmp_path):
    pictures(tmp_path / "outside", NAMES)
    pictures(tmp_path / "root", NAMES)
    if what == "file":
        (tmp_path / "root" / "dog" / "z.png").symlink_to(tmp_path / "outside" / "dog" / "class001_id000.png")
    else:
        (tmp_path / "root" / "dog").rename(tmp_path / "dog")
        (tmp_path / "root" / "dog").symlink_to(tmp_path / "outside" / "dog", target_is_directory=True)
    with pytest.raises(ValueError, match=r"root/dog.* leads out of"):
        import_image_folder(tmp_path / "root", **GIVEN)


# The recipe


def run(recipes, tmp_path, *flags: object):
    return recipes("import", [*map(str, flags), "--disable_tqdm", "True"], tmp_path)


DIGITS = ("--max_train_samples", 100, "--max_test_samples", 30)


def test_the_recipe_imports_images_and_says_the_call_that_loads_them(recipes, tmp_path):
    torch.save(noise(10, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    done = run(recipes, tmp_path, "--images", "images_best.pt", "--method", "mtt", *DIGITS)
    assert done.status == [0], done.err
    assert done.out.splitlines()[-1].endswith('load: DistilledSet.from_pretrained("outputs/imported")')
    found = DistilledSet.from_pretrained(tmp_path / "outputs" / "imported")
    assert torch.equal(found.pixel_values, noise(10, 1, 8, 8))
    assert found.config["source"]["name"] == "digits"
    again = run(recipes, tmp_path, "--images", "images_best.pt", *DIGITS)
    assert again.status == [1]
    assert again.err.splitlines()[-1] == "error: --output_dir outputs/imported is not empty; give a new folder"


def test_files_that_are_not_there_are_named_before_the_source_data_are_read(recipes, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    for flags, says in (
        (("--images", "a.pt", "--labels", "no.pt"), "--labels no.pt: there is no such"),
        (("--trajectories", "no", "a.pt", "none"), "--trajectories no, --trajectories none: there is no such"),
    ):
        done = run(recipes, tmp_path, *flags, "--dataset_name", "./nowhere")
        assert done.status == [2]
        assert says in done.err


def test_the_recipe_needs_no_data_for_what_describes_itself(recipes, tmp_path):
    preprocessing = Preprocessing(3, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    DistilledSet(syn(), blocks(), NAMES, preprocessing).export_pt(tmp_path / "set.pt")
    done = run(recipes, tmp_path, "--images", "set.pt", "--output_dir", "set")
    assert done.status == [0], done.err
    assert DistilledSet.from_pretrained(tmp_path / "set").class_names == NAMES


def test_the_recipe_cuts_images_by_their_factor_and_asks_for_labels(recipes, tmp_path):
    pixels = noise(10, 1, 8, 8).sigmoid()
    torch.save([pixels, torch.arange(10)], tmp_path / "data.pt")
    asked = run(recipes, tmp_path, "--images", "data.pt", *DIGITS)
    assert asked.err.splitlines()[-1].startswith("error: data.pt does not say of how many parts its images consist")
    done = run(recipes, tmp_path, "--images", "data.pt", "--factor", 2, *DIGITS)
    assert done.status == [0], done.err
    assert len(DistilledSet.from_pretrained(tmp_path / "outputs" / "imported")) == 40
    torch.save({"a": {"images": pixels, "classes": torch.arange(10).flip(0)}, "b": pixels}, tmp_path / "x.pt")
    keys = ["--images_key", "a.images", "--labels_key", "a.classes", "--output_dir", "set"]
    done = run(recipes, tmp_path, "--images", "x.pt", *keys, *DIGITS)
    assert done.status == [0], done.err
    assert DistilledSet.from_pretrained(tmp_path / "set").labels.tolist() == list(range(9, -1, -1))


def test_the_recipe_imports_a_folder_by_numbers_of_all_classes(recipes, tmp_path):
    for label in (3, 7):
        (tmp_path / "syn" / f"new{label:03d}").mkdir(parents=True)
        Image.new("L", (8, 8), label).save(tmp_path / "syn" / f"new{label:03d}" / "class_id000.png")
    done = run(recipes, tmp_path, "--image_folder", "syn", "--classes", 7, 3, *DIGITS)
    assert done.status == [0], done.err
    found = DistilledSet.from_pretrained(tmp_path / "outputs" / "imported")
    assert found.class_names == ["7", "3"]
    assert found.images_uint8()[:, 0, 0, 0].tolist() == [7, 3]


def test_methods_read_the_trajectories_that_the_recipe_imports(recipes, tmp_path):
    torch.manual_seed(0)
    trajectory = train(dc_convnet(1, 4, 1, 10), noise(64, 1, 8, 8), torch.arange(64) % 10, 3)
    torch.save([trajectory], tmp_path / "replay_buffer_0.pt")
    student = ("--student", "convnet_d1", "--student_width", 4, "--max_train_samples", 100, "--max_test_samples", 30)
    done = run(recipes, tmp_path, "--trajectories", "replay_buffer_0.pt", *student, "--output_dir", "experts")
    assert done.status == [0], done.err
    assert done.out.splitlines()[-1].endswith('load: ExpertTrajectories.from_pretrained("experts")')
    flags = ["--experts", "experts", "--max_steps", 1, "--syn_steps", 2, "--expert_epochs", 1, "--max_start_epoch", 2]
    flags += [
        "--lr_img",
        1,
        "--expert_train_epochs",
        3,
        "--eval_nets",
        1,
        "--eval_seeds",
        1,
        "--eval_protocol",
        "tiny",
        "--output_dir",
        "set",
    ]
    done = recipes("tesla", [*map(str, [*flags, *student]), "--disable_tqdm", "True"], tmp_path)
    assert done.status == [0], done.err
    assert DistilledSet.from_pretrained(tmp_path / "set").num_classes == 10


def digits_and_their_labels(folder: Path, epochs: int = 3, batch: int = 8) -> None:
    """Three pictures of each digit in `syn`, and in `fkd` labels of their views as FKD's script leaves them."""
    images, classes = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(classes == label)[:3] for label in range(10)])
    for number, row in enumerate(rows):
        (folder / "syn" / f"{classes[row]:05d}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((images[row].reshape(8, 8) * 255 / 16).round().astype(np.uint8))
        picture.save(folder / "syn" / f"{classes[row]:05d}" / f"class_id{number % 3:03d}.png")
    draw = np.random.default_rng(0)
    for epoch, order in enumerate(sampler_order(30, epochs)):
        (folder / "fkd" / f"epoch_{epoch}").mkdir(parents=True)
        for number, own in enumerate(order.split(batch)):
            n = len(own)
            crops = torch.tensor([[0.125, 0, 0.875, 1]]).repeat(n, 1)
            logits = 6 * F.one_hot(own // 3, 10) + torch.from_numpy(draw.normal(size=(n, 10)))
            state = [crops, torch.zeros(n, dtype=torch.bool), torch.randperm(n), 0.8, [2, 3, 4, 7], logits.half()]
            torch.save(state, folder / "fkd" / f"epoch_{epoch}" / f"batch_{number}.tar")


def test_students_are_trained_on_the_labels_of_every_epoch_that_the_recipe_imports(recipes, hub, tmp_path):
    digits_and_their_labels(tmp_path)
    done = run(recipes, tmp_path, "--image_folder", "syn", *DIGITS, "--output_dir", "set")
    assert done.status == [0], done.err
    home = f"{hub.namespace}/labels"
    labels = ["--epoch_labels", "fkd", "--distilled_dataset", "set", "--output_dir", "labels"]
    done = run(recipes, tmp_path, *labels, "--push_to_hub", "True", "--hub_model_id", home, "--hub_token", hub.token)
    assert done.status == [0], done.err
    assert f'load: EpochLabels.from_pretrained("{home}"' in done.out.splitlines()[-1]
    assert EpochLabels.from_pretrained(tmp_path / "labels").config["source"]["name"] == "digits"
    flags = {"distilled_dataset": "set", "student": "convnet_d1", "protocol": "crops-tiny", "num_seeds": 1}
    flags |= {"full_data": False, "disable_tqdm": True, "hub_token": hub.token}
    for where in ("labels", home):
        done = recipes("evaluate", {**flags, "labels": where, "output_dir": "evaluated"}, tmp_path)
        assert done.status == [0], done.err
    (row,) = [row for row in DistilledSet.from_pretrained(tmp_path / "evaluated").report.rows if row.labels == "soft"]
    assert row.set == "distilled"
    assert "stored labels" in row.protocol
    raw = recipes("evaluate", {**flags, "labels": "fkd"}, tmp_path)
    assert raw.status == [1]
    assert "make a folder of this package of them first, with recipes/import.py --epoch_labels fkd" in raw.err


def test_labels_of_another_set_are_refused_by_the_recipe_and_leave_nothing(recipes, tmp_path):
    digits_and_their_labels(tmp_path, epochs=1)
    (tmp_path / "syn" / "00004" / "class_id002.png").unlink()
    done = run(recipes, tmp_path, "--image_folder", "syn", *DIGITS, "--output_dir", "set")
    assert done.status == [0], done.err
    done = run(recipes, tmp_path, "--epoch_labels", "fkd", "--distilled_dataset", "set", "--output_dir", "labels")
    assert done.status == [1]
    assert done.err.splitlines()[-1].startswith("error: fkd/epoch_0 labels 30 images, and there are 29")
    assert not list(tmp_path.glob("labels/**/*.parquet"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give one of --images, --image_folder, --epoch_labels and --trajectories"),
        (["--epoch_labels", "fkd"], "--epoch_labels and --distilled_dataset go together"),
        (["--images", "x.pt", "--image_folder", "y"], "give one of"),
        (["--images", "x.pt"], "x.pt: there is no such file"),
        (["--trajectories", "x.pt", "--class_names", "a", "b"], "need the data they were trained on"),
        (["--trajectories", "x.pt", *DIGITS], "x.pt: there is no such file"),
        (["--images", "evil.pt"], "evil.pt is refused"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(recipes, tmp_path, flags, says):
    torch.save(System(tmp_path / "proof"), tmp_path / "evil.pt")
    done = run(recipes, tmp_path, *flags)
    assert done.status[0] in (1, 2)
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert says in line
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "outputs").exists()
