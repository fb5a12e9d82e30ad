"""How many images and networks go together: what fits and what is fast, and the same answers whatever the number."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.profiler import profile

from hf_distill.data.feed import Pool
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.networks import batches
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.batches import images_at_once, networks_at_once
from hf_distill.training import teachers as teacher_training

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def shown(*shape: int, count: int = 50) -> Pool:
    random = torch.Generator().manual_seed(0)
    return Pool(torch.randn(count, *shape, generator=random), torch.arange(count) % 10)


@pytest.mark.parametrize(
    ("network", "shape", "each"),
    [  # bytes that the largest operation takes and gives of one image, by hand
        (nn.Conv2d(3, 128, 3, padding=1), (3, 32, 32), 4 * (3 + 128) * 32**2),
        (nn.Conv2d(3, 64, 7, stride=2, padding=3), (3, 224, 224), 4 * (3 * 224**2 + 64 * 112**2)),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)), (1, 300, 300), 4 * 2 * 4 * 300**2),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 100_000)), (1, 4, 4), 4 * (16 + 100_000)),  # and 6.4 MB of weights
        (StudentSpec("convnet_d3", 10, 3, (32, 32), {"width": 128}).build(0), (3, 32, 32), 4 * 2 * 128 * 32**2),
    ],
)
def test_as_many_images_go_together_as_the_largest_operation_has_room_for(network, shape, each):
    size = images_at_once(network, shown(*shape, count=3))
    assert size & (size - 1) == 0
    assert size * each <= 300_000_000 < 2.1 * size * each


def test_small_networks_take_a_thousand_images_and_huge_images_come_one_by_one(monkeypatch):
    assert images_at_once(nn.Flatten(), shown(1, 8, 8)) == 1024
    monkeypatch.setattr(batches, "LOOK_BYTES", 100)
    assert images_at_once(nn.ReLU(), shown(1, 8, 8)) == 1


def test_a_network_that_normalises_by_its_batch_is_measured_too():
    flat = FlatModel.from_spec(StudentSpec("convnet_d3", 10, 3, (8, 8), {"width": 8, "norm": "batch"}))
    theta = flat.init(0)
    assert images_at_once(lambda images: flat(theta, images), shown(3, 8, 8)) == 1024
    assert flat.sees_batches
    assert not FlatModel.from_spec(StudentSpec("convnet_d1", 10, 3, (8, 8), {"width": 8})).sees_batches


def peak(work) -> int:
    """The most bytes that were there at a time of those that `work` took, as torch's profiler tells."""
    with profile(profile_memory=True) as told:
        work()
    now = most = 0
    for event in sorted(told.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_testing_takes_the_memory_of_few_images_and_finds_the_same_accuracy(monkeypatch):
    model = StudentSpec("convnet_d3", 10, 3, (16, 16), {"width": 16}).build(0)
    pool = shown(3, 16, 16, count=700)
    measured: dict[int, tuple[float, int]] = {}
    for budget in (300_000_000, 2**20):
        monkeypatch.setattr(batches, "LOOK_BYTES", budget)
        accuracy(model, pool)  # what is imported and built at the first call is not of the images
        found: list[float] = []
        memory = peak(lambda found=found: found.append(accuracy(model, pool)))
        measured[budget] = found[0], memory
    (accuracy_of_all, much), (accuracy_of_few, little) = measured[300_000_000], measured[2**20]
    assert accuracy_of_all == accuracy_of_few
    assert much > 20 * 2**20
    assert little < 2 * 2**20


def test_teachers_are_tested_in_the_same_way(monkeypatch):
    sizes: list[int] = []

    class Recorded:
        model = StudentSpec("convnet_d1", 10, 3, (8, 8), {"width": 8}).build(0)

        def logits(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return self.model(images)

    teacher: Any = Recorded()
    pool = shown(3, 8, 8)
    whole = teacher_training._accuracy(teacher, pool, Accelerator(cpu=True))
    monkeypatch.setattr(batches, "LOOK_BYTES", 70_000)
    assert teacher_training._accuracy(teacher, pool, Accelerator(cpu=True)) == whole
    assert sizes == [50] + [16] * 3 + [2]


@pytest.mark.parametrize(
    ("width", "side", "batch", "device", "count"),
    [
        (32, 8, 10, CPU, 6),  # the demo's students: side by side in 0.6 of the time of one after another
        (64, 8, 10, CPU, 3),
        (128, 8, 10, CPU, 1),  # 1.14 times
        (64, 8, 100, CPU, 1),  # 1.5 times
        (128, 32, 10, CPU, 1),
        (128, 32, 10, GPU, 12),
        (128, 32, 256, GPU, 1),
    ],
)
def test_networks_train_side_by_side_where_a_step_is_small_for_the_device(
    monkeypatch, width, side, batch, device, count
):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=128))
    spec = StudentSpec("convnet_d2", 10, 3, (side, side), {"width": width})
    assert networks_at_once(spec, batch, device) == count


class OnGpu:
    """The images of a pool, which says that they are on a GPU."""

    device = GPU

    def __init__(self, pool: Pool) -> None:
        self.pool, self.images = pool, pool.images

    def __len__(self) -> int:
        return len(self.pool)


@pytest.mark.parametrize(
    ("memory", "processors", "images", "networks"), [(80, 132, 1024, 13), (24, 64, 256, 6), (6, 14, 64, 1)]
)
def test_what_a_gpu_has_decides_how_much_goes_together_there_and_what_is_free_of_it_does_not(
    monkeypatch, memory, processors, images, networks
):
    about = SimpleNamespace(total_memory=memory * 2**30, multi_processor_count=processors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("asked for what is free"))
    spec = StudentSpec("convnet_d3", 10, 3, (32, 32), {"width": 128})
    pool: Any = OnGpu(shown(3, 32, 32, count=3))
    assert images_at_once(spec.build(0), pool) == images
    assert networks_at_once(spec, 10, GPU) == networks
