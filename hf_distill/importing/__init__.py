"""Files that the field has lying about, as artifacts of this package: `.pt` images and trajectories, folders of images.

`.pt` files are read with `torch.load(weights_only=True)`: tensors, plain containers, and arrays and numbers of numpy,
which are made here in place of numpy. `.npz` and `.npy` files are read without pickles. A file that needs anything else
to run is refused. What could be images or labels and is not known by its name is asked about.

Layouts:

- MTT, TESLA, FTD, DATM: `images_<step>.pt`, a tensor (N, C, H, W) as students saw it, class after class; beside it
  `labels_<step>.pt`, classes (N,) or soft labels (N, K), perhaps `lr_<step>.pt`, and with whitening
  `images_zca_<step>.pt`, the same as pixels.
- DC, DSA, DM: `res_<method>_<...>.pt`, `{"data": [[images, labels], ...], "accs_all_exps": {...}}`, a pair for each
  experiment.
- APM: `{"data": [images, logits], "accs_all_exps": {...}}`, one pair: images as students saw them, a teacher's logits.
- IDC and what grew from it: `data.pt`, `[images, targets]`, pixels whose `factor` times `factor` parts are the images
  that students see; `args.txt` beside it, or the name of its folder, says the factor.
- `DistilledSet.export_pt`, which says everything itself, and any `{"images": ..., "labels": ...}`, with labels under
  `labels`, `targets`, `target`, `label` or `y`; a list of images for each class.
- MTT's `replay_buffer_<n>.pt`: list[expert][epoch][parameter].
- FKD's, SRe2L's and CDA's `epoch_<e>/batch_<b>.tar`: crops and logits of a batch.
- SRe2L, CDA, RDED: a folder of JPEG or PNG files for each class, named by the class or its number (`new007`, `00007`).
- Anything that `load_dataset` reads, with a column of images and one of classes, as `he-yang/2025-rethinkdc-*`.
"""

from .epoch_labels import import_epoch_labels
from .files import require_empty
from .folders import class_order, import_image_folder
from .foreign import foreign_set, holds_tensors, import_dataset
from .images import SPACES, describes_itself, import_images
from .trajectories import import_trajectories

__all__ = [
    "SPACES",
    "class_order",
    "describes_itself",
    "foreign_set",
    "holds_tensors",
    "import_dataset",
    "import_epoch_labels",
    "import_image_folder",
    "import_images",
    "import_trajectories",
    "require_empty",
]
