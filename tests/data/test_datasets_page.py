"""docs/datasets.md: its examples run as written."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fl_hydra
from fl_hydra.data.dataset import datasets, read_info
from fl_hydra.data.images import Arrays, write_npz
from tests.support.data_files import made_up, write_emnist, write_mnist
from tests.support.make import PROJECT


def blocks(heading: str) -> tuple[str, list[str]]:
    """The Python code below a heading (empty if there is none), and the words of its command."""
    page = (PROJECT / "docs" / "datasets.md").read_text()
    section = re.split(rf"^#+ {re.escape(heading)}$", page, flags=re.M)[1]
    section = re.split(r"^#+ ", re.sub(r"```.*?```", lambda block: block[0].replace("\n#", "\n\0"), section, flags=re.S), flags=re.M)[0]
    section = section.replace("\0", "#")
    code = re.findall(r"```python\n(.*?)```", section, re.S)
    commands = re.findall(r"```sh\npython train.py (.*?)\n```", section, re.S)
    assert len(code) <= 1 and len(commands) <= 1
    return "".join(code), shlex.split("".join(commands))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Where code of the page runs."""
    made = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", made)
    return made


def prepared(root: Path, name: str, arrays: Arrays) -> None:
    """The file that is made once of official files."""
    write_npz(root / f"{name}.npz", arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels)


FILES: dict[str, Callable[[Path], Any]] = {
    "MNIST": lambda root: write_mnist(root, train=400),
    "EMNIST": lambda root: write_emnist(root, "letters", 26, first=1, each=16),
    "CIFAR-10 and CIFAR-100": lambda root: prepared(root, "cifar10", made_up(10, 400, 50, 32, 3)),
    "Tiny-ImageNet": lambda root: prepared(root, "tiny_imagenet", made_up(200, 1200, 200, 64, 3)),
    "A folder": lambda root: None,
    "An npz file": lambda root: None,
    "Arrow and Parquet": lambda root: None,
}


@pytest.mark.parametrize("heading", FILES)
def test_an_example_runs_as_written(heading: str, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code, in an empty folder, then its command, cut after a few steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    FILES[heading](tmp_path / "data")
    code, words = blocks(heading)
    exec(compile(code, heading, "exec"), vars(module))
    run = fl_hydra.run(
        *words, "samples=64", "evaluation.points=1", "threads=1", f"data={tmp_path / 'data'}", outputs=tmp_path / "out", quiet=True
    )
    assert run.status == "finished"
    expected = {"A folder": (1, 16, 16), "An npz file": (1, 8, 8), "Arrow and Parquet": (1, 8, 8), "MNIST": (1, 28, 28)}
    if heading in expected:
        assert run.experiment.dataset_info.shape == expected[heading]
    if heading == "An npz file":
        assert run.experiment.K == 4


def test_a_class_of_ones_own_is_an_option(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = blocks("A class of your own")
    assert "fl_hydra.run(" in code
    original = fl_hydra.run
    monkeypatch.setattr(
        fl_hydra, "run", lambda *words, **more: original(*words, f"data={tmp_path}", "threads=1", outputs=tmp_path / "out", **more)
    )
    try:
        exec(compile(code, "page", "exec"), vars(module))
        run = module.run
        assert (run.status, run.experiment.K, run.experiment.dataset_info.shape) == ("finished", 4, (1, 10, 10))
        assert run.summary["metrics"]["test/acc"] > 0.9
        for side in (10, 14, 10):  # what is kept of one is not taken for another
            read_info.cache_clear()
            assert module.Stripes(side=side).info(tmp_path).shape == (1, side, side)
        with pytest.raises(fl_hydra.UserError, match=r"dataset.sides=9: no such key; did you mean dataset.side=9"):
            original("dataset=stripes", "dataset.sides=9")
    finally:
        datasets._classes.pop("stripes", None)


def test_its_tables_name_every_option_and_variant() -> None:
    from fl_hydra.data.mnist import CLASSES

    page = (PROJECT / "docs" / "datasets.md").read_text()
    assert all(
        f"`{name}`" in page for name in (path.stem for path in (PROJECT / "conf" / "dataset").glob("*.yaml")) if "shakespeare" not in name
    )
    for variant, classes in CLASSES.items():
        assert re.search(rf"\| `{variant}`(?: \(default\))? \| {classes}\b", page), variant
