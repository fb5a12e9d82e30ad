"""Files that the field has lying about, as artifacts of this package: `.pt` images and trajectories, folders of images.

`.pt` files are read with `torch.load(weights_only=True)`: tensors, plain containers and, for the accuracies that lie
beside DC's images, numpy's scalars. A file that needs anything else to run is refused.

Layouts:

- MTT, TESLA, FTD, DATM: `images_<step>.pt`, a tensor (N, C, H, W) as students saw it, class after class; beside it
  `labels_<step>.pt`, classes (N,) or soft labels (N, K), perhaps `lr_<step>.pt`, and with whitening
  `images_zca_<step>.pt`, the same as pixels.
- DC, DSA, DM: `res_<method>_<...>.pt`, `{"data": [[images, labels], ...], "accs_all_exps": {...}}`, a pair for each
  experiment.
- `DistilledSet.export_pt`, which says everything itself, and any `{"images": ..., "labels": ...}`.
- MTT's `replay_buffer_<n>.pt`: list[expert][epoch][parameter].
- FKD's, SRe2L's and CDA's `epoch_<e>/batch_<b>.tar`: crops and logits of a batch.
- SRe2L, CDA, RDED: a folder of JPEG or PNG files for each class, named by the class or its number (`new007`, `00007`).
"""

from .epoch_labels import import_epoch_labels
from .files import require_empty
from .folders import class_order, import_image_folder
from .images import SPACES, describes_itself, import_images
from .trajectories import import_trajectories

__all__ = [
    "SPACES",
    "class_order",
    "describes_itself",
    "import_epoch_labels",
    "import_image_folder",
    "import_images",
    "import_trajectories",
    "require_empty",
]
