"""The models with which clients are judged, loaded from a run's folder, which is only read; and the digest that covers them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fl_hydra
from fl_hydra.errors import UserError
from fl_hydra.files import read_verified
from fl_hydra.models.small import Small
from fl_hydra.runs.weights import parts_of, weights_sha256
from fl_hydra.training.image_samples import Images
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer

SIZE = ("K=6", "C=0.5", "J=2", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3")
WORDS = (*SIZE, "evaluation.points=2", "model.filters=2", "model.hidden=8", "engine=loop", "threads=1", "checkpoint.seconds=0")

METHODS = {
    "global": ("algorithm=fedavg", "evaluation.personal=dealt"),
    "personal layers": ("algorithm=fedper", "participation.held_out=5", "evaluation.joining_steps=2"),
    "withheld": ("algorithm=fedper", "evaluation.personal=shards"),
    "adapted": ("algorithm=fedbabu",),
    "predicting": ("algorithm=knn_per",),
    "stacked": ("algorithm=fedper", "engine=stacked", "precision=fp64"),
}


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def accuracy(module: nn.Module, samples: Images, which: np.ndarray) -> float:
    where = torch.from_numpy(which)
    return float((module(samples.plain(where)).argmax(-1) == samples.targets[where]).double().mean())


@pytest.mark.parametrize("method", METHODS)
def test_its_accuracy_is_that_of_the_last_line(method: str, tmp_path: Path) -> None:
    run = fl_hydra.run(*WORDS, *METHODS[method], outputs=tmp_path, quiet=True)
    before = contents(run.folder)
    for k in range(run.clients):
        module = run.client(k)
        assert isinstance(module, nn.Module) and not module.training
    packed, personal = run._judge._trainer.sole_run, run._judge._trainer.groups[0].personal
    split = run._judge._trainer.split
    samples, shares = personal._shares.of(packed, "test", torch.arange(len(split.test)))
    assert isinstance(samples, Images)
    found = [accuracy(run.client(k), samples, share.numpy()) for k, share in enumerate(shares) if share is not None]
    assert found == pytest.approx(run.metrics["personal/test/accs"][-1], abs=1e-12)
    assert contents(run.folder) == before, "nothing is written"
    with pytest.raises(UserError, match="there are clients 0 to 5"):
        run.client(6)


def test_also_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    run = fl_hydra.run(*WORDS, "algorithm=fedper", "until=0.4", outputs=tmp_path, quiet=True)
    assert run.status == "unfinished"
    before = contents(run.folder)
    run.client(0)
    assert contents(run.folder) == before
    (newest,) = sorted((run.folder / "checkpoints").glob("round-*.pt"))[-1:]
    visited = next(iter(read_verified(newest)["trainer"]["clients"]))
    first = run.client(visited)(torch.zeros(1, 1, 16, 16))
    fl_hydra.run(*WORDS, "algorithm=fedper", outputs=tmp_path, quiet=True)  # its files of then are replaced
    again = fl_hydra.load(run.folder, tmp_path).client(visited)(torch.zeros(1, 1, 16, 16))
    assert not torch.equal(first, again)


def test_files_that_are_gone_are_one_line(tmp_path: Path) -> None:
    run = fl_hydra.run(*WORDS, "algorithm=fedper", outputs=tmp_path, quiet=True)
    for path in (run.folder / "checkpoints" / "clients").glob("*.rows"):
        path.unlink()
    with pytest.raises(UserError, match="the model of client 1 cannot be loaded") as raised:
        fl_hydra.load(run.folder, tmp_path).client(1)
    assert "\n" not in str(raised.value)


def test_the_digest_of_weights_covers_what_clients_keep(tmp_path: Path) -> None:
    run = trainer("algorithm=fedper", *SIZE)
    while not run.finished:
        run.run_round()
    whole = weights_sha256(parts_of(run, 0))
    assert weights_sha256(parts_of(run, 0)) == whole
    kept = run.runs[0].clients._resident["personal"] if run.runs[0].clients._resident else None
    assert kept is not None
    kept[1, 0] += 1e-6
    run.runs[0].clients._written.clear()
    assert weights_sha256(parts_of(run, 0)) != whole, "one number of one client"


def assert_covered(run: Trainer, part: str, tensor: Tensor) -> None:
    """One number of a tensor changes the digest of this part alone, and that of all."""
    before, number = parts_of(run, 0), tensor.view(-1)[-1:]
    kept = number.clone()
    number += 1e-3
    changed = parts_of(run, 0)
    assert {name for name in before if changed[name] != before[name]} == {part}
    assert weights_sha256(changed) != weights_sha256(before)
    number.copy_(kept)
    assert parts_of(run, 0) == before


def test_it_covers_what_the_server_keeps_for_them() -> None:
    run = trainer("algorithm=pfedhn", "algorithm.hidden_units=3", *SIZE)
    run.run_round()
    carried = run.state.carried
    assert set(carried) == {before + name for before in ("", "velocity.") for name in ("embeddings", "trunk", "heads")}
    for tensor in carried.values():
        assert_covered(run, "carried", tensor)


def test_it_covers_clients_of_every_architecture() -> None:
    words = ("algorithm=pfedhr", "algorithm.sfine=0", "algorithm.candidates=1", *SIZE)
    run = Trainer(experiment(*words, "C=1", architectures=(Small(), Small(filters=2, hidden=8))), engine="loop")
    run.run_round()
    for members in run.sole_run.members:
        assert members.clients._resident.keys() == {"state.model", "state.recipe", "state.teacher"}
        for tensor in members.clients._resident.values():
            assert_covered(run, "clients", tensor)
    assert_covered(run, "others", run.groups[1].state.model)


def test_without_personal_state_it_is_the_models(tmp_path: Path) -> None:
    for algorithm in ("fedavg", "scaffold"):
        run = trainer(f"algorithm={algorithm}", *SIZE)
        run.run_round()
        parts = parts_of(run, 0)
        assert parts.keys() == {"model"} and weights_sha256(parts) == parts["model"]


def test_clients_that_are_not_those_of_the_summary_are_refused(tmp_path: Path) -> None:
    run = fl_hydra.run(*WORDS, "algorithm=fedper", outputs=tmp_path, quiet=True)
    assert run.summary["weights_parts"].keys() == {"model", "clients"}
    assert run.module is not None
    run.summary["weights_parts"] = {**run.summary["weights_parts"], "clients": "0" * 64}
    with pytest.raises(UserError, match="what its last checkpoint holds of clients is not what its summary was written for"):
        run.client(0)
    assert json.loads((run.folder / "summary.json").read_text())["weights_sha256"] == run.summary["weights_sha256"]
