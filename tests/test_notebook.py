"""notebooks/colab.ipynb, run as it is, with a folder in the drive's place: what a machine that is taken away leaves, the next one ends."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from fl_hydra.arguments import prepare
from fl_hydra.runs.ownership import OWNER
from tests.conftest import Program
from tests.support.make import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "colab.ipynb"
WORDS = ("algorithm=fedavg", "K=8", "C=0.5", "J=2", "rounds=60", "seed=1,2", "engine=loop", "threads=1", "checkpoint.seconds=0")
SMALL = ("model.filters=2", "model.hidden=8", "batch_size=16", "evaluation.points=4")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    read: nbformat.NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
    return read


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FL_HYDRA_DRIVE", str(tmp_path / "drive"))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "drive"


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: nbformat.NotebookNode, folder: Path) -> str:
    """Run it from the top in a new kernel, after a change to the cell that is there to be changed; what its cells print."""
    changed = copy.deepcopy(notebook)
    settings = next(cell for cell in changed.cells if cell.cell_type == "code")
    settings.source += f"\nTRAIN = {[*WORDS, *SMALL]}\nSOURCE = {str(PROJECT)!r}"
    NotebookClient(changed, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in changed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a figure is shown"
    return "".join(output.get("text", "") for output in outputs)


@contextmanager
def taken_away(runs: Path) -> Iterator[list[int]]:
    """Within this, the process that trains the second run is killed once it has written some checkpoints."""
    killed: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not killed:
            for path in runs.glob("*-s2-*/checkpoints/round-*.pt"):
                if int(path.stem[6:]) >= 5:
                    pid = json.loads((path.parents[1] / OWNER).read_bytes().partition(b"\n")[0])["pid"]
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        thread.join()


def digests(outputs: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in sorted(outputs.glob("digits/fedavg/*/summary.json"))
    }


def test_it_goes_on_where_the_machine_was_taken_away(
    notebook: nbformat.NotebookNode, drive: Path, program: Program, tmp_path: Path
) -> None:
    outputs = drive / "fl_hydra" / "outputs"
    with taken_away(outputs / "digits" / "fedavg") as killed, pytest.raises(CellExecutionError, match="run this cell again to go on"):
        execute(notebook, tmp_path)
    assert killed and len(digests(outputs)) == 1, "the first run had ended, the second was in its middle"
    printed = execute(notebook, tmp_path)
    assert "resumed at round" in printed and "<finished run" in printed
    assert program("-m", *WORDS, *SMALL, cwd=tmp_path).status == 0
    assert digests(outputs) == digests(tmp_path / "outputs") and len(digests(outputs)) == 2


def test_it_is_kept_without_outputs_and_formatted(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    for command in (("format", "--check"), ("check",)):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, str(NOTEBOOK)], cwd=PROJECT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_what_it_names_exists(notebook: nbformat.NotebookNode) -> None:
    settings, *others = code(notebook)
    for listed in re.findall(r"TRAIN = (\[.*?\])", settings):
        prepare(["-m", *json.loads(listed)])  # refuses what is no key, option or section
    for words in re.findall(r"program\(\"(\S+)\", \"(\S+)\"", "\n".join(others)):
        where = words[1].replace(".", "/") if words[0] == "-m" else words[0]
        assert (PROJECT / where).exists()
    for named in re.findall(r"`(docs/\S+?)`", "\n".join(cell.source for cell in notebook.cells)):
        assert (PROJECT / named).exists()
