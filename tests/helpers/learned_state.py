"""A method with state beside its set, as a recipe: `python -m tests.helpers.learned_state --output_dir x`."""

import sys
from dataclasses import dataclass

import torch

import hf_distill as hd
from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.rng import generator
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.start import start_run


@dataclass
class MirrorConfig(hd.LoopConfig):
    """Hyper-parameters of Mirror."""

    lr_img: float = hd.HfArg(default=0.5, help="Learning rate of the pixels.")


class Mirror(hd.Distiller):
    """Images whose normalised shades are those of real ones, through a matrix that is learned too."""

    config_class = MirrorConfig
    paper = hd.Paper("Mirror", "Nobody", 2030, "3001.00001", "@misc{nobody2030mirror}")

    def setup(self) -> hd.DistilledSet:
        train, config = self.train, self.config
        draws = [generator(config.seed, "init", label) for label in range(train.num_classes)]
        pixels = torch.cat([train.sample(label, config.ipc, draw) for label, draw in enumerate(draws)])
        spec = hd.StudentSpec("convnet_d1", train.num_classes, train.shape[0], train.shape[1:], {"width": 8})
        labels = torch.arange(train.num_classes).repeat_interleave(config.ipc)
        about = {"student": spec.to_dict(), "dsa_strategy": ""}
        distilled = hd.DistilledSet(pixels, labels, train.class_names, train.preprocessing, config=about).to(
            self.device
        )
        size = pixels[0].numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = torch.nn.Sequential(torch.nn.BatchNorm1d(size), torch.nn.Linear(size, 4)).to(self.device)
        self.optimizers = [
            torch.optim.SGD([distilled.pixel_values], lr=config.lr_img, momentum=0.5),
            torch.optim.Adam(self.head.parameters(), lr=0.01),
        ]
        return distilled

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"head": self.head}

    def step(self, draw: int) -> dict[str, float]:
        rows = torch.randint(len(self.train), (len(self.distilled),), generator=generator(self.config.seed, "d", draw))
        real = self.head(self.train.images(rows).to(self.device).flatten(1))
        made = self.head(self.distilled.pixel_values.flatten(1))
        loss = (made.relu().mean(0) - real.relu().mean(0)).square().sum()
        loss.backward()
        return {"loss": loss.item()}


def main() -> None:
    data_args, config, hub = parse_args(DataArguments, MirrorConfig, HubArguments)
    config, accelerator = start_run(config, hub, "mirror")
    train, test = hd.RealImages.train_and_test(data_args)
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    mirror = Mirror.prepare(train, test, config=config, held_out=held_out, accelerator=accelerator)
    distilled = mirror.run()
    if accelerator.is_main_process:
        distilled.save_pretrained(config.output_dir)
        torch.save(mirror.head.state_dict(), f"{config.output_dir}/head.pt")


if __name__ == "__main__":
    sys.modules["mirror"] = sys.modules["__main__"]
    run_recipe(main)
