"""`upload`: the one way of a tensor from the host to a device."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`; themselves where they are there already.

    The host does not wait for a GPU: only memory that is pinned is copied in the background.
    """
    if values.device.type == "cpu" and torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
