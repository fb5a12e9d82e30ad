"""Files as the authors' programs write them are read as they meant them, and what could be meant otherwise is asked."""

import argparse
import copy
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.importing import import_images
from hf_distill.importing.files import load_pt
from hf_distill.importing.images import enlarged_parts

NAMES = ["cat", "dog", "eel"]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
GIVEN = {"class_names": NAMES, "mean": MEAN, "std": STD}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def syn(ipc: int = 2, **kwargs) -> torch.Tensor:
    return noise(ipc * len(NAMES), 3, 8, 8, **kwargs)


def blocks(ipc: int = 2) -> torch.Tensor:
    return torch.tensor(np.array([np.ones(ipc) * i for i in range(len(NAMES))]), dtype=torch.long).view(-1)


def shuffled() -> torch.Tensor:
    return torch.tensor([2, 2, 0, 0, 1, 1])


def saved(path: Path, content: object, **kwargs) -> Path:
    torch.save(content, path, **kwargs)
    return path


def standardised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def refuse(path: Path, *words: str, **options) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        import_images(path, **{**GIVEN, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# APM


@pytest.mark.parametrize("accuracies", [{"ConvNet": []}, {"ConvNet": [0.5, np.float64(0.25)]}])
def test_images_and_logits_of_apm_are_one_pair_whose_classes_are_blocks(accuracies, tmp_path):
    image_syn = noise(60, 3, 8, 8).requires_grad_()
    classes = torch.arange(3).repeat_interleave(20)
    label_syn = 2 * F.one_hot(classes, 3) + 2 * noise(60, 3, seed=2)  # a teacher that errs
    assert 0.4 < (label_syn.argmax(1) == classes).float().mean() < 0.9
    image_syn_eval, label_syn_eval = copy.deepcopy(image_syn.detach().cpu()), copy.deepcopy(label_syn.detach().cpu())
    data_save = [image_syn_eval, label_syn_eval]
    path = (
        tmp_path / "gap2_ce0.1_CIFAR10_ConvNet_20ipc_initreal_lossl1_lrimg1.0_sepoch250_ev1000_mom0.5_lrnet0.02_best.pt"
    )
    torch.save({"data": data_save, "accs_all_exps": accuracies}, path)
    distilled = import_images(tmp_path, **GIVEN, method="apm")
    assert torch.equal(distilled.pixel_values, image_syn)
    assert torch.equal(distilled.soft_labels, label_syn.half())
    assert torch.equal(distilled.labels, classes)


def test_teachers_that_mostly_err_leave_the_classes_of_the_blocks(tmp_path):
    classes = torch.arange(10).repeat_interleave(20)
    logits = F.one_hot(classes, 10) + noise(200, 10, seed=2)
    share = (logits.argmax(1) == classes).float().mean()
    assert 0.2 < share < 0.45
    path = saved(tmp_path / "apm.pt", {"data": [noise(200, 3, 8, 8), logits], "accs_all_exps": {}})
    names = {"class_names": [str(number) for number in range(10)]}
    assert torch.equal(import_images(path, **{**GIVEN, **names}).labels, classes)
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    saved(path, {"data": [noise(200, 3, 8, 8), logits[mixed]], "accs_all_exps": {}})
    assert torch.equal(import_images(path, **{**GIVEN, **names}).labels, logits[mixed].argmax(1))


# IDC


class Synthesizer:
    """What IDC's program keeps of its images, and what it saves."""

    def __init__(self, ipc: int) -> None:
        self.data = torch.randn(size=(3 * ipc, 3, 8, 8), generator=torch.Generator().manual_seed(0), requires_grad=True)
        self.data.data = torch.clamp(self.data.data / 4 + 0.5, min=0.0, max=1.0)
        self.data.data += 0.02  # the steps after it clips
        self.targets = blocks(ipc)

    def save(self, folder: Path, options: dict | None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save([self.data.detach().cpu(), self.targets.cpu()], folder / "data.pt")
        if options is not None:
            args = argparse.Namespace(dataset="cifar10", ipc=2, size=8, **options)
            with open(folder / "args.txt", "w") as file:
                json.dump(args.__dict__, file, indent=2)
        return folder / "data.pt"


def enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with pixels as squares: by the book, pixel by pixel."""

    def places(size: int, to: int) -> list[tuple[int, int, float]]:
        centres = [max((i + 0.5) * size / to - 0.5, 0) for i in range(to)]
        return [(int(c), min(int(c) + 1, size - 1), c - int(c)) for c in centres]

    out = np.empty((height, width))
    for y, (top, bottom, v) in enumerate(places(plane.shape[0], height)):
        for x, (left, right, u) in enumerate(places(plane.shape[1], width)):
            above = plane[top, left] * (1 - u) + plane[top, right] * u
            below = plane[bottom, left] * (1 - u) + plane[bottom, right] * u
            out[y, x] = above * (1 - v) + below * v
    return out


@pytest.mark.parametrize(("factor", "size"), [(2, 8), (3, 8), (2, 5)])
def test_parts_are_cut_and_enlarged_by_the_book(factor, size):
    images = noise(2, 1, size, size)
    side = -(-size // factor)
    expected = []
    for image in images[:, 0].numpy():
        padded = np.full((side * factor, side * factor), 0.5)
        padded[:size, :size] = image
        for row in range(factor):
            for column in range(factor):
                part = padded[row * side : (row + 1) * side, column * side : (column + 1) * side]
                expected.append(enlarged(part, size, size))
    np.testing.assert_allclose(enlarged_parts(images, factor)[:, 0], np.stack(expected), atol=1e-6)


def test_idc_images_are_pixels_whose_parts_are_what_students_see(tmp_path):
    synset = Synthesizer(2)
    path = synset.save(tmp_path / "run", {"factor": 2, "decode_type": "single"})
    assert synset.data.max() > 1
    distilled = import_images(tmp_path / "run", **GIVEN, method="idc")
    assert torch.equal(distilled.labels, torch.arange(3).repeat_interleave(8))
    torch.testing.assert_close(distilled.pixel_values.detach(), standardised(enlarged_parts(synset.data.detach(), 2)))
    told = distilled.config["imported_from"]
    assert (told["space"], told["factor"], told["images_stored"]) == ("pixels", 2, 6)
    card = (distilled.save_pretrained(tmp_path / "set") / "README.md").read_text()
    assert "6 images there, each of which is 2 x 2 images here" in card
    whole = import_images(path, **GIVEN, factor=1)
    torch.testing.assert_close(whole.pixel_values.detach(), standardised(synset.data.detach()))
    assert "factor" not in whole.config["imported_from"]


def test_the_factor_of_idc_is_read_from_beside_it_or_asked_for(tmp_path):
    synset = Synthesizer(2)
    named = synset.save(tmp_path / "conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_mix_ipc2", None)
    assert len(import_images(named, **GIVEN)) == 24
    once = synset.save(tmp_path / "conv3in_grad_mse_nd500_cut_factor1_lr0.005_random_ipc2", None)
    assert len(import_images(once, **GIVEN)) == 6
    bare = synset.save(tmp_path / "downloaded", None)
    refuse(bare, "--factor", "does not say of how many parts")
    assert len(import_images(bare, **GIVEN, factor=2)) == 24
    (bare.parent / "args.txt").write_text("not json")
    refuse(bare, "--factor")
    multi = synset.save(tmp_path / "multi", {"factor": 2, "decode_type": "multi"})
    refuse(multi, "--decode_type multi")
    refuse(bare, "--factor is 0", factor=0)
    refuse(bare, "--factor is 9", "fewer pixels", factor=9)


def test_soft_labels_and_bytes_are_repeated_with_their_parts(tmp_path):
    raw = (255 * syn().sigmoid()).byte()
    logits = 3 * F.one_hot(blocks(), 3) + noise(6, 3, seed=1)
    path = saved(tmp_path / "x.pt", {"images": raw, "labels": logits})
    distilled = import_images(path, **GIVEN, factor=2)
    assert torch.equal(distilled.soft_labels, logits.half().repeat_interleave(4, 0))
    torch.testing.assert_close(distilled.pixel_values.detach(), standardised(enlarged_parts(raw.float() / 255, 2)))


def test_a_pair_as_students_see_it_has_whole_images(tmp_path):
    distilled = import_images(saved(tmp_path / "data.pt", (syn(), shuffled())), **GIVEN)
    assert torch.equal(distilled.pixel_values, syn())
    assert torch.equal(distilled.labels, shuffled())


# Labels by other names


@pytest.mark.parametrize("name", ["labels", "targets", "target", "label", "y", "Y"])
@pytest.mark.parametrize("nested", [False, True])
def test_labels_are_known_by_their_usual_names(name, nested, tmp_path):
    content = {"images": syn(), name: shuffled(), "lr": 0.02}
    path = saved(tmp_path / "x.pt", {"step": 5, "syn": content} if nested else content)
    distilled = import_images(path, **GIVEN)
    assert torch.equal(distilled.labels, shuffled())
    assert distilled.lr.item() == pytest.approx(0.02)


LOGITS = 6 * F.one_hot(shuffled(), 3) + noise(6, 3, seed=1)


@pytest.mark.parametrize(
    ("labels", "soft"),
    [
        (shuffled(), False),
        (shuffled().tolist(), False),
        (tuple(shuffled()), False),
        (shuffled().numpy(), False),
        (shuffled().double()[:, None], False),
        (F.one_hot(shuffled(), 3).bool(), False),
        (F.one_hot(shuffled(), 3).numpy().astype(">f4"), False),
        (LOGITS, True),
        (LOGITS.tolist(), True),
        (list(LOGITS), True),
        (LOGITS.bfloat16(), True),
        (LOGITS.softmax(1).double().numpy(), True),
    ],
)
def test_labels_may_be_tensors_lists_or_arrays(labels, soft, tmp_path):
    distilled = import_images(saved(tmp_path / "x.pt", {"images": syn(), "targets": labels}), **GIVEN)
    assert torch.equal(distilled.labels, shuffled())
    assert (distilled.soft_labels is not None) == soft
    if soft:
        softmax = distilled.soft_labels.float().softmax(1)
        torch.testing.assert_close(softmax, LOGITS.softmax(1), atol=0.03, rtol=0)
    refuse(saved(tmp_path / "classes.pt", {"images": syn(), "classes": labels}), "classes", "--labels_key classes")
    asked = import_images(tmp_path / "classes.pt", **GIVEN, labels_key="classes")
    assert torch.equal(asked.labels, shuffled())


def test_what_could_be_labels_is_asked_about(tmp_path, caplog):
    path = saved(tmp_path / "x.pt", {"images": syn(), "scores": torch.rand(6), "mean": torch.rand(3)})
    refuse(path, "holds scores for 6 images", "--labels_key scores", "--labels_key none")
    assert torch.equal(import_images(path, **GIVEN, labels_key="none").labels, blocks())
    assert "no labels: 2 images for each class" in caplog.text
    saved(path, {"images": syn(), "labels": shuffled(), "logits": LOGITS})
    refuse(path, "holds labels and logits", "--labels_key labels")
    assert import_images(path, **GIVEN, labels_key="labels").soft_labels is None
    assert import_images(path, **GIVEN, labels_key="logits").soft_labels is not None
    refuse(path, "has no 'classes', which --labels_key names", "images, labels, logits", labels_key="classes")
    saved(path, [syn(), shuffled(), torch.rand(6)])
    refuse(path, "holds 1 and 2")
    assert torch.equal(import_images(path, **GIVEN, labels_key="1").labels, shuffled())
    saved(path, {"images": syn(), "labels": "cat"})
    refuse(path, "are a str")
    saved(path, {"images": syn(), "labels": ["cat"] * 6})
    refuse(path, "are a list of no numbers")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cls", shuffled()[None]),
        ("cls", shuffled()[None].tolist()),
        ("logits", LOGITS[:, :, None]),
        ("logits", LOGITS.T),
        ("zca_targets", shuffled()),
        ("mean", shuffled().float()),
        ("std", LOGITS),
        ("zca_mean", shuffled()),
        ("lr", shuffled() / 10),
        ("names", ["eel", "eel", "cat", "cat", "dog", "dog"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_with_an_axis_for_the_images_is_asked_about(name, value, tmp_path):
    path = saved(tmp_path / "x.pt", {"images": syn(), name: value})
    refuse(path, f"holds {name} for 6 images", f"--labels_key {name}")
    saved(path, {"syn": {"images": syn()}, name: value})
    refuse(path, f"holds {name} for 6 images", f"--labels_key {name}")


def test_soft_labels_that_are_not_those_of_the_images_are_asked_about(tmp_path):
    path = saved(tmp_path / "x.pt", {"syn": {"images": syn(), "labels": shuffled()}, "soft_labels": LOGITS})
    refuse(path, "holds syn.labels and soft_labels")
    saved(path, {"syn": {"images": syn(), "labels": shuffled(), "soft_labels": LOGITS}})
    assert torch.equal(import_images(path, **GIVEN).soft_labels, LOGITS.half())


@pytest.mark.parametrize("labels", [shuffled()[None], shuffled()[None, :, None], LOGITS[:, :, None], LOGITS[None]])
def test_axes_of_one_are_left_out_of_labels(labels, tmp_path):
    distilled = import_images(saved(tmp_path / "x.pt", {"images": syn(), "labels": labels}), **GIVEN)
    assert torch.equal(distilled.labels, shuffled())
    assert (distilled.soft_labels is None) == (labels.numel() == 6)


def test_one_image_of_one_class_keeps_its_labels(tmp_path):
    for count, names in ((1, ["cat"]), (1, NAMES), (3, ["cat"])):
        logits = noise(count, len(names), seed=1) + 9 * F.one_hot(torch.zeros(count).long(), len(names))
        path = saved(tmp_path / "x.pt", {"images": noise(count, 3, 8, 8), "labels": logits})
        if names == NAMES:
            assert torch.equal(import_images(path, **GIVEN).soft_labels, logits.half())
        else:
            refuse(path, "expected whole numbers", class_names=names)


def test_statistics_of_the_images_are_no_labels(tmp_path):
    statistics = {"mean": torch.rand(1, 3, 1, 1), "std": torch.rand(3, 1, 1), "lr": torch.tensor([0.1])}
    statistics |= {"zca_mean": noise(192), "zca_vectors": noise(192, 192), "zca_values": noise(192)}
    content = {"images": noise(192, 3, 8, 8), "labels": torch.arange(192) % 3, **statistics}
    assert len(import_images(saved(tmp_path / "x.pt", {"a": content}), **GIVEN)) == 192
    three = {"images": syn(1), **{name: statistics[name] for name in ("mean", "lr")}}
    assert torch.equal(import_images(saved(tmp_path / "x.pt", three), **GIVEN).labels, torch.arange(3))


def test_labels_beside_pairs_of_experiments_are_asked_about(tmp_path):
    path = saved(tmp_path / "x.pt", {"data": [[syn(), blocks()], [syn(seed=1), blocks()]], "targets": shuffled()})
    refuse(path, "holds data.1.1 and targets", "--labels_key data.1.1", experiment=1)
    assert torch.equal(import_images(path, **GIVEN, labels_key="targets").labels, shuffled())
    asked = import_images(path, **GIVEN, experiment=1, labels_key="data.1.1")
    assert torch.equal(asked.labels, blocks())
    assert torch.equal(asked.pixel_values, syn(seed=1))
    refuse(path, "has no 'y', which --labels_key names", labels_key="y")


@pytest.mark.parametrize(
    ("images", "beside"),
    [("x.pt", "y.pt"), ("data.pt", "targets.npy"), ("syn.pt", "syn_label.pth"), ("images_500.pt", "labels_best.pt")],
)
def test_labels_in_a_file_beside_are_asked_about(images, beside, tmp_path):
    path, other = saved(tmp_path / images, syn()), tmp_path / beside
    saved(tmp_path / "lr_500.pt", torch.tensor(0.1))
    saved(tmp_path / "images_499.pt", syn())
    np.save(other, shuffled().numpy()) if other.suffix == ".npy" else torch.save(shuffled(), other)
    refuse(path, f"{beside} beside it holds a row for each of 6 images", f"--labels {other}", "--labels_key none")
    assert torch.equal(import_images(path, **GIVEN, labels=other).labels, shuffled())
    assert torch.equal(import_images(path, **GIVEN, labels_key="none").labels, blocks())


def test_files_beside_that_are_no_labels_are_left_alone(tmp_path):
    path = saved(tmp_path / "x.pt", syn())
    saved(tmp_path / "other.pt", {"images": syn(), "labels": shuffled()})
    saved(tmp_path / "net.pt", {"features.weight": noise(4, 3), "bias": noise(5)})
    (tmp_path / "notes.pt").write_bytes(b"no file of tensors")
    assert torch.equal(import_images(path, **GIVEN).labels, blocks())
    (tmp_path / "labels.pt").write_bytes(b"no file of tensors")
    refuse(path, "labels.pt")


def test_labels_are_named_in_a_file_of_their_own(tmp_path):
    path = saved(tmp_path / "x.pt", syn())
    other = saved(tmp_path / "more.pt", {"classes": shuffled(), "logits": LOGITS})
    refuse(path, "holds classes and logits", "--labels_key classes", labels=other)
    assert torch.equal(import_images(path, **GIVEN, labels=other, labels_key="classes").labels, shuffled())
    refuse(path, "give the file of its labels as --labels", labels_key="classes")


# Images in other forms


def test_several_tensors_of_images_are_asked_about(tmp_path):
    path = saved(tmp_path / "x.pt", {"images": syn(), "best": syn(seed=1), "labels": shuffled()})
    refuse(path, "holds 2 tensors of images (images, best)", "--images_key")
    assert torch.equal(import_images(path, **GIVEN, images_key="best").pixel_values, syn(seed=1))
    refuse(path, "has no 'first', which --images_key names", images_key="first")


def strided() -> torch.Tensor:
    """The same values as `syn()`, from inside of a larger tensor whose axes lie in another order."""
    storage = torch.zeros(8, 8, 9, 4)
    view = storage.permute(2, 3, 0, 1)[2:8, 1:]
    view.copy_(syn())
    return view


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("images", "exact"),
    [
        (nn.Parameter(syn()), syn()),
        (syn().requires_grad_(), syn()),
        (strided(), syn()),
        (syn()[:1].expand(6, 3, 8, 8), syn()[:1].repeat(6, 1, 1, 1)),
        (syn().bfloat16(), syn().bfloat16().float()),
        (syn().half(), syn().half().float()),
        (syn().double(), syn()),
        (syn().permute(0, 2, 3, 1).contiguous(), syn()),
        (syn().numpy(), syn()),
        (np.asfortranarray(syn().numpy()), syn()),
        ([syn()[:2], syn()[2:4], syn()[4:]], syn()),
    ],
    ids=["parameter", "leaf", "view", "expanded", "bfloat16", "half", "double", "nhwc", "array", "columns", "list"],
)
def test_images_are_the_same_values_in_any_form(legacy, images, exact, tmp_path):
    path = saved(tmp_path / "x.pt", {"images": images, "y": shuffled()}, _use_new_zipfile_serialization=not legacy)
    distilled = import_images(path, **GIVEN)
    assert torch.equal(distilled.pixel_values, exact)
    assert torch.equal(distilled.labels, shuffled())


def test_a_list_of_images_for_each_class_says_the_classes(tmp_path):
    parts = [syn()[:1], syn()[1:4], syn()[4:]]
    distilled = import_images(saved(tmp_path / "x.pt", parts), **GIVEN)
    assert distilled.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert torch.equal(distilled.pixel_values, syn())
    refuse(saved(tmp_path / "x.pt", parts[:2]), "list of 2 tensors of images; expected one for each of 3 classes")
    refuse(saved(tmp_path / "x.pt", [*parts[:2], noise(2, 3, 4, 4)]), "images of several sizes")


def test_arrays_of_numpy_are_read_from_their_own_files(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", images=syn().permute(0, 2, 3, 1), labels=shuffled(), class_names=NAMES)
    distilled = import_images(tmp_path / "x.npz", mean=MEAN, std=STD)
    assert torch.equal(distilled.pixel_values, syn())
    assert torch.equal(distilled.labels, shuffled())
    assert distilled.class_names == NAMES
    np.save(tmp_path / "alone.npy", syn().numpy())
    assert torch.equal(import_images(tmp_path / "alone.npy", **GIVEN, labels_key="none").pixel_values, syn())
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-100])
    refuse(tmp_path / "x.npz", "cannot be read")
    refuse(tmp_path / "none.npy", "is no file")


def test_pixels_beyond_their_range_are_asked_about(tmp_path):
    path = saved(tmp_path / "x.pt", {"images": 1.2 * syn().sigmoid() - 0.1, "labels": shuffled()})
    refuse(path, "--space pixels or --space network")
    pixels = import_images(path, **GIVEN, space="pixels").pixel_values.detach()
    torch.testing.assert_close(pixels, standardised(1.2 * syn().sigmoid() - 0.1))
    same = {"mean": [0.0] * 3, "std": [1.0] * 3}  # one and the same
    assert torch.equal(import_images(path, **{**GIVEN, **same}).pixel_values, 1.2 * syn().sigmoid() - 0.1)


# How files are packed


def packed(path: Path, method: int) -> Path:
    """The same file with its parts packed otherwise, as any program for zip files would."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_compressed_files_hold_what_was_saved(method, tmp_path):
    path = packed(saved(tmp_path / "x.pt", {"images": syn(), "labels": shuffled()}), method)
    distilled = import_images(path, **GIVEN)
    assert torch.equal(distilled.pixel_values, syn())
    assert torch.equal(distilled.labels, shuffled())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_single_byte_that_changed_is_found_out(method, tmp_path):
    path = packed(saved(tmp_path / "x.pt", {"images": syn(), "labels": shuffled()}), method)
    with zipfile.ZipFile(path) as archive:
        (part,) = [part for part in archive.infolist() if part.filename.endswith("data/0")]
    content = bytearray(path.read_bytes())
    content[part.header_offset + 30 + len(part.filename) + part.compress_size // 2] ^= 1
    path.write_bytes(content)
    refuse(path, "cannot be read")


def test_files_without_sums_are_read(tmp_path):
    with torch.utils.serialization.config.patch("save.compute_crc32", False):
        path = saved(tmp_path / "x.pt", {"images": syn(), "labels": shuffled()})
    assert torch.equal(import_images(path, **GIVEN).pixel_values, syn())


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_other_protocols_are_read_or_refused_by_name(legacy, tmp_path):
    content = {"images": syn(), "labels": shuffled()}
    for protocol in (2, 3):
        path = saved(tmp_path / "x.pt", content, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        assert torch.equal(import_images(path, **GIVEN).pixel_values, syn())
    for protocol in (4, 5):
        saved(path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        refuse(path, "pickle protocol above 3")


# Files that were made to exhaust the memory


def declaring(path: Path, size: int) -> Path:
    """The same zip file, whose last part is said to unpack to `size` bytes."""
    content = bytearray(packed(path, zipfile.ZIP_DEFLATED).read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # in the directory at the end; the format's book has the size 24 bytes on
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["x.pt", "x.npz"])
def test_compressed_parts_that_would_fill_the_memory_are_not_unpacked(name, tmp_path):
    path = tmp_path / name
    saved(path, {"images": syn()}) if name == "x.pt" else np.savez(path, images=syn().numpy())
    refuse(declaring(path, 3 * 2**30), "is refused", "unpack to", "bytes of a file of")


def test_tensors_that_declare_far_more_than_is_stored_are_refused(tmp_path):
    one = torch.zeros(1)
    refuse(saved(tmp_path / "x.pt", {"images": one.expand(10**6, 3, 32, 32)}), "is refused", "its tensors declare")
    part = one.expand(1000, 3, 32, 32)
    refuse(saved(tmp_path / "x.pt", [part] * 100), "is refused", "its tensors declare")


def test_lists_that_hold_one_another_are_read_once_or_refused(tmp_path):
    shared: list = [0] * 10
    for _ in range(3):
        shared = [shared] * 10
    path = saved(tmp_path / "x.pt", {"images": syn(), "labels": shuffled(), "more": shared})
    assert torch.equal(import_images(path, **GIVEN).labels, shuffled())
    more = load_pt(path)["more"]
    assert more == shared
    assert all(part is more[0] for part in more)
    for _ in range(20):
        shared = [shared] * 10
    refuse(saved(path, {"images": syn(), "more": shared}), "is refused", "hold one another")
    itself: list = []
    itself.append(itself)
    refuse(saved(path, {"images": syn(), "more": itself}), "a list that holds itself")


# Tensors that are more than numbers


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (syn().to_sparse(), "sparse"),
        (torch.empty(6, 3, 8, 8, device="meta"), "meta"),
        (syn().to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (syn().to(torch.complex64), "complex64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_of_anything_but_plain_numbers_are_refused(tensor, kind, tmp_path):
    refuse(saved(tmp_path / "x.pt", {"images": tensor, "labels": shuffled()}), f"holds a {kind} tensor")
    labels = tensor.select(3, 0).select(2, 0).select(1, 0)  # which sparse ones know
    refuse(saved(tmp_path / "x.pt", {"images": syn(), "labels": labels}), f"holds a {kind} tensor")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint16, torch.uint32, torch.uint64])
def test_classes_may_be_integers_of_any_kind(kind, tmp_path):
    path = saved(tmp_path / "x.pt", {"images": syn(), "labels": shuffled().to(kind)})
    assert torch.equal(import_images(path, **GIVEN).labels, shuffled())
    saved(path, {"images": syn(), "labels": F.one_hot(shuffled(), 3).to(kind)})
    assert torch.equal(import_images(path, **GIVEN).labels, shuffled())


# Arrays that are more than numbers


class Calls:
    """Pickled as a call of something."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Numbers:
    """Pickled as an array is, with any type and content."""

    def __init__(self, *state: object) -> None:
        self.state = state

    def __reduce__(self):
        make, arguments = np.zeros(1).__reduce__()[:2]
        return make, arguments, self.state


@pytest.mark.parametrize(
    "content",
    [
        np.array([{}], dtype=object),
        np.array(["a"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype="M8[s]"),
        Numbers(1, (4,), np.dtype("f4"), False, b"123"),
        Numbers(1, (1 << 40,), np.dtype("f4"), False, b"1234"),
        Numbers(1, (1,), np.dtype("O"), False, b"12345678"),
        Numbers(1, (1,), "f4", False, b"1234"),
        Calls(np.dtype, "V8"),
        Calls(bytes, 1 << 40),
        Calls(np.ndarray, (1 << 40,)),
    ],
    ids=range(11),
)
def test_arrays_of_anything_but_numbers_are_refused(content, tmp_path):
    path = saved(tmp_path / "x.pt", {"images": syn(), "labels": content})
    refuse(path, str(path))


def test_what_stands_in_for_numpy_is_gone_after_a_file_was_read(tmp_path):
    path, before = saved(tmp_path / "x.pt", {"images": syn().numpy()}), set(torch.serialization.get_safe_globals())
    assert isinstance(load_pt(path)["images"], torch.Tensor)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_pickles_in_files_of_numpy_do_not_run(tmp_path):
    proof = tmp_path / "proof"
    np.savez(tmp_path / "x.npz", images=syn(), labels=np.array([Calls(Path.touch, proof)] * 6, dtype=object))
    np.save(tmp_path / "x.npy", np.array([Calls(Path.touch, proof)] * 6, dtype=object))
    for name in ("x.npz", "x.npy"):
        refuse(tmp_path / name, "refused: reading it would run code")
    assert not proof.exists()


def test_our_own_export_is_read_without_a_question(tmp_path):
    was = import_images(saved(tmp_path / "x.pt", {"images": syn(), "targets": LOGITS}), **GIVEN)
    now = import_images(was.export_pt(tmp_path / "set.pt"))
    assert isinstance(now, DistilledSet)
    for name in ("pixel_values", "labels", "soft_labels"):
        assert torch.equal(getattr(now, name), getattr(was, name))
