"""One report of several protocols and students: what each has alone, gone on with where it was interrupted."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator

from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import EpochLabels
from hf_distill.evaluation import evaluate as evaluation_module
from hf_distill.evaluation import trainer as trainer_module
from hf_distill.evaluation.evaluate import evaluate, protocols_for
from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol, EvalProtocol
from hf_distill.hub.results import EvalReport
from hf_distill.networks.architectures import StudentSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})
OTHER = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 4})
PLAIN = EvalProtocol("plain", epochs=2, full_data_epochs=1, lrs=(0.1, 0.02), dsa_strategy="none", reset_momentum=False)
CROPS = CropProtocol("crops", epochs=1, full_data_epochs=1, batch_size=64, lrs=(0.005,), views=Views(flip=0.0))
ALL = [PLAIN, CROPS]


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages, RealImages]:
    train, test = RealImages.train_and_test(DataArguments(max_train_samples=100, max_test_samples=20))
    return (*train.split(0.2, seed=0), test)


@pytest.fixture(scope="module")
def together(data) -> EvalReport:
    return evaluated(data, ALL)


def evaluated(data, protocol, **options) -> EvalReport:
    train, held_out, test = data
    rows = torch.cat([train.class_rows(label)[:1] for label in range(10)])
    config = {"student": SPEC.to_dict(), "source": {"name": "digits"}}
    names, preprocessing = train.class_names, train.preprocessing
    distilled = DistilledSet(train.uint8(rows), train.labels[rows], names, preprocessing, config=config)
    options = {"num_seeds": 1, "baselines": ["random"], "disable_tqdm": True, "students": [SPEC, OTHER], **options}
    return evaluate(distilled, train, test, held_out=held_out, protocol=protocol, accelerator=Accelerator(), **options)


def test_each_protocol_has_the_rows_that_it_has_alone(data, together):
    alone = [evaluated(data, protocol) for protocol in ALL]
    assert together.rows == [row for report in alone for row in report.rows]
    assert together.meta == {key: about for report in alone for key, about in report.meta.items()}
    assert Counter(row.protocol for row in together.rows) == {"plain": 6, "crops": 6}


def test_an_interrupted_grid_goes_on_and_trains_nobody_twice(data, together, tmp_path, monkeypatch):
    trained: list[tuple] = []
    train_students, limit = trainer_module.train_students, [0]

    def counting(pool, targets, rows, spec, protocol, **how):
        if len(trained) == limit[0]:
            raise KeyboardInterrupt
        which = (len(pool), str(rows.tolist()), how["epochs"], tuple(how["lrs"]), tuple(how["seeds"]))
        trained.append((protocol.name, spec.name, rows.shape[1], *which))
        return train_students(pool, targets, rows, spec, protocol, **how)

    monkeypatch.setattr(trainer_module, "train_students", counting)
    for stop in (3, 11):
        limit[0] = stop
        with pytest.raises(KeyboardInterrupt):
            evaluated(data, ALL, output_dir=tmp_path)
    limit[0] = None
    assert evaluated(data, ALL, output_dir=tmp_path).rows == together.rows
    count = len(trained)
    full = [each for each in trained if each[2] > 10]
    assert len(set(full)) == len(full), "all real images are trained on once for each protocol and student"
    assert max(Counter(trained).values()) == 1
    again = evaluated(data, ALL[::-1], output_dir=tmp_path).rows
    assert {row.key: row.accuracies for row in again} == {row.key: row.accuracies for row in together.rows}
    assert len(trained) == count


def test_labels_of_views_are_refused_before_anything_is_trained(data, monkeypatch):
    monkeypatch.setattr(evaluation_module, "trainer_for", lambda *args: pytest.fail("too late"))
    labels = EpochLabels.__new__(EpochLabels)
    says = "the protocol plain looks at no views, and the labels are of views; use another: sre2l, .*rded, .*hello"
    with pytest.raises(ValueError, match=says) as caught:
        evaluated(data, [CROPS, PLAIN], labels=labels)
    assert "\n" not in str(caught.value)


def test_several_protocols_are_named_once_each(data):
    train = data[0]
    rows = torch.arange(10)
    distilled = DistilledSet(train.uint8(rows), train.labels[rows], train.class_names, train.preprocessing)
    assert protocols_for(distilled, ["dc", "mtt", "dc"]) == [PROTOCOLS["dc"], PROTOCOLS["mtt"]]
    assert protocols_for(distilled, ("rded",))[0].batch_size == 10
    assert [each.name for each in protocols_for(distilled)] == ["mtt"]
    with pytest.raises(ValueError, match="two protocols that differ are called 'plain'; give each a name of its own"):
        protocols_for(distilled, [PLAIN, EvalProtocol("plain", epochs=9, full_data_epochs=1)])
    with pytest.raises(ValueError, match="there is no protocol to train students by"):
        protocols_for(distilled, [])
    with pytest.raises(ValueError, match="there is no protocol 'rdde'; did you mean 'rded'"):
        protocols_for(distilled, ["mtt", "rdde"])
