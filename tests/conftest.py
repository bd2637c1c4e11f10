from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.make import PROJECT, write_cifar100

torch.set_num_threads(1)  # tests run beside each other
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup or in the background of a script; programs under test would ignore it
        signal.signal(number, usual)


@dataclass
class Result:
    status: int
    output: str


class Program:
    """`python train.py` in a real process of its own, forked from one that has imported torch already.

    It trains with one thread, into `outputs` of the folder it is run in, unless the arguments say otherwise.
    """

    def __init__(self, process: subprocess.Popen[str], data: Path) -> None:
        self._process = process
        self._data = data

    def __call__(self, *argv: str, cwd: Path, **request: Any) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if "--" not in "".join(argv):
            own = [
                f"{key}={value}"
                for key, value in (("threads", 1), ("outputs", "outputs"))
                if not any(a.startswith(f"{key}=") for a in argv)
            ]
            argv = (*own, *argv)
        self._process.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd), **request}) + "\n")
        self._process.stdin.flush()
        return Result(**json.loads(self._process.stdout.readline()))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small cifar100.npz in the real format."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar100(folder)
    return folder


@pytest.fixture(scope="session")
def program(data: Path) -> Iterator[Program]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as process:
        yield Program(process, data)
        assert process.stdin is not None
        process.stdin.close()
