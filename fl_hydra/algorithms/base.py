"""The seams of the one loop.

Every method repeats a round: choose participants, give each row its start, J local steps, communicate, outer step. A method is a
dataclass of its hyper-parameters that overrides the seams it changes; the defaults are FedAvg's.

When several runs train together, a seam sees one of them at a time: `state` is that run's part of the trainer's memory, changed in place
and never rebound; its axis `runs` then has length 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

    from fl_hydra.arrays import Indices, Reals
    from fl_hydra.seams.architectures import Architectures
    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.fabric import Traffic
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows


@dataclass
class State:
    """State of the server, or of the group of workers, between rounds. Subclass it to carry more tensors.

    model: [runs, P], one row for each run that trains together. carried: the method's other tensors, by name, [runs, ...].
    server: the outer optimizer's state by name, [runs, width] or [runs, 1]; for a carried tensor in `outer_steps`, prefixed with the
    tensor's name: `control.momentum`.
    buffers: tensors besides parameters, managed by the trainer: running statistics of the `model`, [runs, size], and of `workers` that
    have their own models, [runs, K, size]; `frozen` tensors, [runs, size].
    """

    model: Tensor
    carried: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    server: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    buffers: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, with a row for each run."""
        named: dict[str, Tensor] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            named |= {f"{part.name}.{name}": tensor for name, tensor in value.items()} if isinstance(value, dict) else {part.name: value}
        return named

    def slots(self, name: str = "model") -> dict[str, Tensor]:
        """The outer optimizer's state for a field, by its own names."""
        if name == "model":
            return {slot: tensor for slot, tensor in self.server.items() if "." not in slot}
        return {slot.partition(".")[2]: tensor for slot, tensor in self.server.items() if slot.startswith(f"{name}.")}

    @classmethod
    def together(cls, states: Sequence[Self]) -> Self:
        """The states of several runs, stacked into one."""
        import torch

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return {name: torch.cat([value[name] for value in values]) for name in values[0]}
            return torch.cat(values)

        return cls(**{part.name: join([getattr(state, part.name) for state in states]) for part in fields(cls)})

    def of_runs(self, runs: Any) -> Self:
        """The state of some runs, chosen by a PyTorch index; a slice shares this state's memory, other indices copy."""

        def take(value: Any) -> Any:
            return {name: tensor[runs] for name, tensor in value.items()} if isinstance(value, dict) else value[runs]

        return replace(self, **{part.name: take(getattr(self, part.name)) for part in fields(self)})


@dataclass
class Returned:
    """The clients of one architecture in a round, after their local steps.

    state: what the run carries for this architecture. clients: these clients, whose weights are those in the whole cohort.
    starts, ends: [rows, P], where they began and what they return. samples: int64 [rows], which they drew.
    """

    state: State
    clients: Clients
    starts: Tensor
    ends: Tensor
    samples: Indices


SEAMS = (
    ("start", "own_starts"),
    ("update", "needs_ends"),
    ("combine", "mixes"),
    ("conclude", "concludes"),
    ("predictor", "predicts"),
)
"""Seams that are called only where a method declares them, with the declaration of each."""


