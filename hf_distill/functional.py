"""A network as a function of one flat parameter vector: what unrolling, expert rows and adjoints work on."""

import copy

import torch
from torch import Tensor, nn

from .models import StudentSpec


class FlatModel:
    """`logits = model(theta, x)` for one flat `theta`, so that a parameter state is a row of a matrix.

    BatchNorm layers lose their running statistics and always use those of the batch: a row of parameters holds no
    buffers, and statistics that were never stored must not be made up. Dropout is off.

    Args:
        module: The architecture; it is copied, and its own parameter values do not matter.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = torch.func.replace_all_batch_norm_modules_(copy.deepcopy(module)).eval()
        parameters = dict(self.module.named_parameters())
        self.names = list(parameters)
        self.shapes = [tuple(parameter.shape) for parameter in parameters.values()]
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.num_params = sum(self.sizes)
        self.module.requires_grad_(False)

    @classmethod
    def from_spec(cls, spec: StudentSpec) -> "FlatModel":
        """The functional form of the network that `spec` describes."""
        model = cls(spec.build(0))
        model.spec = spec
        return model

    spec: StudentSpec | None = None

    def to(self, device: torch.device | str) -> "FlatModel":
        """Move the buffers of the architecture, where it has any; `theta` brings its own device."""
        self.module.to(device)
        return self

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of `theta` (P,) under the names and shapes of the parameters."""
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)}

    def flatten(self, module: nn.Module) -> Tensor:
        """The parameters of `module`, which has this architecture, as a new vector (P,)."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])

    def init(self, seed: int) -> Tensor:
        """A fresh initialisation (P,) float32, the same for the same seed. Needs `from_spec`."""
        if self.spec is None:
            raise ValueError("only a FlatModel made by FlatModel.from_spec knows how to initialise itself")
        return self.flatten(self.spec.build(seed))

    def load(self, theta: Tensor) -> nn.Module:
        """A stand-alone module with the values of `theta` (P,), in evaluation mode."""
        if theta.numel() != self.num_params:
            raise ValueError(f"theta has {theta.numel()} values and the architecture {self.num_params}")
        module = copy.deepcopy(self.module).to(theta.device, theta.dtype)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), self.unflatten(theta).values(), strict=True):
                parameter.copy_(value)
        return module.requires_grad_(True)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (N, K) of the network with parameters `theta` (P,) for images `x` (N, C, H, W)."""
        return torch.func.functional_call(self.module, self.unflatten(theta), (x,))
