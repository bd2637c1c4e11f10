"""FedPer: what stays with a client, and how clients are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=6", "batch_size=16", "sharding=classes", "N_c=3")


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_heads_stay_with_their_clients(engine: str) -> None:
    run = trainer("algorithm=fedper", *SMALL, "server=adam", engine=engine)
    head, size = run.group.personal, run.group.layout.size
    assert head.names == tuple(f"{run.group.layout.head}.{part}" for part in ("weight", "bias"))
    before = run.state.model.clone()
    met: set[int] = set()
    while not run.finished:
        met |= set(plan_round(run.sole_run).ids.tolist())
        run.run_round()
    assert torch.equal(head.of(run.state.model), head.of(before)), "the server has none of its own"
    assert not torch.equal(run.state.model, before)
    heads = run.sole_run.clients.read(np.arange(6), "personal")
    for k in range(6):
        assert torch.equal(heads[k], head.of(before)[0]) == (k not in met)
    traffic = run.sole_run.traffic
    assert traffic.bytes_up == traffic.bytes_down == 6 * 3 * 8 * (size - head.width)


def test_with_no_personal_layer_it_is_fedavg_and_with_all_every_client_is_alone() -> None:
    one, none, everything = (
        trainer(f"algorithm={name}", *SMALL, *more)
        for name, more in (
            ("fedavg", ()),
            ("fedper", ("algorithm.personal_layers=none",)),
            ("fedper", ("algorithm.personal_layers=all", "server=adam")),
        )
    )
    before = everything.state.model.clone()
    for run in (one, none, everything):
        while not run.finished:
            run.run_round()
    assert torch.equal(one.state.model, none.state.model)
    assert one.evaluate() == none.evaluate()
    assert torch.equal(everything.state.model, before)
    assert everything.sole_run.traffic.bytes_up == 0
    assert float(everything.evaluate()[0]["personal/val/acc"] or 0) > 0.5, "three classes each"


def test_a_pattern_chooses_parameters_or_modules() -> None:
    linear = trainer("algorithm=fedper", *SMALL, "algorithm.personal_layers=Linear").group
    assert set(linear.layout.modules) == {"Conv2d", "Linear"}
    assert linear.personal.names == tuple(
        name for name, module in zip(linear.layout.names, linear.layout.modules, strict=True) if module == "Linear"
    )
    biases = trainer("algorithm=fedper", *SMALL, "algorithm.personal_layers=*.bias").group
    assert all(name.endswith(".bias") for name in biases.personal.names) and len(biases.personal.slices) > 1
    with pytest.raises(UserError, match=r"algorithm.personal_layers=fc9\*: matches no parameter; choose none, all, head, body, or names"):
        trainer("algorithm=fedper", *SMALL, "algorithm.personal_layers=fc9*")


def test_losses_of_the_servers_model_are_not_asked_for() -> None:
    with pytest.raises(UserError, match="participation=power_of_choice: asks for losses of the server's model"):
        experiment("algorithm=fedper", *SMALL, "participation=power_of_choice")


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("more", [(), ("participation.dropout=0.3",)], ids=["", "dropout"])
def test_personal_state_survives_an_interruption(on_disk: bool, more: tuple[str, ...], tmp_path: Path) -> None:
    """In files that a checkpoint refers to, or, without a folder, in the checkpoint itself."""
    e = experiment("algorithm=fedper", *SMALL, "optimizer=sgdm", *more)
    whole, first, second = (Trainer(e, engine="stacked", client_folders=[tmp_path / str(i)] if on_disk else None) for i in (0, 1, 1))
    for run, rounds in ((whole, 6), (first, 3)):
        for _ in range(rounds):
            run.run_round()
    second.restore(first.checkpoint())
    while not second.finished:
        second.run_round()
    assert torch.equal(whole.state.model, second.state.model)
    assert whole.evaluate() == second.evaluate()
