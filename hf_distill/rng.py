"""One way to get randomness: a generator named by a seed and a path.

Nothing in the package draws from a global generator. A stream is a pure function of `(seed, path)`, so a run that is
resumed at step 400 draws what the uninterrupted run drew there, and an expert's stream does not depend on how many
experts train beside it.
"""

import zlib

import numpy as np
import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream `path` of the run seeded by `seed`.

    Args:
        seed: The run's seed, any non-negative integer.
        path: What the stream is for, from coarse to fine, for example `("expert", 3, "epoch", 7)`.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator at the start of the stream `(seed, *path)`; streams with different paths are independent."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))
