"""The seams of the loop, each by a method of a few lines that needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.seams.clients import Clients, Facts
from fl_hydra.seams.layout import Columns, Layout
from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer

SMALL = ("algorithm=fedavg", "K=6", "C=0.5", "J=3", "precision=fp64", "rounds=3", "batch_size=16")


def finished(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@dataclass
class TwoParts(FedAvg):
    """A step of the head, then one of the body, each by its own columns."""

    def columns(self, layout: Layout) -> dict[str, Columns]:
        head = layout.select("head", "")
        return {"head": head, "body": layout.columns(lambda name, module: name not in head.names)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        both = gradient(rows.parameters, batches[0]).clone()
        for part in ("head", "body"):
            rows.descend(both.clone(), j, columns=part)


@pytest.mark.parametrize("optimizer", ["sgdm", "adam", "lamb"])
def test_steps_of_all_columns_are_a_step(optimizer: str) -> None:
    """Each set of columns has counters of its own, so that none counts a step of the other."""
    settings = (*SMALL, f"optimizer={optimizer}")
    one, other = finished(trainer(*settings)), finished(trainer(*settings, algorithm=TwoParts()))
    torch.testing.assert_close(one.state.model, other.state.model, rtol=1e-13, atol=1e-13)


@dataclass
class SecondModel(FedAvg):
    """Every client also trains a model of its own, at half the rate, which starts where the run does (Ditto without its tether)."""

    stepped: ClassVar[tuple[str, ...]] = ("own",)
    gradients_per_batch: ClassVar[float] = 2.0

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"own": models.clone(), "rounds": torch.arange(facts.K, dtype=models.dtype)[:, None]}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.descend(gradient(rows.parameters, batches[0]), j)
        rows.descend(gradient(rows.state["own"], batches[0], metered=False), j, of="own", lr=rows.lr[:, j : j + 1] / 2)
        rows.state["rounds"] += 1 / 3


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_another_vector_is_stepped_with_slots_of_its_own(engine: str) -> None:
    """The global model is FedAvg's; a client's own one is that of a client alone at half the rate."""
    settings = (*SMALL, "optimizer=adam", "C=1", "scheduler=constant", "optimizer.lr=0.01")
    plain, made = trainer(*settings, engine=engine), trainer(*settings, engine=engine, algorithm=SecondModel())
    one, other = finished(plain), finished(made)
    torch.testing.assert_close(one.state.model, other.state.model, rtol=1e-13, atol=1e-13)
    own = other.sole_run.clients.read(np.arange(6), "state.own")
    assert other.sole_run.clients.read(np.arange(6), "state.rounds")[:, 0].tolist() == pytest.approx([3, 4, 5, 6, 7, 8])
    alone = finished(trainer(*settings, "optimizer.lr=0.005", engine=engine, algorithm=Alone()))
    torch.testing.assert_close(own, alone.sole_run.clients.read(np.arange(6), "personal"), rtol=1e-12, atol=1e-12)


@dataclass
class Alone(FedAvg):
    """Every client for itself."""

    @property
    def global_model(self) -> bool:
        return False

    def personal(self, layout: Layout) -> Columns:
        return layout.select("all", "")


@dataclass
class Conditioned(FedAvg):
    """Clients that are sent a vector each, read facts of their own, and whose server steps a second vector by the outer optimizer."""

    row_facts: ClassVar[tuple[str, ...]] = ("sizes", "label_counts")
    outer_steps: ClassVar[tuple[str, ...]] = ("model", "bias")
    needs_ends: ClassVar[bool] = True

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={"bias": models.new_ones(1, 3)})

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return {"bias": state.carried["bias"], "numbers": torch.from_numpy(clients.ids).to(state.model.dtype)[:, None]}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.seen = {name: values.clone() for name, values in (rows.received | rows.facts).items()}
        super().step(rows, gradient, batches, j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        super().update(state, clients, starts, ends)
        self.clients = clients
        clients.server.step(state.carried["bias"], state.slots("bias"), torch.zeros_like(state.carried["bias"]))


def test_what_is_sent_and_known_reaches_the_rows() -> None:
    method = Conditioned()
    run = trainer(*SMALL, "sharding=classes", "N_c=3", "server.lr=0.5", "server.momentum=0.5", engine="stacked", algorithm=method)
    run.run_round()
    facts, ids = run.sole_run.facts, method.clients.ids
    assert method.seen["numbers"][:, 0].tolist() == ids.tolist()
    assert method.seen["bias"].tolist() == [[1, 1, 1]] * 3
    assert method.seen["sizes"][:, 0].tolist() == facts.sizes[ids].tolist()
    assert facts.label_counts is not None and (facts.label_counts > 0).sum(1).tolist() == [3] * 6
    assert np.array_equal(method.seen["label_counts"].numpy(), facts.label_counts[ids])
    assert method.clients.steps.tolist() == [3, 3, 3] and method.clients.rates[:, 0].tolist() == pytest.approx([0.3] * 3, rel=0.2)
    assert (facts.K, facts.m, facts.seed) == (6, 3, 0)
    assert facts.draws("a", 1).random() == facts.draws("a", 1).random() != facts.draws("a", 2).random()
    finished(run)
    # u = 1, x = 1/2; u = 1/2 + 1/2, x = 0; u = 1/2 + 0, x = -1/4
    assert run.state.carried["bias"].tolist() == [[-0.25] * 3]
    payload = 3 * 3 * 8 * run.group.layout.size
    assert run.sole_run.traffic.bytes_down == payload + 3 * 3 * 8 * (3 + 1)
    assert run.sole_run.traffic.messages == 2 * 3 * 3


@dataclass
class Adapted(FedAvg):
    """A model with an adapter, which a method adds to it."""

    def extend(self, module: nn.Module) -> nn.Module:
        class WithAdapter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.base = module
                self.adapter = nn.Linear(10, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                logits = self.base(inputs)
                adapted: Tensor = logits + self.adapter(logits)
                return adapted

        return WithAdapter()


@dataclass
class Forgetting(FedAvg):
    """Sends a vector in the first round only."""

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return {"v": state.model} if clients.round == 0 else {}


def test_every_round_is_sent_the_same_names() -> None:
    """What was sent in another round would be read again."""
    run = trainer(*SMALL, algorithm=Forgetting())
    run.run_round()
    with pytest.raises(TypeError, match=r"send gives \[\], and gave \['v'\]"):
        run.run_round()


def test_a_method_adds_parameters() -> None:
    one, other = trainer(*SMALL), trainer(*SMALL, algorithm=Adapted())
    size = one.group.layout.size
    assert other.group.layout.size == size + 110
    assert torch.equal(other.state.model[:, :size], one.state.model), "what was there begins as before"
    assert finished(other).evaluate()[0]["val/loss"] is not None


@dataclass
class Concluding(FedAvg):
    """All clients' gradients at the final model, and one step along their mean."""

    concludes: ClassVar[bool] = True

    def conclude(self, state: State, clients: Clients) -> None:
        clients.server.step(state.model, state.slots(), state.model.clone())
        state.model.sub_(clients.mean(clients.gradient(clients.receive(state.model))))