@dataclass
class Algorithm(Component):
    """A method: FedAvg, unless a subclass says otherwise."""

    group: ClassVar[str] = "algorithm"

    federated: ClassVar[bool] = True
    """Whether there are clients of a server (averages weighted by shard size), or workers among themselves (equal weights)."""

    K: ClassVar[int | None] = 100
    C: ClassVar[float | None] = 0.1
    J: ClassVar[int | None] = 4
    """Defaults of the top-level keys; None: the key means nothing to this method and is refused; without J a round is one
    step of each client, or in centralized training a pass."""

    label: ClassVar[str] = ""
    """The method's name in reports; by default that of its option."""

    variants: ClassVar[Mapping[str, str]] = {}
    """Names of the method's variants, by the option (rule for local steps, outer optimizer or its own) that makes them."""

    J_matters: ClassVar[bool] = True
    """Whether J affects training, not only how often the method can be evaluated."""

    hyper: ClassVar[tuple[str, ...]] = ()
    """Numeric fields that change no shape. They are read from `rows.hyper` and `clients.hyper`, never from `self`, so that runs
    which differ in them train together."""

    reads_features: ClassVar[bool] = False
    """Whether it reads features, the inputs of the last linear layer, which a model must then have."""

    one_target: ClassVar[bool] = False
    """Whether it needs samples of one target each, which texts with a target at every position are not."""

    needs_labels: ClassVar[bool] = False
    """Whether it reads labels other than those in `row_facts`, which texts have not."""

    row_facts: ClassVar[tuple[str, ...]] = ()
    """Which of `sizes`, `label_counts` and `rates` a step reads from `rows.facts`."""

    stepped: ClassVar[tuple[str, ...]] = ()
    """Names of client state, such as a second model of P numbers, that `rows.descend(of=)` steps with its own slots."""

    messages: ClassVar[tuple[str, ...]] = ()
    """Names of client vectors that are sent besides the model (`clients.mean(values, name)`), each of P numbers."""

    outer_steps: ClassVar[tuple[str, ...]] = ("model",)
    """What an outer optimizer steps, each with its own slots: the model, and carried tensors by these names."""

    sgd_inside: ClassVar[bool] = False
    """Whether the local optimizer must be plain SGD: no momentum, clipping or scaling."""

    linear_inside: ClassVar[bool] = False
    """Whether the local optimizer must be SGD, with or without momentum, without clipping or scaling."""

    own_server: ClassVar[bool] = False
    """Whether the method has an outer step of its own, so that `server=` is refused."""

    computes_at_server: ClassVar[bool] = False
    """Whether the server's own work is part of the cost (`clients.charge_server`), reported as `server_flops`."""

    concludes: ClassVar[bool] = False
    """Whether `conclude` does something after the last round."""

    ends_with_mean: ClassVar[bool] = True
    """Whether a round ends with a mean, from which an outer optimizer can step."""

    coupled: ClassVar[bool] = False
    """Whether rows exchange models between the local steps of a round (:meth:`mixing`); then all of them take each step together."""

    own_starts: ClassVar[bool] = False
    """Whether rows begin from `start` instead of the model."""

    needs_ends: ClassVar[bool] = False
    """Whether `update` needs the end of every row, not only their mean."""

    mixes: ClassVar[bool] = False
    """Whether clients may have models of several `architectures`; `combine` then gets what all of them return."""

    reads_back: ClassVar[bool] = False
    """Whether `step` reads values back to the host, so that it cannot be recorded."""

    reads_J: ClassVar[bool] = False
    """Whether `step` reads `rows.J`."""

    communicates: ClassVar[bool] = True
    """Whether anything is sent; if not, no message is counted."""

    event_driven: ClassVar[bool] = False
    """Whether a round is a list of events (:class:`fl_hydra.algorithms.events.EventDriven`)."""

    lockstep: ClassVar[bool] = False
    """Whether all rows take the same number of steps in a round, in which there is a moment that they must reach together."""

    synchronous: ClassVar[bool] = True
    """Whether every round begins with equal models and ends with their mean."""

    virtual_clients: ClassVar[bool] = False
    """Whether clients are drawn by size, and all take equally many steps."""

    slowest: ClassVar[float] = math.inf
    """How many times slower than the fastest a worker may be."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """
        Raises:
            TypeError: a seam is overridden, but would not be called, as it is not declared; or `mixes` is, and nothing is combined.
        """
        super().__init_subclass__(**keywords)
        for seam, declared in SEAMS:
            if getattr(cls, seam) is not getattr(Algorithm, seam) and not getattr(cls, declared):
                raise TypeError(f"{cls.__name__} overrides {seam}, which is called where {declared} = True: declare it")
        if cls.mixes and cls.combine is Algorithm.combine:
            raise TypeError(f"{cls.__name__} declares mixes = True, and combines nothing: override combine")

    @property
    def batches_per_step(self) -> int:
        """How many batches `step` is given; a class variable where no option changes it."""
        return 1

    @property
    def gradients_per_batch(self) -> float:
        """Cost of `step` for each batch, in gradients: a forward pass counts as a third of one, a product with the Hessian as two. It
        determines the simulated time of a step. A class variable where no option changes it."""
        return 1.0

    @property
    def keeps_optimizer(self) -> bool:
        """Whether a client keeps the local optimizer's slots between its rounds; if not, they start from zero in each."""
        return False

    def check(self, K: int, C: float) -> None:
        """Refuse values of K and C that the method does not support.

        Raises:
            UserError: naming what works.
        """
        require(K >= 1, f"K={K}: the number of {'clients' if self.federated else 'workers'} must be at least 1")
        require(0 < C <= 1, f"C={C}: the fraction of clients in a round must be above 0 and at most 1")

    @property
    def models_of_clients(self) -> tuple[str, ...]:
        """If `mixes`: options of `model=`, of which client k has that at position k mod n; none: all have the run's."""
        return ()

    @property
    def public(self) -> int:
        """Training samples that are withheld from all clients, for the server (`clients.public`), of each class in proportion."""
        return 0

    def check_steps(self, fewest: int) -> None:
        """Refuse a number of local steps that a client takes in a whole round, the fewest that any takes.

        Raises:
            UserError: naming what works.
        """

    def own_steps(self, batch_size: int) -> int | None:
        """Local steps of a round that follow from a number of the method's own, which excludes `J`; None: `J` says it.

        Raises:
            UserError: they are not whole.
        """
        return None

    def round_steps(self, J: int) -> int:
        """Local steps of a whole round."""
        return J

    @property
    def takes_uplink(self) -> bool:
        """Whether all that clients send (the model, and the vectors named in `messages`) can pass through `uplink=`."""
        return self.ends_with_mean and not self.coupled and not self.event_driven

    @property
    def sends_mean_alone(self) -> bool:
        """Whether the server learns nothing of clients but the weighted mean of their changes of its model, which is in `outer`. A method
        that uses what it knows of other clients, such as their labels, is to say that it does not."""
        more = self.needs_ends or self.own_starts or self.concludes or self.messages
        return self.federated and self.takes_uplink and not more

    @property
    def global_model(self) -> bool:
        """Whether there is a global model to evaluate (:meth:`models`); if not, its figures are null."""
        return True

    @property
    def personalised(self) -> bool:
        """Whether models of clients are evaluated (:meth:`personal_models`)."""
        return not self.global_model

    @property
    def form(self) -> dict[str, Any]:
        """What runs must have in common to train together: all fields except those in `hyper`, which are read by row."""
        return {name: value for name, value in asdict(self).items() if name not in self.hyper}

    def extend(self, module: nn.Module) -> nn.Module:
        """The model with the method's additional parameters, such as adapters or a projection."""
        return module

    def check_layout(self, layout: Layout) -> None:
        """Refuse models that the method cannot train.

        Raises:
            UserError: naming what works.
        """
        require(
            layout.head is not None or not self.reads_features,
            f"algorithm={self.option}: reads the features that the last linear layer of a model gets, and this one has no linear layer; "
            "choose a model that ends with one",
        )
        require(
            not self.mixes or not layout.statistics.names,
            f"algorithm={self.option}: every client has a model of its own, whose running statistics nobody would average; choose models "
            "without BatchNorm, as lenet or lenet_gn",
        )

    def check_architectures(self, architectures: Architectures) -> None:
        """Refuse models of clients that the method cannot use for what they are made of.

        Raises:
            UserError: naming what works.
        """

    def check_memory(self, models: Tensor, facts: Facts) -> None:
        """Refuse runs that train together whose state does not fit into the memory that is free, before any of it is made.

        Args:
            models: their initial models, [runs, P]. facts: of one of them.

        Raises:
            UserError: naming what would fit.
        """

    def columns(self, layout: Layout) -> dict[str, Columns]:
        """Columns of the parameters that `rows.descend(columns=)` steps separately, by name."""
        return {}

    def stepped_columns(self, layout: Layout) -> dict[str, Columns]:
        """Which parameters a vector of `stepped` stands for, by its name, if not for all: it has as many numbers, in the same layers."""
        return {}

    def personal(self, layout: Layout) -> Columns:
        """Parameters that stay with their client: excluded from messages, the mean and the outer step."""
        return layout.columns(lambda name, module: False)

    def untrained(self, layout: Layout) -> Columns:
        """Parameters that no step changes: they keep their initial values, which are the same everywhere, and are not sent."""
        return layout.columns(lambda name, module: False)

    def initial(self, models: Tensor, facts: Facts) -> State:
        """The state of a run before its first round, from its initial model [1, P]; every tensor with a leading axis of length 1."""
        return State(models)

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        """Initial state that each client keeps between rounds, in `rows.state` and `clients.state`, from the run's initial model [1, P].

        A client that drops out keeps its state from before the round.

        Returns:
            by name, initial values: [1, width] for all clients alike, or [K, width].
        """
        return {}

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        """What the server sends besides the model, read as `rows.received[name]`: [1, width] to all rows alike, or [rows, width]. It is
        charged."""
        return {}

    def start(self, state: State, clients: Clients) -> Tensor:
        """If `own_starts`: every row's start, [rows, P]; otherwise each starts from the model."""
        return clients.receive(state.model)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        """Local step j = 0, 1, ...: change `rows` in place. It is captured in a graph, so nothing may be read back to the host."""
        rows.descend(gradient(rows.parameters, batches[0]), j)

    def after_steps(self, rows: Rows) -> None:
        """After the last local step of a round, before anything is sent: keep in `rows.state` what clients remember of their ends, or turn
        `rows.parameters` into what they send, in place. It is captured as steps are. Methods of events have no such moment."""

    def mixing(self, K: int, J: int, j: int, steps: int, taken: int) -> Reals | None:
        """If `coupled`: the weights float64 [K, K] with which models are mixed after local step j; row k gives worker k's model.

        Args:
            J: local steps chosen by the rule. steps: of this round, which the budget may cut.
            taken: local steps of previous rounds.

        Returns:
            None if nothing is exchanged after this step.
        """
        return None

    def wait(self, ready: Reals, mixing: Reals) -> Reals:
        """When each worker continues after an exchange by :meth:`mixing`, float64 [K], given when each was `ready`: once all are."""
        return np.full_like(ready, ready.max())

    def charge(self, traffic: Traffic, mixing: Reals, payload: int) -> None:
        """Record one exchange by :meth:`mixing` in a run's ledger. payload: bytes of a model."""
        sent = (mixing != 0).sum(0) - (mixing.diagonal() != 0)
        traffic.exchange(int(sent.sum()), int(sent.max()), payload)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        """If `needs_ends`: update `state` in place from the rows' starts and ends [rows, P].

        Otherwise rows are averaged as they finish, so they are never in memory together, and `outer` gets the mean.
        """
        self.outer(state, clients, clients.mean(ends))

    def combine(self, returned: Sequence[Returned]) -> None:
        """If `mixes`: in place of `update`, what becomes of a round's ends, given for each architecture, of which some may have no client
        in the round. Changes the states in place, and what clients keep. A method that mixes says what it does here."""

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        """The outer step, given the mean of what clients returned, [1, P]; changes `state` in place."""
        clients.server.step(state.model, state.slots(), mean)

    def finish(self, state: State, clients: Clients) -> None:
        """Other communication at the end of a round, after the outer step."""

    def conclude(self, state: State, clients: Clients) -> None:
        """If `concludes`: called once after the last round, with all clients that have samples. Their state is not available, and what they
        send passes through no uplink."""

    def models(self, state: State) -> Tensor:
        """The models evaluated as the global model, [models, P]. After the last round their mean becomes the model."""
        return state.model

    predicts: ClassVar[bool] = False
    """Whether clients need more than their model's forward pass to predict (:meth:`predictor`)."""

    def join(self, state: State, models: Tensor, clients: Clients, steps: int) -> Tensor:
        """Models [rows, P] of clients that never take part in training, after what they do to have what others have trained, [rows, P]: by
        default some steps of SGD on their own samples, of the parameters that stay with clients; without such, they have it all."""
        own = self.personal(clients.facts.layout)
        return clients.tune(models, steps, columns=own) if own.width else models

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        """Models [rows, P], adapted to clients' own training samples before they are evaluated, [rows, P]."""
        return models

    @property
    def choices(self) -> tuple[Mapping[str, float], ...]:
        """If `predicts`: ways to predict, each as numbers by name. That with the best mean accuracy over clients on the validation
        samples is used for all."""
        return ({},)

    def predictor(self, clients: Clients, model: Tensor) -> Callable[[Outputs], Tensor]:
        """If `predicts`: how one client predicts.

        Args:
            clients: the client alone. model: its model, [1, P].

        Returns:
            turns outputs of its model, with a leading axis of length 1, into the logits of each of `choices`, [choices, ...].
        """
        return lambda outputs: outputs.logits

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        """Models of some clients, [rows, P], from `clients.personal` and `clients.state`."""
        models = state.model.repeat(len(clients.ids), 1)
        if clients.personal is not None:  # else only running statistics stay with clients
            self.personal(clients.facts.layout).write(models, clients.personal)
        return models


algorithms: Registry[Algorithm] = Registry("algorithm", "fl_hydra.algorithms")
