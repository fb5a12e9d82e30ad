# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Import what other projects saved: images from `.pt` files or folders, labels of every epoch, and trajectories.

    python recipes/import.py --images logged_files/CIFAR10/run/images_best.pt --method mtt \
        --dataset_name uoft-cs/cifar10 --normalization zca
    python recipes/import.py --image_folder syn_data --method rded --dataset_name my/imagenet --resolution 224
    python recipes/import.py --epoch_labels FKD_soft_label --distilled_dataset outputs/imported --output_dir labels
    python recipes/import.py --trajectories replay_buffer_0.pt replay_buffer_1.pt --dataset_name uoft-cs/cifar10

The source data give class names, preprocessing and licence; without them say --class_names, --mean and --std. Nothing
in a `.pt` file is run: one that holds more than tensors is refused.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from hf_distill.augmentation.dsa import DEFAULT_STRATEGY
from hf_distill.config import DataArguments, HfArg, HubArguments, PathArg, ProcessArguments, check_choice, parse_args
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import EpochLabels
from hf_distill.evaluation.evaluate import distilled_pool
from hf_distill.importing import (
    SPACES,
    class_order,
    describes_itself,
    import_epoch_labels,
    import_image_folder,
    import_images,
    import_trajectories,
    require_empty,
)
from hf_distill.networks.compiling import say_uncompiled
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.runs.claims import keep_claimed
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push
from hf_distill.runs.start import disable_progress_bars
from hf_distill.training.experts import ExpertConfig

OPTIONS = ("labels", "space", "experiment", "factor", "images_key", "labels_key", "lr")  # of --images


