"""The clients that a method sees: a round's cohort, or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.optim.outer import Outer
from fl_hydra.seams.clients import Clients, Mask, Server
from fl_hydra.seams.fabric import Fabric, Wire
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.planning import RoundPlan
from fl_hydra.training.round_inputs import RunRound, is_masked
from fl_hydra.training.row_group import PERSONAL, STATE, RowGroup
from fl_hydra.training.shard_passes import RunShards, ShardPasses


class Cohorts:
    """Makes the :class:`fl_hydra.seams.clients.Clients` of a trainer's runs.

    Args:
        experiment: the first run; all others share its method and uplink.
        group: the rows. passes: over all samples of clients.
    """

    def __init__(self, experiment: Experiment, group: RowGroup, passes: ShardPasses) -> None:
        self._algorithm, self._uplink = experiment.algorithm, experiment.uplink
        self._group, self.passes = group, passes
        self._servers: list[Server] = []
        self._own_hyper: dict[str, Tensor] = {}

    def allocate(self, outer: Sequence[Outer], algorithms: Sequence[Algorithm]) -> None:
        """Make the servers of all runs from their outer optimizers, and note their methods' hyper-parameters."""
        group = self._group
        self._own_hyper = group.own_hyper(algorithms)
        hyper = group.hyper(outer)
        rates = torch.tensor([[rule.lr] for rule in outer], dtype=group.dtype, device=group.device)
        self._servers = [
            Server(rule, {name: values[run : run + 1] for name, values in hyper.items()}, rates[run : run + 1], rates[:0], group.layers)
            for run, rule in enumerate(outer)
        ]

    def part(self, run: PackedRun, index: int, plan: RoundPlan, state: State) -> RunRound:
        """A run's part in a round, with its cohort's state checked out. index: the run's. state: what it carries, [1, ...]."""
        group = self._group
        rows = group.division.sections[index]
        reports = np.ones(len(plan.ids), np.bool_) if plan.reports is None else plan.reports
        kept = {name: values[rows] for name, values in group.buffers.kept.items()}
        run.members[group.number].clients.check_out(plan.ids, run.round, kept)
        for name, values in group.buffers.facts.items():
            known = plan.rates.sum(1, keepdims=True) if name == "rates" else run.fact(name, plan.ids)
            values[rows].copy_(to_device(known, group.device))
        lost: list[int] = np.flatnonzero(~reports).tolist()
        numbers = to_device(np.append(plan.weights, plan.mean_rate), group.device).to(group.dtype)
        server = replace(self._servers[index], local_lr=numbers[-1:, None])
        clients = replace(
            self._clients(run, index, plan.ids, reports, numbers[:-1], server, state, encoded=not self._uplink.bypassed),
            steps=-(-plan.samples // run.experiment.step_samples),
            rates=to_device(plan.rates.sum(1), group.device).to(group.dtype)[:, None],
            state={name.removeprefix(STATE): values for name, values in kept.items() if name.startswith(STATE)},
            slots={name: kept[name] for name in group.kept_slots},
        )
        return RunRound(
            plan,
            rows,
            state,
            clients,
            is_masked(plan, run),
            tuple(mixing is not None for mixing in plan.mixing),
            int(reports.sum()),
            frozenset(rows.start + row for row in lost),
            [(values[row], values[row].clone()) for values in kept.values() for row in lost],
            None if self._uplink.bypassed else to_device(run.uplink_streams(plan.ids), group.device),
            int(run.uplink_streams(np.array([-1]))[0]) if self._uplink.at_server else 0,
        )

    def everyone(self, run: PackedRun, index: int, state: State) -> Clients:
        """All clients of a run that have samples and are not held out, weighted by their number. state: what it carries, [1, ...]."""
        ids = np.flatnonzero(run.drawn_sizes)
        shares = to_device(run.shard_sizes[ids] / run.drawn_sizes.sum(), self._group.device).to(self._group.dtype)
        rate = torch.full((1, 1), run.lr, dtype=self._group.dtype, device=self._group.device)
        return self._clients(run, index, ids, np.ones(len(ids), np.bool_), shares, replace(self._servers[index], local_lr=rate), state)

    def uncharged(self, run: PackedRun, index: int, ids: Indices, state: State) -> Clients:
        """Some clients, int64 [n], for an evaluation, whose computation is not charged. state: what the run carries, [1, ...]."""
        weights = torch.full((len(ids),), 1 / len(ids), dtype=self._group.dtype, device=self._group.device)
        clients = self._clients(run, index, ids, np.ones(len(ids), np.bool_), weights, self._servers[index], state)
        store = run.members[self._group.number].clients
        kept = {name: store.read(ids, name) for name in self._group.kept_widths if name == PERSONAL or name.startswith(STATE)}
        return replace(
            clients,
            shards=RunShards(self.passes, run, state, charged=False),
            state={name.removeprefix(STATE): values for name, values in kept.items() if name != PERSONAL},
            personal=kept.get(PERSONAL, state.model[:, :0].expand(len(ids), 0)),
        )

    def _clients(
        self,
        run: PackedRun,
        index: int,
        ids: Indices,
        reports: Mask,
        weights: Tensor,
        server: Server,
        state: State,
        encoded: bool = False,
    ) -> Clients:
        """Some clients of a run, without their state. encoded: whether what they send passes through the uplink."""
        group = self._group
        wire = Wire(group.layout.size, group.unsent.width, self._uplink.size if encoded else None)
        return Clients(
            run.members[group.number].facts,
            run.round,
            ids,
            weights,
            reports,
            np.zeros(len(ids), np.int64),
            torch.zeros_like(weights)[:, None],
            {},
            {},
            Fabric(self._algorithm.federated, len(ids), int(reports.sum()), run.traffic, wire, silent=not self._algorithm.communicates),
            server,
            {name: values[index : index + 1] for name, values in self._own_hyper.items()},
            RunShards(self.passes, run, state),
        )
