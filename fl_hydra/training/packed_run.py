"""A run as a trainer holds it: everything that belongs to one run alone, so that several can train together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from fl_hydra.arrays import Indices, Reals
from fl_hydra.data.sample_owners import SampleOwners
from fl_hydra.errors import require
from fl_hydra.local_steps.base import Measured, Memory
from fl_hydra.randomness import generator, key
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.clients import Facts
from fl_hydra.seams.fabric import Traffic
from fl_hydra.seams.rows import GRADIENTS, OUTPUTS, PRODUCTS
from fl_hydra.sharding.shard_sampler import ShardSampler
from fl_hydra.training.client_files import Reference
from fl_hydra.training.client_store import ClientStore
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.image_samples import augmentation_stream
from fl_hydra.training.planning import RoundPlan

_stream = lru_cache(maxsize=2**17)(augmentation_stream)


class Members:
    """The clients of a run whose models have one architecture.

    Args:
        facts: of the run, with this architecture's layout.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.clients: ClientStore
        """State that they carry from round to round."""
        self.computed = 0
        """Samples of gradients, counted once for each gradient."""
        self.forwarded = 0
        """Samples of forward passes alone."""
        self.products = 0
        """Samples of products with the Hessian."""
        self.other_flops = 0
        """Floating-point operations that their method charges besides."""

    def counts(self) -> dict[str, int]:
        """What they computed, by name, where it is not 0."""
        named = {"forwarded": self.forwarded, "products": self.products, "other_flops": self.other_flops}
        return {name: value for name, value in named.items() if value}

    def load(self, computed: int, counts: Mapping[str, Any]) -> None:
        """Restore what they computed."""
        self.computed = computed
        self.forwarded, self.products, self.other_flops = (counts.get(name, 0) for name in ("forwarded", "products", "other_flops"))


