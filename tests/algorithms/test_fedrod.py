"""Fed-RoD: a generic model that does not see the personal heads, and heads that stay with their clients."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_hydra.algorithms.fedrod import FedROD
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.small import Small
from fl_hydra.seams.clients import Facts
from fl_hydra.seams.heads import head_gradient
from fl_hydra.seams.rows import Outputs
from fl_hydra.training.planning import plan_round
from tests.support.batches import NotesBatches
from tests.support.exact import assert_exact, module_of, weights_of
from tests.support.make import experiment, trainer
from tests.support.small import finish, normal

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "samples=400", "batch_size=16", "sharding=classes", "N_c=3")


class Recording(NotesBatches, FedROD):
    """Notes batches."""


@dataclass
class Elsewhere(FedROD):
    """Personal heads that do not begin at 0."""

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {name: normal(*values.shape) for name, values in super().client_state(models, facts).items()}


@pytest.mark.parametrize("more", [(), ("participation.dropout=0.4",)], ids=["", "dropout"])
def test_steps_are_those_of_the_paper(more: tuple[str, ...]) -> None:
    """In plain PyTorch, with momentum and weight decay for both; a client that drops out keeps its head from before."""
    algorithm = Recording(gamma=0.7)
    command = ("optimizer=sgdm", "optimizer.lr=0.1", "optimizer.weight_decay=0.01", "rounds=4", *(w for w in SMALL if "samples" not in w))
    run = trainer("algorithm=fedrod", *command, *more, engine="stacked", algorithm=algorithm)
    layout, counts = run.group.layout, run.sole_run.facts.label_counts
    assert counts is not None
    heads = {
        client: torch.nn.Linear(layout.views(run.state.model[0])[f"{layout.head}.weight"].shape[1], 10).double() for client in range(6)
    }
    for head in heads.values():
        for parameter in head.parameters():
            parameter.data.zero_()
    while not run.finished:
        plan, module = plan_round(run.sole_run), module_of(run)
        algorithm.batches.clear()
        run.run_round()
        mean, start = torch.zeros(layout.size, dtype=torch.float64), weights_of(module, run)
        assert plan.reports is not None
        for row, client in enumerate(plan.ids.tolist()):
            generic, head = module_of(run), heads[client]
            generic.load_state_dict(module.state_dict())
            before = {name: value.clone() for name, value in head.state_dict().items()}
            optimizers = [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01) for part in (generic, head)]
            kept: list[Tensor] = []
            generic.get_submodule(str(layout.head)).register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
            prior = torch.from_numpy(counts[client]).double().pow(0.7).log()
            for batch in algorithm.batches:
                logits, targets = generic(batch.inputs[row]), batch.targets[row]
                F.cross_entropy(logits + prior, targets).backward()
                F.cross_entropy(logits.detach() + head(kept.pop().detach()), targets).backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            mean += plan.weights[row] * weights_of(generic, run)
            if not plan.reports[row]:
                head.load_state_dict(before)
        if plan.reports.any():
            assert_exact(run.state.model[0], mean)
        else:
            assert_exact(run.state.model[0], start)
    kept_heads = run.sole_run.clients.read(np.arange(6), "state.head")
    for client, head in heads.items():
        assert_exact(kept_heads[client], torch.cat([head.weight.detach().flatten(), head.bias.detach()]))
    assert kept_heads.abs().max() > 0.01


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_gamma_the_generic_model_is_fedavgs_and_heads_are_not_sent(engine: str) -> None:
    one = finish(trainer("algorithm=fedavg", *SMALL, engine=engine))
    other = finish(trainer("algorithm=fedrod", "algorithm.gamma=0", *SMALL, engine=engine))
    torch.testing.assert_close(other.state.model, one.state.model, rtol=1e-12, atol=1e-12)
    plain, figures = one.evaluate()[0], other.evaluate()[0]
    assert {name: figures[name] for name in ("bytes_up", "bytes_down", "messages", "samples", "val/acc", "test/acc")} == {
        name: plain[name] for name in ("bytes_up", "bytes_down", "messages", "samples", "val/acc", "test/acc")
    }
    assert other.sole_run.forwarded == other.sole_run.computed == one.sole_run.computed, "one more forward pass of each sample"
    assert float(figures["personal/val/acc"] or 0) > float(figures["val/acc"] or 0)


def test_with_equal_label_counts_it_is_fedavg_too() -> None:
    one, other = (trainer(f"algorithm={name}", *SMALL) for name in ("fedavg", "fedrod"))
    other.sole_run.facts.__dict__["label_counts"] = np.full((6, 10), 7)
    for run in (one, other):
        finish(run)
    torch.testing.assert_close(other.state.model, one.state.model, rtol=1e-12, atol=1e-12)


def test_personal_heads_change_nothing_of_the_generic_model() -> None:
    """So that it is FedAvg with the balanced loss whatever they are; at 0 clients predict as it does."""
    one, other = trainer("algorithm=fedrod", *SMALL), trainer("algorithm=fedrod", *SMALL, algorithm=Elsewhere())
    clients = one.cohorts.uncharged(one.sole_run, 0, np.arange(6), one.state)
    assert torch.equal(one.sole_run.experiment.algorithm.personal_models(one.state, clients), one.state.model.repeat(6, 1))
    for run in (one, other):
        finish(run)
    assert torch.equal(one.state.model, other.state.model)


def test_a_client_predicts_with_the_sum_of_both_logits() -> None:
    run = finish(trainer("algorithm=fedrod", *SMALL))
    clients = run.cohorts.uncharged(run.sole_run, 0, np.array([2, 4]), run.state)
    models = run.sole_run.experiment.algorithm.personal_models(run.state, clients)
    for row, client in enumerate((2, 4)):
        (generic, _), (personal, _) = clients.outputs(client, run.state.model), clients.outputs(client, models[row : row + 1])
        weight, bias = torch.split(clients.state["head"][row], [10 * generic.features.shape[1], 10])
        assert_exact(personal.logits, generic.logits + generic.features @ weight.view(10, -1).mT + bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_heads_are_autograds(bias: bool, masked: bool) -> None:
    features, targets = normal(3, 5, 4), torch.arange(15).view(3, 5) % 6
    weights = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).double() if masked else None
    layer = normal(3, 6 * 4 + 6 * bias, seed=1).requires_grad_()
    logits = features @ layer[:, :24].view(3, 6, 4).mT + (layer[:, None, 24:] if bias else 0)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    means = losses.mean(1) if weights is None else (losses * weights).sum(1) / weights.sum(1).clamp(min=1)
    (expected,) = torch.autograd.grad(means.sum(), layer)
    batch = SimpleNamespace(targets=targets, weights=weights)
    assert_exact(head_gradient(Outputs(logits.detach(), features), batch, layer.shape[1]), expected)  # type: ignore[arg-type]


def test_what_it_cannot_go_with() -> None:
    @dataclass
    class Wide(Small):
        """Whose last linear layer does not give the logits."""

        def build(self, info: DatasetInfo) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(256, 2 * info.classes), nn.AvgPool1d(2))

    with pytest.raises(UserError, match="algorithm=fedrod: adds a layer to the last linear one, which must be trained and give the logits"):
        trainer("algorithm=fedrod", *SMALL, model=Wide())
    with pytest.raises(UserError, match=r"algorithm\.gamma=-1.0: must be 0 or more"):
        experiment("algorithm=fedrod", "algorithm.gamma=-1", *SMALL)
