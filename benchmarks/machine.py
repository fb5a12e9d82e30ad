"""What the benchmarks say of the machine they ran on."""

import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch

from hf_distill.hub.files import package_versions


def device_for(name: str) -> torch.device:
    """The device that `--device` means; auto is cuda where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def machine_name(device: torch.device) -> str:
    """The GPU, or what the system says of its processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def describe(args: Any, device: torch.device) -> dict[str, Any]:
    """The command, its arguments (a dataclass), the commit, the device and the versions of packages."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": shlex.join(sys.argv),
        "commit": commit or None,
        "device": machine_name(device),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "arguments": asdict(args),
    }
