"""The one loop.

Every method, including centralized training, repeats a round: choose participants, give each row its start, J local steps,
communicate, outer step. A round reads nothing back to the host except the state of clients that leave the cohort, if the method
has such state, the measurements of a rule for local steps or a participation scheme, if they need any, and what a method itself looks
at: before the steps (FedALA's `start`), in each of them (`reads_back`), or after them (pFedHR's `combine`).

A trainer holds one run, or several that train together ("packed"), with the rows of each run adjacent. Not one bit of a run depends
on the others: a block of rows belongs to one run, sums are taken run by run in a fixed order, a method's seams see one run at a time,
and the number of threads and the size of blocks follow from the run alone. So runs may join and leave a pack after any round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import computes_in, keep_freed_memory
from fl_hydra.errors import require
from fl_hydra.training.architecture import Architecture, together
from fl_hydra.training.averages import AVERAGE, AVERAGE_STATISTICS
from fl_hydra.training.client_group import ClientGroup
from fl_hydra.training.cohorts import Cohorts
from fl_hydra.training.engine_names import ENGINE_KINDS
from fl_hydra.training.engine_selection import candidates, fastest
from fl_hydra.training.evaluation import Metrics, evaluate
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.judged import JudgedModel
from fl_hydra.training.local_phase import LocalPhase
from fl_hydra.training.measurements import LossQueries, Measurements, joined
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.personal_evaluation import PersonalScores
from fl_hydra.training.precision import PRECISIONS
from fl_hydra.training.round_inputs import RoundInputs
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.split import load_split


class Trainer:
    """One run, or several that train together, in memory.

    Args:
        experiments: what to train; several must have the same :func:`fl_hydra.runs.packing.shape`.
        engine: one of :data:`fl_hydra.training.engine_selection.ENGINES`, or `auto`.
        device: where.
        client_folders: for each run, where client state is written; None keeps it in memory.
        state_on: where client state is held between a client's rounds: `auto`, `device`, `cpu` or `disk`.
        rows_at_once, samples_at_once: rows of a run that are trained in one block, and samples of a batch whose gradient is computed
            at once; None: a function of the configuration, fewer if memory is short. A run's last bits depend on them.
        notify: is told, in one line, what the user should know.

    Raises:
        UserError: the model does not fit the samples, or the shards cannot be made.
    """

    def __init__(
        self,
        *experiments: Experiment,
        engine: str = "auto",
        device: str = "cpu",
        client_folders: Sequence[Path] | None = None,
        state_on: str = "auto",
        rows_at_once: int | None = None,
        samples_at_once: int | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        first = self._first = experiments[0]
        algorithm = first.algorithm
        self.device = _prepared(device)
        self.precision = PRECISIONS[first.precision]
        self.precision.configure(self.device)
        self._notify = notify
        if not computes_in(self.device, self.precision.compute):
            notify(f"precision={first.precision}: this CPU has no instructions for it, so that a step takes longer than in fp32, not less")
        built = [Architecture.of(model, first.dataset_info, algorithm) for model in first.models]
        architectures = together(built)
        self.engine_name = self._choose(experiments, built) if engine == "auto" else engine
        rows = [
            RowGroup(
                first, each, self.engine_name, self.precision, self.device, rows_at_once, samples_at_once, notify, architectures, number
            )
            for number, each in enumerate(built)
        ]
        self.split = load_split(first.dataset, first.data, first.split_seed, self.precision, self.device)
        first.uplink.check(rows[0].layout.statistics.size - rows[0].personal_statistics.width)
        if rows[0].personal_statistics.width:
            _refuse_held_out(experiments)
        self.runs = [PackedRun(experiment, self.split.sample_owners, architectures) for experiment in experiments]
        folders: Sequence[Path | None] = client_folders or [None] * len(experiments)
        self.measurements = Measurements(self.runs, self.device)
        self.groups = [ClientGroup(each, self.runs, self.split, self.measurements, folders, state_on) for each in rows]
        """Clients by the architecture of their models."""
        self.loss_queries = LossQueries(self.group.engine, self.split.train, notify)
        self._allocate([[-(-experiment.m // len(rows)) for experiment in experiments]] * len(rows))

    @property
    def group(self) -> RowGroup:
        """The rows of the first architecture."""
        return self.groups[0].rows

    @property
    def state(self) -> State:
        """What all runs carry for the first architecture."""
        return self.groups[0].state

    @property
    def cohorts(self) -> Cohorts:
        """Makes the clients of the first architecture, as a method sees them."""
        return self.groups[0].cohorts

    def run_round(self) -> None:
        """One round of every run.

        Raises:
            ValueError: a run's budget is spent; call :meth:`retain_runs` for the others.
        """
        if any(run.finished for run in self.runs):
            raise ValueError("a run of this trainer has spent its budget; retain_runs() the others, or make a new trainer")
        plans = [self.groups[0].phase.plan(run, partial(self._losses, index)) for index, run in enumerate(self.runs)]
        for run, plan in zip(self.runs, plans, strict=True):
            run.begin(plan, self.group.payload)
        rounds = [(group, group.begin(self.runs, plans)) for group in self.groups]
        for group, inputs in rounds:
            group.phase.send(inputs)
            group.phase.train(inputs, [run.experiment.optimizer for run in self.runs])
        means = [self._means(group, inputs) for group, inputs in rounds]

        of_clients = [self.measurements.clients(inputs, group.rows.buffers) for group, inputs in rounds]
        of_rounds = [self.measurements.rounds(inputs, group.rows.buffers, own) for (group, inputs), own in zip(rounds, means, strict=True)]
        for index, (run, plan) in enumerate(zip(self.runs, plans, strict=True)):
            self._update(index, rounds, means)

            parts = [inputs.runs[index] for _, inputs in rounds]
            for (group, inputs), part in zip(rounds, parts, strict=True):
                self.measurements.add(index, group.rows.buffers.meter[part.rows])
                run.count((inputs.calls[part.rows] * inputs.counts[part.rows, :, None]).sum((0, 1)), group.rows.number)
            if self.measurements.of_clients:
                run.observe_clients(plan, joined(plan, parts, of_clients))
            run.advance(plan, self.group.payload)
            if (found := of_rounds[0]) is not None:
                run.observe_round(plan, found[index])
            state = self._state_of(index)
            if run.experiment.swa is not None:
                run.averaged = run.experiment.swa.follow(run.averaged, run.done, state, self._first.algorithm.models(state))
            if run.finished:
                self._settle(run, state)
            if run.finished and self._first.algorithm.concludes:
                self._first.algorithm.conclude(state, self.cohorts.everyone(run, index, state))
                run.settle()

    @staticmethod
    def _means(group: ClientGroup, inputs: RoundInputs) -> list[Tensor | None]:
        return [group.phase.mean(index, part) for index, part in enumerate(inputs.runs)]

    def _update(self, index: int, rounds: list[tuple[ClientGroup, RoundInputs]], means: list[list[Tensor | None]]) -> None:
        """Update what a run carries from what its rows returned."""
        if not self._first.algorithm.mixes:
            ((group, inputs),) = rounds
            group.phase.update(inputs.runs[index], inputs, means[0][index])
            return
        parts = [inputs.runs[index] for _, inputs in rounds]
        reporting = [part for part in parts if part.reports]
        for part in reporting[1:]:
            part.clients.fabric.waits = False  # the server waits for all of them together
        if reporting:
            phases = [group.phase for group, _ in rounds if isinstance(group.phase, LocalPhase)]
            returned = [phase.returned(part, inputs) for phase, part, (_, inputs) in zip(phases, parts, rounds, strict=True)]
            self._first.algorithm.combine(returned)
        for part in parts:
            part.restore_lost()

    def _settle(self, run: PackedRun, state: State) -> None:
        """After the last round: what is evaluated becomes the model."""
        models, statistics = self._evaluated(run, state)
        if models is not state.model:
            state.model.copy_(models.mean(0, keepdim=True))
        if statistics is not None:
            state.buffers["model"].copy_(statistics)

    def _evaluated(self, run: PackedRun, state: State) -> tuple[Tensor, Tensor | None]:
        """The models of a run that are evaluated, [models, P], and their running statistics where these are not the server's."""
        if run.averaged is not None:
            return state.buffers[AVERAGE], state.buffers.get(AVERAGE_STATISTICS)
        return self._first.algorithm.models(state), None

    def _allocate(self, counts: Sequence[list[int]]) -> None:
        """Allocate memory for rounds with these numbers of rows of each run, in each group."""
        for group, own in zip(self.groups, counts, strict=True):
            group.allocate(self.runs, own)
        least = min(group.rows.rows_at_once for group in self.groups), min(group.rows.samples_at_once for group in self.groups)
        for group, own in zip(self.groups, counts, strict=True):  # one number for all, on which a run's last bits depend
            if group.rows.limit(*least):
                group.allocate(self.runs, own)

    def _losses(self, index: int, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of a run's current model, for its participation scheme."""
        model = self.group.whole(self.state.model[index : index + 1], self._state_of(index))[0]
        return self.loss_queries.answer(self.runs[index], model, ids, samples)

    def _choose(self, experiments: Sequence[Experiment], architectures: Sequence[Architecture]) -> str:
        """The engine for `auto`: by a rule, or by timing a few short rounds of each candidate."""
        first = self._first
        of_each = [
            candidates(self.device, each.layout, each.sample_bytes * first.batch_size, self.precision, -(-first.m // len(architectures)))
            for each in architectures
        ]
        names = max(of_each, key=lambda names: (len(names), "loop" in names))
        if first.algorithm.reads_back:
            names = list(dict.fromkeys(ENGINE_KINDS[name].gradients for name in names))
        if len(names) == 1:
            return names[0]
        rows = sum(experiment.m for experiment in experiments)
        described = (
            first.models,
            first.dataset_info,
            first.batch_size,
            rows,
            first.precision,
            first.algorithm,
            first.optimizer,
            self.device,
        )
        short = [replace(experiment, J=min(experiment.J or 4, 4), budget=10**12) for experiment in experiments]
        return fastest(names, lambda name: Trainer(*short, engine=name, device=str(self.device)).run_round, repr(described), self._notify)

    @property
    def finished(self) -> bool:
        """Whether every run's budget is spent."""
        return all(run.finished for run in self.runs)

    @property
    def sole_run(self) -> PackedRun:
        """The run of a trainer that holds only one."""
        (run,) = self.runs
        return run

    def retain_runs(self, runs: Sequence[int]) -> None:
        """Keep only these runs."""
        for run in self.runs:
            run.retire_clients()
        which = torch.tensor(list(runs), device=self.device)
        counts = [[max(1, group.rows.division.counts[run]) for run in runs] for group in self.groups]  # a group may have had no rows
        self.runs = [self.runs[run] for run in runs]
        for group in self.groups:
            group.state = group.state.of_runs(which)
        self.measurements.retain_runs(which)
        self._allocate(counts)

    def evaluate(self, runs: Sequence[int] = (0,)) -> list[Metrics]:
        """The current metrics of some runs; training figures are means since the last evaluation. Reads back."""
        return [self._evaluate(run) for run in runs]

    def _evaluate(self, run: int) -> Metrics:
        state = self._state_of(run)
        # A copy, as for every evaluation: the last bits of a product may depend on the address.
        models, statistics = (state.model, None) if self.runs[run].finished else self._evaluated(self.runs[run], state)
        models = self.group.whole(models.clone(), state, statistics)
        personal = partial(self.personal_scores, run) if self.runs[run].experiment.personalised else None
        groups = [group.rows for group in self.groups]
        return evaluate(self.runs[run], run, models, personal, self.split, groups, self.measurements, self._notify)

    def _judged(self, group: ClientGroup, run: int) -> State:
        """What a run carries, with what is evaluated of it as its model, from which clients' models are made."""
        state = group.state_of(run)
        if self.runs[run].finished or not self._first.global_model:
            return state
        models, statistics = self._evaluated(self.runs[run], state)
        buffers = state.buffers if statistics is None else {**state.buffers, "model": statistics}
        return state if models is state.model else replace(state, model=models.mean(0, keepdim=True), buffers=buffers)

    def personal_scores(self, index: int, looked_at: Mapping[str, Tensor]) -> dict[str, PersonalScores]:
        """Scores of a run's clients with their own models, by set. looked_at: int64 [n], what is evaluated of the sets `val` and `test`."""
        of_groups = [group.scores(self.runs[index], index, self._judged(group, index), looked_at) for group in self.groups]
        return {name: PersonalScores.together([scores[name] for scores in of_groups]) for name in looked_at}

    def client_module(self, client: int, choice: int = 0, run: int = 0) -> JudgedModel:
        """The model with which a client is judged. choice: which of the method's `choices` is used."""
        packed, group = self.runs[run], self.groups[self.runs[run].architectures.number(client)]
        state = self._judged(group, run)
        return group.personal.module(packed, state, client, lambda ids: group.cohorts.uncharged(packed, run, ids, state), choice)

    def _state_of(self, run: int) -> State:
        """What a run carries, the trainer's own memory."""
        return self.groups[0].state_of(run)

    def weights(self, run: int = 0) -> Tensor:
        """A run's model, [P], on the host; that of the first architecture."""
        return self.state.model[run].cpu()

    def checkpoint(self, run: int = 0) -> dict[str, Any]:
        """Everything that a run's next round depends on, as plain values and tensors; client state is written to files and referred to."""
        noise = self.measurements.noise
        return {
            **self.runs[run].state_dict(),
            "state": self.groups[0].saved(run),
            **({} if len(self.groups) == 1 else {"states": [group.saved(run) for group in self.groups[1:]]}),
            "meter": self.measurements.meter[run].clone(),
            "noise": None if noise is None else noise.averages[run].clone(),
        }

    def restore(self, checkpoint: dict[str, Any], run: int = 0) -> None:
        """Restore a run from its checkpoint.

        Raises:
            CorruptFile: client state that it refers to is damaged.
        """
        self.runs[run].load_state_dict(checkpoint)
        for group, saved in zip(self.groups, [checkpoint["state"], *checkpoint.get("states", [])], strict=True):
            for name, tensor in group.state.tensors().items():
                tensor[run].copy_(saved[name])
        self.measurements.meter[run].copy_(checkpoint["meter"])
        if self.measurements.noise is not None:
            self.measurements.noise.averages[run].copy_(checkpoint["noise"])


def _refuse_held_out(experiments: Sequence[Experiment]) -> None:
    """Refuse runs in which clients would have to be judged without the running statistics that stay with them."""
    for e in experiments:
        require(
            e.participation.held_out is None,
            f"participation.held_out={e.participation.held_out}: running statistics of BatchNorm stay with clients here, and "
            "those that never train have none; choose another method, or leave held_out out",
        )


def _prepared(device: str) -> torch.device:
    """A device, made ready for training."""
    chosen = torch.device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
        return chosen
    chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
    torch.cuda.set_device(chosen)  # streams and graphs are created on the current device
    return chosen
