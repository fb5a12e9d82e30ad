"""scikit-learn's handwritten digits as a dataset folder: what everything runs on when no dataset is named, offline."""

import os
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import constants

from ..hub.files import folder_aside, naming

__all__ = ["digits_folder"]

TEST_IMAGES = 360

README = """\
---
pretty_name: Digits
license: cc-by-4.0
task_categories:
- image-classification
size_categories:
- 1K<n<10K
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---

# Digits

1,797 gray images of handwritten digits, 8x8 pixels, 10 classes: the copy that scikit-learn ships (`load_digits`) of the
test part of *Optical Recognition of Handwritten Digits* (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49). The 17 gray levels 0 to 16 are stored as 0 to 255. The split into 1,437
training and 360 test images is stratified by class and fixed.
"""


def digits_folder() -> Path:
    """A folder that `load_dataset` reads, with splits train and test; written under `HF_HOME` on the first call.

    Processes may call this at once: each writes aside, and the first to finish wins.
    """
    folder = Path(constants.HF_HOME) / "hf_distill" / "digits"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(".digits-", folder.parent) as aside:
        with naming(folder):
            _write(aside)
        aside.chmod(0o755)
        try:
            os.rename(aside, folder)
        except OSError:
            # A folder that is not empty cannot be replaced: another process was first, and wrote the same.
            if not folder.is_dir():
                raise
    return folder


def _write(folder: Path) -> None:
    # Seconds to import, and needed once in the life of a cache.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rows = np.arange(len(images))
    train, test = train_test_split(rows, test_size=TEST_IMAGES, stratify=digits.target, random_state=0)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    (folder / "data").mkdir()
    for split, chosen in (("train", np.sort(train)), ("test", np.sort(test))):
        columns = {"image": list(images[chosen]), "label": digits.target[chosen].tolist()}
        dataset = Dataset.from_dict(columns, features=features)
        dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "README.md").write_text(README, encoding="utf-8")
