"""What the benchmarks say of the machine they ran on."""

import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_distill.hub.files import package_versions


def device_for(name: str) -> torch.device:
    """The device that `--device` means; auto is cuda where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def machine_name(device: torch.device) -> str:
    """The GPU, or what the system says of its processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this checkout; None where there is none, or no git."""
    git = shutil.which("git")
    if git is None:
        return None
    asked = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None


def describe(args: Any, device: torch.device) -> dict[str, Any]:
    """The command, its arguments (a dataclass), the commit, the device and the versions of packages."""
    return {
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "device": machine_name(device),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "arguments": asdict(args),
    }