class PackedRun:
    """One run of a trainer: its shards, its clients, and its progress.

    Args:
        experiment: what it trains.
        sample_owners: the owner and the label of each training sample.
        architectures: of its clients' models.

    Raises:
        UserError: the shards cannot be made, or too few clients have samples.
    """

    def __init__(self, experiment: Experiment, sample_owners: SampleOwners, architectures: Architectures) -> None:
        shards, validation, test = experiment.divided(sample_owners)
        self.withheld = {"val": validation, "test": test}
        """What is withheld of each client's shard, by the set that it makes; None: nothing is."""
        require(
            test is None or len(test.indices) > 0,
            f"evaluation.shard_part={experiment.shard_part}: no client has enough samples to withhold one, at most {shards.sizes.max()}; "
            "choose a larger part, or a smaller K",
        )
        self.experiment = experiment
        self.shards = shards
        self.public = experiment.public_samples(sample_owners)
        """Training samples that no client has, int64 [n]."""
        self.shard_sizes = shards.sizes
        self.drawn_sizes = experiment.participation.seen_sizes(shards.sizes)
        """Samples of each client that may be drawn, int64 [K]; 0 of those that are held out."""
        m, K, owners = experiment.m, experiment.K, int(np.count_nonzero(self.drawn_sizes))
        held_out = experiment.participation.kept_away
        which = "have samples" if not len(held_out) else "have samples and are not held out"
        require(
            m <= owners or m == K,
            f"C={m / K:g}: {owners} of {K} clients {which}, and {m} are needed; choose at most C={owners / K:g}",
        )
        labels, classes = sample_owners.labels, experiment.dataset_info.classes
        count_labels = None if labels is None else partial(shards.label_counts, labels, classes)
        require(
            owners == K - len(held_out) or not experiment.uplink.private,
            f"uplink={experiment.uplink.name}: {K - len(held_out) - owners} of {K} clients have no samples and are never drawn, which "
            "tells who they are; "
            f"choose a smaller K, or a sharding that gives every client samples",
        )
        self.architectures = architectures
        sizes, size = self.shard_sizes, experiment.batch_size
        self.members = [
            Members(Facts(K, m, experiment.seed, layout, sizes, count_labels, held_out, size, architectures, number))
            for number, layout in enumerate(architectures.layouts)
        ]
        """Its clients, by the architecture of their models."""
        self.sampler = ShardSampler(shards, experiment.seed)
        self.cursors = np.zeros(experiment.K, np.int64)
        """Samples that each client has drawn so far."""
        self.round = 0
        self.samples = 0
        self.lr = 0.0
        self.memory: Memory = {}
        """Memory of the rule for local steps."""
        self.J: int | None = None
        """Local steps of the last round, as chosen by the rule."""
        self.seconds = 0.0
        """Simulated seconds, of computing and of waiting for a server."""
        self.speeds = experiment.speeds.draw(max(experiment.K, experiment.data_parallel), experiment.seed)
        """Relative speeds of the K workers, or of those that share each step of a lone row."""
        self.sample_seconds = 1 / (experiment.speeds.throughput * self.speeds)
        """Simulated seconds that each of them takes for a gradient of a sample."""
        self.step_sample_seconds = experiment.algorithm.gradients_per_batch * self.sample_seconds
        """Simulated seconds that each of them takes for a sample of a local step."""
        self._pass_seconds = 0.0
        """Simulated seconds of gradients over whole shards in this round."""
        self._forward_seconds = 0.0
        """Simulated seconds of forward passes over whole shards in this round."""
        self.traffic = Traffic()
        self.server_flops = 0
        """Floating-point operations of the server, as far as the method charges them."""
        self.evaluated = 0
        """Samples of losses that clients computed for the selection of cohorts."""
        self.scheme_state: dict[str, Reals] = {}
        """Memory of the participation scheme."""
        self.averaged: int | None = None
        """Rounds since the average of the server's models began; None before."""

    @property
    def facts(self) -> Facts:
        """The run's constants, for its method, with the layout of its first architecture."""
        return self.members[0].facts

    @property
    def clients(self) -> ClientStore:
        """State that the clients of its first architecture carry from round to round."""
        return self.members[0].clients

    @property
    def computed(self) -> int:
        """Samples of gradients, counted once for each gradient."""
        return sum(members.computed for members in self.members)

    @property
    def forwarded(self) -> int:
        """Samples of forward passes alone."""
        return sum(members.forwarded for members in self.members)

    @property
    def products(self) -> int:
        """Samples of products with the Hessian."""
        return sum(members.products for members in self.members)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.samples >= self.experiment.budget

    @property
    def done(self) -> float:
        """The fraction of the budget that is spent."""
        return min(1.0, self.samples / self.experiment.budget)

    @property
    def fixed(self) -> bool:
        """Whether BatchNorm's running statistics no longer change, and are used in training (`model.statistics=frozen`)."""
        model = self.experiment.model
        return model.statistics == "frozen" and self.samples >= model.frozen_after * self.experiment.budget

    @property
    def cycling_factor(self) -> float:
        """What multiplies the learning rates of the next round while models are averaged."""
        e = self.experiment
        return 1.0 if e.swa is None else e.swa.factor(self.averaged, e.optimizer.lr)

    def loss_samples(self, ids: Indices, count: int | None) -> list[Indices]:
        """For each of these clients, the samples for its loss in this round: all, or the first `count` of a permutation."""
        if count is None:
            return [self.shards[client] for client in ids.tolist()]
        seed = self.experiment.seed
        return [generator(seed, "losses", self.round, client).permutation(self.shards[client])[:count] for client in ids.tolist()]

    def draw(self, plan: RoundPlan, count: int) -> Indices:
        """The next `count` draws of each client: positions in the training samples, int64 [rows, count]."""
        drawn = np.empty((len(plan.ids), count), np.int64)
        for row, client in enumerate(plan.ids):
            drawn[row] = self.sampler.indices(client, self.cursors[client], count)
        return drawn

    def augmentation_streams(self, ids: Indices) -> list[int]:
        """The numbers that identify the crops and flips of some clients, int64 [n]."""
        return [_stream(self.experiment.seed, client) for client in ids.tolist()]

    def uplink_streams(self, ids: Indices) -> Indices:
        """32-bit numbers that identify the draws of some clients' uplinks in this round, int64 [n]; -1 stands for the server."""
        seed = self.experiment.seed
        return np.array([key(seed, "uplink", self.round, client) & 0xFFFFFFFF for client in ids.tolist()], np.int64)

    def fact(self, name: str, ids: Indices) -> Reals:
        """A constant of some clients by name, float64 [n, width]: their `sizes` or `label_counts`."""
        if name == "sizes":
            return self.shard_sizes[ids, None].astype(np.float64)
        assert name == "label_counts"
        counts = self.facts.label_counts
        require(
            counts is not None,
            f"algorithm={self.experiment.algorithm.name}: counts labels, and samples of dataset={self.experiment.dataset.name} have none",
        )
        assert counts is not None
        return counts[ids].astype(np.float64)

    def charge_gradients(self, ids: Indices, samples: int | Indices | None = None, architecture: int = 0) -> None:
        """Charge gradients of so many samples to each of some clients of an architecture, which compute in parallel. samples: None: all
        that each has."""
        sizes = self.shard_sizes[ids] if samples is None else np.full(len(ids), samples)
        self.members[architecture].computed += int(sizes.sum())
        self._pass_seconds += float((sizes * self.sample_seconds[ids]).max())

    def charge_outputs(self, client: int, architecture: int = 0) -> None:
        """Charge one forward pass over all samples of a client; the slowest one of a round determines the time."""
        size = int(self.shard_sizes[client])
        self.members[architecture].forwarded += size
        self._forward_seconds = max(self._forward_seconds, size * float(self.sample_seconds[client]) / 3)

    def watch_files(self, check: Callable[[], None]) -> None:
        """Have `check` called before a file of client state is written or deleted; it raises if the run may not do so any more."""
        for members in self.members:
            members.clients.check = check

    def retire_clients(self) -> None:
        """Copy the cohort's state to where it is held, to free its rows for others."""
        for members in self.members:
            members.clients.retire()

    def clients_digest(self) -> str:
        """SHA-256 over the state of all clients that have taken part, 64 hex digits."""
        digests = [members.clients.digest() for members in self.members]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def collect_files(self, kept: Sequence[Mapping[int, Reference]]) -> None:
        """Delete files of client state to which neither a checkpoint in `kept` nor the current state refers."""
        living = frozenset[str]().union(*(members.clients.living for members in self.members))
        self.clients.collect(kept, living)

    def settle(self) -> None:
        """Add the time of passes over whole shards."""
        self.seconds += self._pass_seconds + self._forward_seconds
        self._pass_seconds = self._forward_seconds = 0.0

    def begin(self, plan: RoundPlan, payload: int) -> None:
        """Begin the round: charge the selection of its cohort. payload: bytes of a model."""
        self.scheme_state.update(plan.remember)
        self.evaluated += plan.selection.samples
        self.seconds += plan.selection.seconds
        self.traffic.bytes_down += plan.selection.downloads * payload
        self.traffic.messages += plan.selection.downloads
        self.traffic.served += plan.selection.downloads

    def observe_clients(self, plan: RoundPlan, observed: dict[str, Reals]) -> None:
        """Give the participation scheme the measurements of each row, float64 [rows] by name; before :meth:`advance`."""
        assert plan.seen is not None
        assert plan.reports is not None
        reported = {name: values[plan.reports] for name, values in observed.items()}
        seen = replace(plan.seen, memory=self.scheme_state)
        self.scheme_state = {**self.scheme_state, **self.experiment.participation.observe(seen, plan.ids[plan.reports], reported)}

    def count(self, computed: Indices, architecture: int = 0) -> None:
        """Count samples of local steps, int64 [3], by kind of computation (:data:`fl_hydra.seams.rows.CALLS`)."""
        members = self.members[architecture]
        members.computed += int(computed[GRADIENTS])
        members.forwarded += int(computed[OUTPUTS])
        members.products += int(computed[PRODUCTS])

    def advance(self, plan: RoundPlan, payload: int) -> None:
        """Finish the round: charge it, and advance the run.

        Args:
            payload: bytes of a model.
        """
        e = self.experiment
        if e.data_parallel > 1:
            self.traffic.average(e.data_parallel, payload, times=plan.steps)
        for mixing in plan.mixing:
            if mixing is not None:
                e.algorithm.charge(self.traffic, mixing, payload)
        self.traffic.steps += plan.steps
        self.cursors[plan.ids] += plan.samples
        self.samples += int(plan.samples.sum())
        self.lr = plan.last_rate
        self.seconds = plan.end_time
        self.settle()
        self.J = plan.J
        self.round += 1

    def observe_round(self, plan: RoundPlan, measured: Measured) -> None:
        """Give the rule for local steps the measurements of the round; after :meth:`advance`."""
        e = self.experiment
        if e.J is not None:
            samples = len(plan.ids) * e.algorithm.round_steps(1) * e.step_samples
            e.local_steps.observe(measured, e.J, samples, self.samples / e.budget, self.memory)

    def state_dict(self) -> dict[str, Any]:
        """The run's progress, as plain values and tensors; the state of its clients is written to files and referred to."""
        return {
            "round": self.round,
            "samples": self.samples,
            "lr": self.lr,
            "cursors": torch.from_numpy(self.cursors.copy()),
            "memory": dict(self.memory),
            "J": self.J,
            "seconds": self.seconds,
            "gradient_samples": self.members[0].computed,
            "evaluated": self.evaluated,
            "participation": {name: torch.from_numpy(values.copy()) for name, values in self.scheme_state.items()},
            "traffic": asdict(self.traffic),
            "clients": {client: place for members in self.members for client, place in members.clients.save().items()},
            **self.members[0].counts(),
            **({"server_flops": self.server_flops} if self.server_flops else {}),
            **({} if len(self.members) == 1 else {"members": [self._counted(members) for members in self.members[1:]]}),
            **({} if self.averaged is None else {"averaged": self.averaged}),
        }

    @staticmethod
    def _counted(members: Members) -> dict[str, int]:
        return {"gradient_samples": members.computed, **members.counts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            CorruptFile: the state of a client that it refers to is damaged; then nothing changes.
        """
        for number, members in enumerate(self.members):
            kept = state["clients"].items()
            members.clients.restore({client: place for client, place in kept if self.architectures.number(client) == number})
        self.round, self.samples, self.lr = state["round"], state["samples"], state["lr"]
        self.cursors = state["cursors"].numpy().copy()
        self.memory, self.J, self.seconds = dict(state["memory"]), state["J"], state["seconds"]
        self.evaluated = state["evaluated"]
        for members, counts in zip(self.members, [state, *state.get("members", [])], strict=True):
            members.load(counts["gradient_samples"], counts)
        self.server_flops = state.get("server_flops", 0)
        self.averaged = state.get("averaged")
        self.scheme_state = {name: values.numpy().copy() for name, values in state["participation"].items()}
        self.traffic = Traffic(**state["traffic"])