@dataclass
class ImportArguments(ProcessArguments):
    """The files to read, what is known of them, and where the result goes."""

    images: str | None = PathArg(
        default=None, help="File of images (.pt, .npz), or the folder of a run that holds one."
    )
    image_folder: str | None = PathArg(default=None, help="Folder with a folder of JPEG or PNG files for each class.")
    epoch_labels: str | None = PathArg(default=None, help="Folder of epoch_<e>/batch_<b>.tar: labels of crops.")
    distilled_dataset: str | None = PathArg(
        default=None, help="Set that --epoch_labels are of: a folder or repository."
    )
    order_seed: int = HfArg(default=42, help="Of the sampler that dealt its images to the batches of --epoch_labels.")
    trajectories: list[str] | None = PathArg(default=None, help="Files replay_buffer_<n>.pt, or folders of them.")
    labels: str | None = PathArg(
        default=None, help="File of labels. Without it: in --images, or labels_<n>.pt beside it."
    )
    images_key: str | None = HfArg(
        default=None, help="Name of the images in --images, as data.0, where it holds several."
    )
    labels_key: str | None = HfArg(
        default=None, help="Name of the labels in --images, or in --labels; none if it has none."
    )
    factor: int | None = HfArg(default=None, help="Parts a side of --images, enlarged to images (IDC's factor).")
    space: str = HfArg(default="auto", help="Values of --images: network (as a student sees them), pixels, or auto.")
    experiment: int = HfArg(default=0, help="Which experiment, where --images holds several.")
    lr: float | None = HfArg(default=None, help="Learned learning rate. Without it: what the files say, if they do.")
    class_names: list[str] | None = HfArg(default=None, help="Names of the classes, in place of the source data.")
    method: str | None = HfArg(default=None, help="What made it (mtt, tesla, dc, ...), for the card.")
    student: str = HfArg(default="convnet_d3", help="Network of --trajectories.")
    student_width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    student_norm: str = HfArg(default="instance", help="Normalisation of a convnet: instance, batch or none.")
    dsa_strategy: str = HfArg(default=DEFAULT_STRATEGY, help="Augmentation that --trajectories were trained with.")
    output_dir: str = PathArg(default="outputs/imported", help="New folder of the artifact.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        kinds = (self.images, self.image_folder, self.epoch_labels, self.trajectories)
        if sum(what is not None for what in kinds) != 1:
            raise ValueError("give one of --images, --image_folder, --epoch_labels and --trajectories")
        if (self.epoch_labels is None) != (self.distilled_dataset is None):
            raise ValueError("--epoch_labels and --distilled_dataset go together: the labels, and the set they are of")
        if self.trajectories and self.class_names:
            raise ValueError(
                "--trajectories need the data they were trained on: give --dataset_name, not --class_names"
            )
        check_choice("space", self.space, SPACES)
        given = {name: getattr(self, name) for name in ("images", "image_folder", "epoch_labels", "labels")}
        paths = [(name, path) for name, path in given.items() if path is not None]
        paths += [("trajectories", path) for path in self.trajectories or ()]
        absent = [f"--{name} {path}" for name, path in paths if not Path(path).exists()]
        if absent:  # before the source data are read
            raise ValueError(f"{', '.join(absent)}: there is no such file or folder")


def main() -> None:
    data_args, args, hub = parse_args(DataArguments, ImportArguments, HubArguments)
    if args.disable_tqdm:
        disable_progress_bars()
    accelerator = make_accelerator(**args.for_processes)
    if accelerator.num_processes > 1:
        raise ValueError("an import is the work of one process; start it with python")
    say_uncompiled(accelerator, "an import")
    keep_claimed(args.output_dir, accelerator)
    require_empty(args.output_dir)
    artifact = ExpertTrajectories if args.trajectories else EpochLabels if args.epoch_labels else DistilledSet
    prepare_push(hub, artifact, accelerator)

    if args.epoch_labels:
        distilled = DistilledSet.from_pretrained(args.distilled_dataset, token=hub.hub_token)
        labels = import_epoch_labels(
            args.epoch_labels,
            distilled_pool(distilled, accelerator.device),
            distilled.class_names,
            args.output_dir,
            order_seed=args.order_seed,
            source=distilled.config.get("source"),
            disable_tqdm=args.disable_tqdm,
        )
        print(f"{labels.num_epochs} epochs of labels of {labels.num_images} images, {labels.num_bytes:,} bytes")
        print(f'{labels.folder}   load: EpochLabels.from_pretrained("{labels.folder}")')
        if hub.push_to_hub:
            print(push(labels, hub, labels.folder))
        return
    alone = args.class_names or (args.images and describes_itself(args.images, args.images_key))
    train, test = (None, None) if alone and not data_args.dataset_name else RealImages.train_and_test(data_args)
    known = {"real": train, "class_names": args.class_names, "method": args.method}
    if train is None:
        known |= {"mean": data_args.mean, "std": data_args.std}

    if args.trajectories:
        network = {name: getattr(args, name) for name in ("student", "student_width", "student_norm")}
        spec = ExpertConfig(**network).student_spec(train)
        options = {"dsa_strategy": args.dsa_strategy}
        options |= {"device": accelerator.device, "disable_tqdm": args.disable_tqdm}
        experts = import_trajectories(args.trajectories, args.output_dir, spec, test=test, **known, **options)
        print(f"{experts.summary()}\n{experts.folder}   load: {experts.load_call}")
        if hub.push_to_hub:
            print(push(experts, hub, experts.folder))
        return
    if args.image_folder:
        original = class_order(replace(data_args, classes=None)) if train is not None and data_args.classes else None
        size = {"resolution": data_args.resolution, "original_classes": original}
        distilled = import_image_folder(args.image_folder, **known, **size)
    else:
        options = {name: getattr(args, name) for name in OPTIONS}
        distilled = import_images(args.images, **known, **options)
    distilled.save_pretrained(args.output_dir)
    print(f"{len(distilled)} images of {distilled.num_classes} classes, {distilled.label_source.kind} labels")
    print(f'{args.output_dir}   load: DistilledSet.from_pretrained("{args.output_dir}")')
    if hub.push_to_hub:
        print(push(distilled, hub, args.output_dir))


if __name__ == "__main__":
    run_recipe(main, "the same command begins anew")
