"""What clients keep is the same bit for bit wherever it is held between their rounds, and survives whatever happens to its files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile, write_verified
from fl_hydra.training import client_files, client_memory
from fl_hydra.training.client_store import ClientStore
from fl_hydra.training.trainer import Trainer
from tests.support.folders import TINY, folder_of, result, run
from tests.support.make import config, experiment

PLACES = ("auto", "device", "cpu", "disk")
CLIENTS, WIDTH, COHORT = 40, 3, 7
ROW = (WIDTH + 1) * 8
INITIAL = {"velocity": torch.zeros(1, WIDTH, dtype=torch.float64), "count": torch.arange(CLIENTS, dtype=torch.float64)[:, None]}
"""The first is alike for all clients, the second each one's own."""


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of three clients, chunks of two, and room for eleven clients where there is any; nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(client_files, "FILE_BYTES", 3 * ROW)
    monkeypatch.setattr(client_memory, "FILE_BYTES", 3 * ROW)
    monkeypatch.setattr(client_memory, "CHUNK_BYTES", 2 * ROW)
    monkeypatch.setattr(client_memory, "free_memory", lambda device: 44 * ROW)


def rounds(store: ClientStore, first: int, last: int, rows: dict[str, Tensor]) -> None:
    """Rounds of random cohorts, each of which changes its clients' state depending on what it was."""
    for round in range(first, last):
        store.check_out(np.random.default_rng(round).permutation(CLIENTS)[:COHORT], round, rows)
        rows["velocity"].mul_(0.5).add_(rows["count"] + round)
        rows["count"].add_(1)


def room() -> dict[str, Tensor]:
    return {name: torch.empty(COHORT, values.shape[1], dtype=torch.float64) for name, values in INITIAL.items()}


def everything(store: ClientStore) -> Tensor:
    return torch.cat([store.read(np.arange(CLIENTS), name) for name in INITIAL], 1)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("place", PLACES)
