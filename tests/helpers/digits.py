"""Flags with which recipes take seconds on the digits."""

TINY = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "student": "convnet_d1",
    "student_width": 8,
    "num_experts": 4,
    "expert_train_epochs": 2,
    "experts_at_once": 4,
    "batch_train": 50,
    "disable_tqdm": True,
}
DISTIL = {
    "ipc": 1,
    "max_steps": 1,
    "eval_nets": 1,
    "eval_seeds": 1,
    "eval_protocol": "tiny",
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "label": "hard",
}
