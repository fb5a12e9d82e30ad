"""What a method says of its images before it begins: frames of another kind, and images that are kept for nothing."""

import logging
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.data.pixels import Frame
from hf_distill.engine import method as method_module
from hf_distill.hub.results import EvalReport
from hf_distill.methods.rded import RDED, RDEDConfig
from hf_distill.methods.sre2l import SRe2L, SRe2LConfig
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.training.teachers import TeacherConfig
from tests.helpers.photographs import cache_in, photographs, store


def prepared(folder: Path, method: type, config: type, augment: str, frames: list[Frame], **data) -> None:
    """A method that learns from teachers of these `frames`, trained with an augmentation."""
    train = RealImages.from_arguments(DataArguments(dataset_name=str(folder), resolution=[16], **data))
    spec = StudentSpec("convnet_d1", 2, 3, (16, 16), {"width": 4, "norm": "batch"})
    network = spec.build(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(0.1)
    teachers = [
        Teacher(network, spec, train.class_names, train.preprocessing, {"test_frame": asdict(frame)})
        for frame in frames
    ]

    class Given(method):  # type: ignore[misc]
        @classmethod
        def learn(cls, having):
            return {"teachers": teachers}

    settings = config(output_dir=str(folder / "run"), ipc=1, eval_protocol="crops-quick", disable_tqdm=True)
    Given.prepare(train, config=settings, networks=[TeacherConfig(teacher_augment=augment)])


def test_further_protocols_are_reported_beside_the_one_that_chooses(monkeypatch, tmp_path):
    asked: dict = {}
    monkeypatch.setattr(method_module, "evaluate", lambda *args, **options: asked.update(options) or EvalReport())
    train, test = RealImages.train_and_test(DataArguments(max_train_samples=50, max_test_samples=20))
    flags = {"eval_protocol": "crops-quick", "eval_also": ["dc", "crops-quick", "mtt"], "disable_tqdm": True}
    rded = RDED.__new__(RDED)
    rded.config, rded.train, rded.held_out = RDEDConfig(output_dir=str(tmp_path), **flags), train, None
    rded.distilled, rded.accelerator, rded.output_dir = SimpleNamespace(), None, tmp_path
    rded.protocol = RDED.protocol_of(rded.config, train)
    rded.evaluate(test)
    assert asked["protocol"] == [rded.protocol, "dc", "mtt"]
    with pytest.raises(ValueError, match="--eval_also is 'slow'; expected one of mtt"):
        RDED.check(RDEDConfig(eval_also=["slow"]), train.outline, None)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    cache_in(tmp_path / "cache", monkeypatch)
    store(tmp_path / "photographs", "train", photographs(6))
    return tmp_path / "photographs"


@pytest.mark.parametrize(
    ("method", "config", "frames", "data", "warned"),
    [
        (SRe2L, SRe2LConfig, [Frame(20, "bilinear"), Frame()], {}, True),  # the first one labels
        (SRe2L, SRe2LConfig, [Frame(), Frame(20, "bilinear")], {}, False),
        (SRe2L, SRe2LConfig, [Frame(20, "bilinear")], {"resize": 20, "interpolation": "bilinear"}, False),
        (SRe2L, SRe2LConfig, [Frame(16)], {}, False),
        (RDED, RDEDConfig, [Frame(20, "bilinear")], {"resize": 20}, True),
    ],
)
def test_test_images_of_another_frame_than_the_labelling_teachers_are_one_line(
    folder, method, config, frames, data, warned, caplog
):
    with caplog.at_level(logging.WARNING, logger="hf_distill.engine.method"):
        prepared(folder, method, config, "none", frames, **data)
    lines = [record.getMessage() for record in caplog.records if "shorter side" in record.getMessage()]
    assert len(lines) == warned
    assert all(line.endswith("its figures are of resize=20, interpolation='bilinear'") for line in lines)


@pytest.mark.parametrize(
    ("method", "config", "augment", "warned"),
    [(SRe2L, SRe2LConfig, "none", True), (SRe2L, SRe2LConfig, "rrc", False), (RDED, RDEDConfig, "none", False)],
)
def test_images_that_are_kept_for_crops_that_nothing_cuts_are_one_line(folder, method, config, augment, warned, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_distill.engine.method"):
        prepared(folder, method, config, augment, [Frame()], keep_side="source")
    assert [("keep_side=source changes nothing" in record.getMessage()) for record in caplog.records].count(
        True
    ) == warned
