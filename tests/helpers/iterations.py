"""What each method is run with where its iterations are looked at: networks and sets as small as they can be."""

from typing import Any

NET = {"student": "convnet_d1", "student_width": 4, "disable_tqdm": True}
TAUGHT = {**NET, "teacher_epochs": 1, "batch_train": 15}
EXPERTS = {"num_experts": 1, "expert_train_epochs": 2, "batch_train": 15, "experts_at_once": "1"}
PATH = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "max_steps": 3, "select": "last"}
MATCHED = {**NET, **EXPERTS, **PATH}
RECOVERED = {**TAUGHT, "max_steps": 3, "jitter": 1}
HEADS = {
    **TAUGHT,
    "max_steps": 3,
    "level_steps": 1,
    "select": "last",
    "batch_real": 20,
    "real_views": 1,
}
PRIOR = {"prior_epochs": 1, "weak_teachers": 1, "prompts": ["simple"], "lora_r": 2}
PROJECTED = {**PRIOR, "projector_epochs": 1, "batch_projector": 15}
SETTINGS: dict[str, dict[str, Any]] = {
    "MTT": MATCHED,
    "TESLA": MATCHED,
    "DATM": MATCHED,
    "SRe2L": RECOVERED,
    "CDA": RECOVERED,
    "FADRM": {**RECOVERED, "max_steps": 6, "stage_sizes": [8, 8]},
    "RDED": {**TAUGHT, "num_crops": 3, "factor": 2},
    "HeLlO": {**TAUGHT, **PROJECTED, "num_crops": 2, "factor": 2, "update_steps": 3},
    "LGM": {**HEADS, "augmentations": 2, "micro_batch_size": 5},
    "CLPDD": HEADS,
    "APM": {**TAUGHT, "max_steps": 3, "num_students": 2, "student_epochs": 2},
    "DM": {**NET, "max_steps": 3, "select": "last", "batch_real": 5, "micro_batch_size": 20},
}
