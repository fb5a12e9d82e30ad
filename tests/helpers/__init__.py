"""What several test modules share; none of them imports another."""

import random
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def without_sums(folder: Path) -> Path:
    """The folder of an artifact whose files may be changed: as by somebody who leaves the checksums out."""
    (folder / "SHA256SUMS").unlink()
    return folder


def flips(folder: Path, names: str, count: int, seed: int = 0) -> Iterator[Path]:
    """Files under a folder by a glob pattern, each with one bit of it flipped while the loop is at it."""
    draw, paths = (
        random.Random(seed),
        sorted(path for path in folder.rglob(names) if path.is_file() and path.stat().st_size),
    )
    for _ in range(count):
        path = draw.choice(paths)
        whole = path.read_bytes()
        place = draw.randrange(8 * len(whole))
        print(f"seed {seed}: bit {place} of {path}")
        path.write_bytes(whole[: place // 8] + bytes([whole[place // 8] ^ 1 << place % 8]) + whole[place // 8 + 1 :])
        yield path
        path.write_bytes(whole)