def test_every_place_holds_the_same_and_goes_on_from_its_files(place: str, tmp_path: Path) -> None:
    """Saved every three rounds, and restored now and then by a store that holds clients elsewhere."""
    whole, rows = ClientStore(INITIAL, CLIENTS), room()
    store, own = ClientStore(INITIAL, CLIENTS, tmp_path, place), room()
    kept: list[dict[int, Any]] = []
    for first in range(0, 60, 3):
        rounds(whole, first, first + 3, rows)
        rounds(store, first, first + 3, own)
        assert torch.equal(everything(store), everything(whole))
        twice = store.read(np.array([3, 9, 3]), "velocity")
        assert torch.equal(twice, whole.read(np.array([3, 9]), "velocity")[[0, 1, 0]])
        kept = [*kept, store.save()][-2:]
        store.collect(kept)
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {name for references in kept for name in client_files.files_of(references)}
        assert sum(map(client_files.rows_in, there)) <= 4 * CLIENTS, "files that serve few clients are gathered"
        if first % 4 == 0:
            store = ClientStore(INITIAL, CLIENTS, tmp_path, PLACES[first // 4 % 4])
            store.restore(kept[-1])
            assert torch.equal(everything(store), everything(whole))
    earlier = ClientStore(INITIAL, CLIENTS, tmp_path)
    earlier.restore(kept[0])
    again = ClientStore(INITIAL, CLIENTS)
    rounds(again, 0, 57, room())
    assert torch.equal(everything(earlier), everything(again))


@pytest.mark.usefixtures("little_memory")
def test_files_that_nobody_needs_are_gone_before_the_next_checkpoint(tmp_path: Path) -> None:
    store = ClientStore(INITIAL, CLIENTS, tmp_path, "disk")
    rounds(store, 0, 300, room())
    assert sum(client_files.rows_in(path.name) for path in tmp_path.iterdir()) <= 3 * CLIENTS


@pytest.mark.usefixtures("little_memory")
def test_what_is_referred_to_must_be_what_was_written(tmp_path: Path) -> None:
    store = ClientStore(INITIAL, CLIENTS, tmp_path)
    rounds(store, 0, 9, room())
    kept = store.save()
    before = everything(store)
    for path in list(tmp_path.iterdir()):
        content = path.read_bytes()
        for damaged in (content[:-1], content[:30] + b"!" + content[31:], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFile, match=r"damaged|truncated or corrupted"):
                store.restore(kept)
        path.write_bytes(content)
    assert torch.equal(everything(store), before), "a store that could not be restored is as it was"
    other = ClientStore({"velocity": INITIAL["velocity"]}, CLIENTS, tmp_path)
    with pytest.raises(CorruptFile, match="other shapes"):
        other.restore(kept)


def test_files_of_one_client_each_are_still_read(tmp_path: Path) -> None:
    """As they were written up to format 2 of checkpoints: named by client and round."""
    states = {client: {name: torch.rand(values.shape[1]).double() for name, values in INITIAL.items()} for client in (3, 7, 8)}
    old = {client: (client, write_verified(tmp_path / f"{client}-{client}.pt", state)[:16]) for client, state in states.items()}
    store, rows = ClientStore(INITIAL, CLIENTS, tmp_path), room()
    store.restore(old)
    for client, state in states.items():
        assert torch.equal(everything(store)[client], torch.cat(list(state.values())))
    store.check_out(np.array([0, 1, 2, 3, 4, 5, 6]), 9, rows)
    assert torch.equal(rows["velocity"][3], states[3]["velocity"])
    kept = store.save()
    store.collect([kept])
    assert {path.name for path in tmp_path.glob("*.pt")} == {"7-7.pt", "8-8.pt"}
    again = ClientStore(INITIAL, CLIENTS, tmp_path)
    again.restore(kept)
    assert torch.equal(everything(again), everything(store))
    (tmp_path / "7-7.pt").unlink()
    with pytest.raises(CorruptFile, match="missing"):
        again.restore(kept)


SCAFFOLD = ("algorithm=scaffold", "uplink=topk", "uplink.fraction=0.5", "K=10", "C=0.3", "J=2", "rounds=4", *TINY)


def test_a_run_and_a_pack_end_alike_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does one that goes on in another place after half of it."""
    experiments = [experiment(*SCAFFOLD, f"seed={seed}") for seed in (0, 1)]
    monkeypatch.setattr(client_memory, "FILE_BYTES", 5000)  # on disk: all but one
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    expected = None
    for place, then in (("device", "disk"), ("cpu", "device"), ("disk", "auto")):
        folders = [tmp_path / place / str(run) for run in (0, 1)]
        pack = Trainer(*experiments, engine="stacked", client_folders=folders, state_on=place)
        for _ in range(2):
            pack.run_round()
        alone = Trainer(experiments[1], engine="stacked", client_folders=folders[1:], state_on=then)
        alone.restore(pack.checkpoint(1))
        for _ in range(2):
            pack.run_round()
            alone.run_round()
        assert torch.equal(alone.state.model[0], pack.state.model[1])
        assert expected is None or torch.equal(pack.state.model, expected)
        expected = pack.state.model.clone()


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_full_disk_in_the_middle_of_a_round_is_one_line_and_loses_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client state beyond what memory holds is written between checkpoints, too."""
    command = (*SCAFFOLD, "checkpoint.seconds=0", f"state_on={place}")
    with monkeypatch.context() as patch:
        patch.setattr(client_memory, "FILE_BYTES", 1)
        patch.setattr(client_memory, "free_memory", lambda device: 1)
        assert run(config(*command, f"outputs={tmp_path / 'whole'}"))[0].status == "finished"  # type: ignore[union-attr]
        setting = config(*command, f"outputs={tmp_path / 'full'}")
        run(setting, killed_after=2)
        original = os.fsync

        def full(descriptor: int) -> None:
            if "/clients/" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        patch.setattr(os, "fsync", full)
        outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "failed" and not notes.lines
    assert outcome.reason.startswith("No space left on device") and "\n" not in outcome.reason
    assert outcome.reason.endswith("the last checkpoint is kept: make room, then run the same command again")
    assert not list((tmp_path / "full").rglob("*.tmp"))
    outcome, notes = run(config(*command, "state_on=device", f"outputs={tmp_path / 'full'}"))
    assert outcome is not None and outcome.status == "finished" and notes.rounds == [2]
    assert result(folder_of(setting)) == result(folder_of(config(*command, f"outputs={tmp_path / 'whole'}")))


def test_a_place_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="state_on=gpu: choose auto, device, cpu or disk"):
        config("state_on=gpu")
