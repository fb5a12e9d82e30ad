"""Distilled sets and networks of random numbers, and what is asked of them."""

import json
from pathlib import Path

import torch

from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import TeacherLabels
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.teachers import Teacher

NAMES = ["cat", "Hund", "犬", "a/b | c"]
PAPER = {
    "title": "Learning From a Few Images",
    "authors": "A. Author and B. Author",
    "year": 2031,
    "arxiv_id": "3101.00001",
    "bibtex": "@article{author2031few,\n  title={Learning From a Few Images}\n}\n",
}
CONFIG = {
    "method": "some-method",
    "hyperparameters": {"ipc": 3, "lr_img": 1e-3, "dsa_strategy": None, "lrs": [0.1, 0.01]},
    "versions": {"hf_distill": "0.0.0", "torch": "9.9"},
    "source": {"name": "pets", "split": "train", "revision": "abc", "license": "cc-by-4.0", "num_images": 7000},
    "seed": 7,
    "student": {"name": "convnet_d2"},
    "paper": PAPER,
}
REPORT = EvalReport(
    [
        EvalRow("distilled", "soft", "convnet_d2", "quick", 12, [0.1 + 0.2, 1 / 3], "cpu"),
        EvalRow("random", "hard", "convnet_d2", "quick", 12, [0.25], "cpu"),
    ]
)


def make(ipc=3, channels=3, size=(6, 8), *, names=NAMES, zca=False, soft=True, teacher=False, seed=0, **kwargs):
    """A set of random floats, some of which no pixel can hold."""
    g = torch.Generator().manual_seed(seed)
    n, k = ipc * len(names), len(names)
    preprocessing = Preprocessing(channels, size, (0.4,) * channels, (0.3,) * channels)
    if zca:
        images = torch.randint(0, 256, (50, channels, *size), generator=g, dtype=torch.uint8)
        preprocessing = Preprocessing(channels, size, (0.0,) * channels, (1.0,) * channels, fit_zca([images], 0.1))
    if teacher:
        spec = StudentSpec("convnet_d1", k, channels, size, {"width": 4, "norm": "instance"})
        thetas = torch.stack([FlatModel.from_spec(spec).init(seed + i) for i in range(2)])
        kwargs["teacher"] = TeacherLabels(spec, thetas)
    if soft:
        kwargs["soft_labels"] = 9 * torch.randn(n, k, generator=g)
    pixels = 2 * torch.randn(n, channels, *size, generator=g)
    return DistilledSet(pixels, torch.arange(k).repeat_interleave(ipc), names, preprocessing, **kwargs)


def pictures(ipc=3, channels=3, size=(6, 8), *, names=NAMES, zca=False, soft=False, seed=0, **kwargs):
    """A set of random bytes."""
    g = torch.Generator().manual_seed(seed)
    n, k = ipc * len(names), len(names)
    pixels = torch.randint(0, 256, (n, channels, *size), generator=g, dtype=torch.uint8)
    preprocessing = Preprocessing(channels, size, (0.4,) * channels, (0.3,) * channels)
    if zca:
        preprocessing = Preprocessing(channels, size, (0.0,) * channels, (1.0,) * channels, fit_zca([pixels], 0.1))
    if soft:
        kwargs["soft_labels"] = 9 * torch.randn(n, k, generator=g)
    return DistilledSet(pixels, torch.arange(k).repeat_interleave(ipc), names, preprocessing, **kwargs)


def network(channels=3, size=(6, 8), names=NAMES, seed=0, config=None, **changes) -> Teacher:
    """A network with running statistics that are not those of its start."""
    spec = StudentSpec("test_resnet", len(names), channels, size)
    model, draw = spec.build(seed), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
    preprocessing = Preprocessing(channels, size, (0.4,) * channels, (0.3,) * channels)
    return Teacher(model, spec, names, preprocessing, config)


def same(a: DistilledSet, b: DistilledSet) -> bool:
    """Whether two sets agree bit for bit, in everything."""
    x = torch.randn(2, *a.pixel_values.shape[1:], generator=torch.Generator().manual_seed(1))
    labels = a.labels[:2], torch.arange(2)
    optional = [
        (a.soft_labels, b.soft_labels),
        (a.lr, b.lr),
        (a.teacher and a.teacher(x, *labels), b.teacher and b.teacher(x, *labels)),
    ]
    return (
        a.pixel_values.dtype == b.pixel_values.dtype
        and a.pixel_values.detach().numpy().tobytes() == b.pixel_values.detach().numpy().tobytes()
        and torch.equal(a.labels, b.labels)
        and all((p is None and q is None) or torch.equal(p, q) for p, q in optional)
        and a.class_names == b.class_names
        and a.preprocessing.fingerprint() == b.preprocessing.fingerprint()
        and torch.equal(a.preprocessing.inverse(x), b.preprocessing.inverse(x))
        and a.config == b.config
        and a.report == b.report
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "distill_config.json").read_text())
    (folder / "distill_config.json").write_text(json.dumps({**config, **changes}))
    (folder / "SHA256SUMS").unlink(missing_ok=True)
