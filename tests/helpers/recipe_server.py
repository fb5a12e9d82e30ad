"""Runs recipes in processes of their own, after importing once what they share.

Started by `Recipes`. Reads one job per line from stdin (JSON), forks as many ranks as it asks for, and answers with
one line: the exit status of each rank, the output of the first one, and the errors of all.
"""

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import open_clip  # noqa: F401
import peft  # noqa: F401
import torch

import hf_distill
from hf_distill.hub.cards import card_template
from hf_distill.shipped import shipped
from tests.helpers.protocols import know_short_protocols

know_short_protocols()
for module in pkgutil.walk_packages(hf_distill.__path__, "hf_distill."):
    if not module.name.endswith(("__main__", "demo.page")):  # the page needs gradio
        importlib.import_module(module.name)

for path in shipped("model_cards").glob("*.md"):
    card_template(path.name)

SECONDS = 300  # a run that hangs ends here, and one on a busy machine does not


def run(job: dict[str, Any]) -> int:
    """The job in this process, as if the interpreter had been started with it; the exit status."""
    atexit._clear()  # what is to be done at the end of the server
    os.chdir(job["cwd"])
    sys.argv = [job["recipe"], *job["flags"]]
    try:
        exec(job["before"], {})
        runpy.run_path(job["recipe"], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()  # as the interpreter does at its end
    return 0


def fork(job: dict[str, Any], rank: int, port: int, streams: list[Path]) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        for number, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        if job["processes"] > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
        torch.set_num_threads(1)
        status = run(job)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return child


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")  # the ranks get other streams
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            streams = [[Path(folder, f"{name}-{rank}") for name in ("out", "err")] for rank in range(job["processes"])]
            children = [fork(job, rank, port, paths) for rank, paths in enumerate(streams)]
            status = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            out, err = ([paths[i].read_text() for paths in streams] for i in range(2))
        print(json.dumps({"status": status, "out": out[0], "err": "".join(err)}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
