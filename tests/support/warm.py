"""A process that has imported everything and trained a little, and forks a child for each command, so that a real process costs a
fraction of a second.

It reads one JSON object a line: {"argv": [...], "cwd": "...", "kill": {...} or null} and answers with one line
{"status": ..., "output": "..."}. `kill` makes the child end itself with SIGKILL, at the n-th event of a kind:

- `write`: in the middle of writing a whole file's bytes; `replace`: just before a rename; `renamed`: just after one;
- `append`: in the middle of appending a row of metrics; `round`: after a round; `seconds`: after n seconds of training.

`before` is Python that the child executes first.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from typing import Any

import torch

import fl_hydra.app
import fl_hydra.arguments
import fl_hydra.pictures.draw
import fl_hydra.runs.execution
import fl_hydra.runs.packing
import fl_hydra.runs.progress
import fl_hydra.sweeping.grid
import fl_hydra.sweeping.outcome_table
from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, n: float) -> None:
    """Arrange the child's end."""
    left = [n]

    def now() -> bool:
        left[0] -= 1
        return left[0] == 0

    if kind in ("write", "append"):
        original_open = builtins.open

        def torn_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            opened = original_open(file, mode, *args, **kwargs)
            wanted = mode == "wb" if kind == "write" else mode == "ab" and str(file).endswith("metrics.jsonl")
            if wanted and now():

                class Torn:
                    def __enter__(self) -> Any:
                        return self

                    def __exit__(self, *error: Any) -> None:
                        opened.close()

                    def write(self, content: bytes) -> None:
                        opened.write(content[: len(content) // 2])
                        opened.flush()
                        die()

                return Torn()
            return opened

        builtins.open = torn_open
    elif kind in ("replace", "renamed"):
        original_replace = os.replace

        def torn_replace(*args: Any, **kwargs: Any) -> None:
            last = now()
            if last and kind == "replace":
                die()
            original_replace(*args, **kwargs)
            if last:
                die()

        os.replace = torn_replace
    else:
        original_round = Trainer.run_round

        def counted_round(self: Trainer) -> None:
            if kind == "seconds" and left[0] == n:
                left[0] = -1
                threading.Timer(n, die).start()
            original_round(self)
            if kind == "round" and now():
                die()

        Trainer.run_round = counted_round  # type: ignore[method-assign]


def child(request: dict[str, Any], output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["cwd"])
    sys.argv = ["train.py", *request["argv"]]
    os.environ.update(request.get("environment") or {})
    exec(request.get("before") or "", {"Trainer": Trainer})
    if request.get("kill"):
        arm(**request["kill"])
    if request.get("asks"):
        number, after = request["asks"]
        original_round = Trainer.run_round

        def asked_round(self: Trainer) -> None:
            if self.runs[0].round == after:
                os.kill(os.getpid(), number)
            original_round(self)

        Trainer.run_round = asked_round  # type: ignore[method-assign]
    status = 1
    try:
        fl_hydra.app.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def warm() -> None:
    """Have imported what is imported when it is first needed: scikit-learn, and most of PyTorch's transforms."""
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    for engine in ("loop", "stacked"):
        run = trainer("algorithm=localsgd", "rounds=1", "J=1", "batch_size=4", engine=engine)
        run.run_round()
        run.evaluate()


def main() -> None:
    warm()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                child(request, output.fileno())
            _, code = os.waitpid(pid, 0)
            output.seek(0)
            print(json.dumps({"status": os.waitstatus_to_exitcode(code), "output": output.read().decode()}), flush=True)


if __name__ == "__main__":
    main()
