"""FedRep: the head first, then the body, which alone is sent."""

from __future__ import annotations

import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.training.planning import plan_round
from tests.support.exact import assert_exact
from tests.support.make import experiment, trainer
from tests.support.personal import SMALL, Coupled, assert_same, finished, own


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_what_it_is_not_the_turn_of_does_not_move(engine: str, optimizer: str) -> None:
    """In one round, with momentum and weight decay: the head moves as in a round that trains nothing else."""
    words = ("algorithm=fedrep", *SMALL, f"optimizer={optimizer}", "optimizer.weight_decay=0.1", "scheduler=constant", "C=1")
    heads_only, both, bodies_only = (
        finished(*words[:-1], "samples=null", "rounds=1", f"J={J}", f"algorithm.head_steps={head}", "C=1", engine=engine)
        for J, head in ((2, 2), (4, 2), (4, 0))
    )
    head, shared, initial = both.group.personal, both.group.shared, heads_only.group.initial([0])[0]
    assert head.names == tuple(f"{both.group.layout.head}.{part}" for part in ("weight", "bias"))
    assert_exact(heads_only.state.model, initial)  # but for the rounding of a mean of equal bodies
    assert torch.equal(own(both), own(heads_only)) and not torch.equal(own(both), head.of(initial).expand(6, -1))
    assert torch.equal(own(bodies_only), head.of(initial).expand(6, -1))
    assert not torch.equal(shared.of(both.state.model), shared.of(initial))
    for run in (heads_only, both, bodies_only):
        assert torch.equal(head.of(run.state.model), head.of(initial))
        assert run.sole_run.traffic.bytes_up == run.sole_run.traffic.bytes_down == 6 * 8 * shared.width


def test_two_rounds_by_hand() -> None:
    """b = (1, 3) and rate 0.1: v = 0.1 b, then u = 0.09 b, whose mean is 0.18; then v = 0.19 b - 0.018 and u = 0.1638 + 0.081 b."""
    made = Coupled("algorithm=fedrep", "algorithm.head_steps=1", "C=1", "J=2", b=(1, 3))
    u, v = made.after(1)
    assert [u, *v] == pytest.approx([0.18, 0.1, 0.3], abs=1e-14)
    u, v = made.after(1)
    assert [u, *v] == pytest.approx([0.3258, 0.172, 0.552], abs=1e-14)


def test_bodies_are_averaged_by_samples() -> None:
    made = Coupled("algorithm=fedrep", "algorithm.head_steps=1", "C=1", "J=2", b=(1, 3), sizes=(300, 100))
    u, v = made.after(1)
    assert [u, *v] == pytest.approx([0.09 * 1.5, 0.1, 0.3], abs=1e-14)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_without_a_head_it_is_fedavg_and_without_a_body_every_client_is_alone(optimizer: str) -> None:
    words = (*SMALL, f"optimizer={optimizer}")
    fedavg, none = finished("algorithm=fedavg", *words), finished("algorithm=fedrep", "algorithm.personal_layers=none", *words)
    assert_same(fedavg, none)
    assert fedavg.sole_run.traffic == none.sole_run.traffic
    local, everything = finished("algorithm=local", *words), finished("algorithm=fedrep", "algorithm.personal_layers=all", *words)
    assert_same(local, everything)
    assert torch.equal(own(local), own(everything)) and everything.sole_run.traffic.bytes_up == 0


def test_in_a_cut_round_a_row_takes_its_first_steps() -> None:
    """48 samples of a row are the three steps of its head."""
    run = finished("algorithm=fedrep", "algorithm.head_steps=3", *SMALL, "samples=144")
    initial = run.group.initial([0])[0]
    assert_exact(run.state.model, initial)
    assert sum(not torch.equal(head, run.group.personal.of(initial)[0]) for head in own(run)) == 3


def test_heads_of_clients_that_were_not_drawn_stay() -> None:
    run = trainer("algorithm=fedrep", *SMALL)
    before, ids = own(run), plan_round(run.sole_run).ids.tolist()
    run.run_round()
    assert [k for k in range(6) if not torch.equal(own(run)[k], before[k])] == sorted(ids)


def test_more_steps_of_the_head_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.head_steps=5: .* some client takes 4 in all; choose 0 to 4, or a larger J"):
        experiment("algorithm=fedrep", "algorithm.head_steps=5", *SMALL)
    with pytest.raises(UserError, match=r"algorithm.head_steps=3: .* some client takes 2 in all; choose 0 to 2, or a larger J"):
        experiment("algorithm=fedrep", "algorithm.head_steps=3", "local_steps.spread=0.5", *SMALL)
    for all_alike in ("none", "all"):
        experiment("algorithm=fedrep", "algorithm.head_steps=5", f"algorithm.personal_layers={all_alike}", *SMALL)
    with pytest.raises(UserError, match=r"algorithm.head_steps=-1: must be 0 or more"):
        experiment("algorithm=fedrep", "algorithm.head_steps=-1", *SMALL)