def test_a_conclusion_is_part_of_the_last_round_and_is_charged() -> None:
    plain, run = finished(trainer(*SMALL)), trainer(*SMALL, algorithm=Concluding())
    concluded = finished(run)
    module = run.group.architecture.build().double()
    samples = run.split.train
    for parameter, view in zip(module.parameters(), run.group.layout.views(plain.state.model[0]).values(), strict=True):
        parameter.data = view.clone()
    loss = F.cross_entropy(module(samples.plain(torch.arange(len(samples)))), samples.targets)
    whole = run.group.layout.flat(torch.autograd.grad(loss, list(module.parameters())))
    torch.testing.assert_close(concluded.state.model[0], plain.state.model[0] - whole, rtol=1e-10, atol=1e-12)
    one, other = plain.sole_run, concluded.sole_run
    assert other.computed == one.computed + len(samples) and other.samples == one.samples
    assert other.traffic.messages == one.traffic.messages + 2 * 6
    assert other.seconds > one.seconds


def test_a_seam_that_nobody_would_call_is_refused() -> None:
    with pytest.raises(TypeError, match="overrides conclude, which is called where concludes = True"):

        class Forgetful(FedAvg):
            def conclude(self, state: State, clients: Clients) -> None: ...


# The gradient object


def by_hand(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, targets, reduction="none")


@dataclass
class OtherLoss(FedAvg):
    """Cross-entropy, written as a loss of one's own: by sample, with a weight of 1 for each, or of the whole batch."""

    how: str = ""

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        batch = batches[0]
        if self.how == "samples":
            answer = gradient(rows.parameters, batch, weighted, samples={"factor": torch.ones_like(batch.targets, dtype=torch.float64)})
        elif self.how == "whole":
            answer = gradient(rows.parameters, batch, whole_batch, whole=True)
        elif self.how == "features":
            answer = gradient(rows.parameters, batch, from_features, head=rows.parameters)
        else:
            answer = gradient(rows.parameters, batch, by_hand)
        rows.descend(answer, j)


def weighted(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    return by_hand(outputs, targets) * inputs["factor"]


def whole_batch(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    losses, weights = by_hand(outputs, targets), inputs["weights"]
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum().clamp(min=1)


def from_features(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    assert outputs.features.shape[-1] == 64 and inputs["head"].dim() == 1
    return by_hand(outputs, targets) + 0 * outputs.features.sum(-1)


@pytest.mark.parametrize("how", ["", "samples", "whole", "features"])
@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
def test_a_loss_of_ones_own(engine: str, how: str) -> None:
    """With rows that stop at different steps in a cut last round, and batches that are computed in parts unless the loss is whole."""
    settings = (*SMALL, "rounds=null", "samples=250", "model.hidden=64")
    plain = finished(trainer(*settings, engine="loop"))
    other = Trainer(experiment(*settings, algorithm=OtherLoss(how=how)), engine=engine, samples_at_once=7)
    finished(other)
    torch.testing.assert_close(plain.state.model, other.state.model, rtol=1e-12, atol=1e-12)
    one, two = plain.evaluate()[0], other.evaluate()[0]
    assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-10) and one["train/acc"] == two["train/acc"]


@dataclass
class Looking(FedAvg):
    """Keeps, of each row's first step, where it is, its batch, outputs and a product with the Hessian."""

    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        if j == 0:
            outputs = gradient.outputs(rows.parameters, batches[0])
            product = gradient.product(rows.parameters, torch.ones_like(rows.parameters) / 100, batches[0])
            at, batch = rows.parameters.clone(), batches[0]
            self.seen += zip(at, batch.inputs, batch.targets, outputs.logits, outputs.features, product, strict=True)
        super().step(rows, gradient, batches, j)


@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
def test_outputs_and_products_with_the_hessian(engine: str) -> None:
    method = Looking()
    run = trainer(*SMALL, "rounds=1", "model.hidden=6", "batch_size=8", engine=engine, algorithm=method)
    run.run_round()
    module, layout = run.group.architecture.build().double(), run.group.layout
    assert len(method.seen) == 3
    for vector, inputs, targets, logits, features, product in method.seen:

        def loss(at: Tensor, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(module, layout.views(at), (inputs,)), targets)

        _, expected = torch.autograd.functional.hvp(loss, vector, torch.ones_like(vector) / 100)
        torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-12)
        head = [layout.views(vector)[f"{layout.head}.{part}"] for part in ("weight", "bias")]
        torch.testing.assert_close(features @ head[0].T + head[1], logits)
    figures, group, one = run.evaluate()[0], run.group, 3 * 8
    assert figures["flops"] == one * (3 * group.sample_flops + group.forward_flops + group.product_flops)
    assert group.product_flops > 2 * group.sample_flops


def test_one_gradient_of_a_batch_is_metered() -> None:
    @dataclass
    class Twice(FedAvg):
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            gradient(rows.parameters, batches[0])
            rows.descend(gradient(rows.parameters, batches[0]), j)

    with pytest.raises(TypeError, match="say metered=False"):
        trainer(*SMALL, algorithm=Twice()).run_round()


def test_a_method_that_mixes_says_what_it_combines() -> None:
    with pytest.raises(TypeError, match="Mixing declares mixes = True, and combines nothing: override combine"):

        class Mixing(FedAvg):
            mixes: ClassVar[bool] = True
