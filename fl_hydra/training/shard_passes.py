"""Gradients and outputs over whole shards, outside local steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.seams.layout import Columns
from fl_hydra.seams.rows import CALLS, METER_WIDTH, Batch, Outputs
from fl_hydra.training.batch_stream import BatchStream, Beside
from fl_hydra.training.losses import count_targets
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.samples import Samples

PASS_SAMPLES = 512
"""Samples of a row that are computed at once."""


class ShardPasses:
    """Passes over all samples of clients, without augmentation, in evaluation mode: without dropout, with running statistics.

    Args:
        group: the rows. samples: the training samples.
    """

    def __init__(self, group: RowGroup, samples: Samples) -> None:
        self._group, self._samples = group, samples
        self.architecture = group.number

    def gradient(self, run: PackedRun, state: State, ids: Indices, models: Tensor) -> Tensor:
        """The gradient of the mean loss over each client's samples, int64 [n], at its model [n, P]: [n, P]."""
        return self.gradient_of(run, state, ids, models, [run.shards[client] for client in ids.tolist()])[0]

    def gradient_of(self, run: PackedRun, state: State, ids: Indices, models: Tensor, samples: Sequence[Indices]) -> tuple[Tensor, Tensor]:
        """The gradient of the mean loss over some training samples of each client, at its model [n, P]: [n, P]; and that loss, [n]."""
        found, losses = torch.zeros_like(models, memory_format=torch.contiguous_format), models.new_zeros(len(ids))
        statistics, frozen = self._group.client_statistics(state, run.members[self.architecture].clients, ids), state.buffers.get("frozen")
        for rows in self._group.engine.blocks(len(ids), self._group.rows_at_once):
            own = Beside(None if statistics is None else statistics[rows], None if frozen is None else frozen[0])
            losses[rows] = self._add(samples[rows], models[rows].contiguous(), own, found[rows])
        return found, losses

    def outputs(self, run: PackedRun, state: State, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        """The outputs [n, ...] of a model [1, P] for a client's samples, and their targets [n, ...]."""
        which = to_device(run.shards[client], model.device)
        model = self._group.whole(
            model, state, self._group.client_statistics(state, run.members[self.architecture].clients, np.array([client]))
        )
        parts = [self._group.engine.outputs_of(model, self._samples.plain(part)[None]) for part in torch.split(which, PASS_SAMPLES)]
        outputs = Outputs(torch.cat([part.logits[0] for part in parts]), torch.cat([part.features[0] for part in parts]))
        return outputs, self._samples.targets[which]

    def tune(
        self, run: PackedRun, state: State, ids: Indices, models: Tensor, steps: int, lr: Tensor | float | None, columns: Columns | None
    ) -> Tensor:
        """Models [n, P] of clients, int64 [n], after steps of SGD on the first batches of their orders, [n, P], in new memory.

        Args:
            lr: a number, or [1 or n, 1]; None: the run's peak rate. columns: which parameters are trained; None: all.
        """
        found = models.clone(memory_format=torch.contiguous_format)
        rates = found.new_empty(len(ids), 1)
        rates.copy_(lr) if isinstance(lr, Tensor) else rates.fill_(run.experiment.peak_lr if lr is None else lr)
        statistics, frozen = self._group.client_statistics(state, run.members[self.architecture].clients, ids), state.buffers.get("frozen")
        for rows in self._group.engine.blocks(len(ids), self._group.rows_at_once) if steps else []:
            own = Beside(None if statistics is None else statistics[rows], None if frozen is None else frozen[0], run.fixed)
            part = found[rows].clone()  # the last bits of a product may depend on the address
            for batch in self._first_batches(run, ids[rows], steps, own):
                step = self._group.engine.gradient(part, batch, metered=False).mul_(rates[rows])
                if columns is None:
                    part.sub_(step)
                else:
                    columns.write(part, columns.of(part) - columns.of(step))
            found[rows] = part
        return found

    def public(self, run: PackedRun) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and targets [n] of the samples that no client has."""
        which = to_device(run.public, self._group.device)
        return self._samples.plain(which), self._samples.targets[which]

    def _first_batches(self, run: PackedRun, ids: Indices, steps: int, beside: Beside) -> Iterator[Batch]:
        """The batches with which the orders of some clients begin, as in training."""
        count, size, device = len(ids), run.experiment.batch_size, self._group.device
        indices = np.stack([run.sampler.indices(client, 0, steps * size) for client in ids.tolist()])
        stream = BatchStream(
            self._samples,
            to_device(indices, device).view(count, steps, size),
            to_device(np.array(run.augmentation_streams(ids), np.int64), device),
            torch.zeros(count, dtype=torch.int64, device=device),
            None,
            torch.zeros(count, METER_WIDTH, dtype=self._group.dtype, device=device),
            np.full((count, steps), size),
            np.zeros((count, steps, len(CALLS)), np.int64),
            self._group.layout.random,
        )
        return stream.batches(slice(0, count), False, beside)

    def _add(self, shards: Sequence[Indices], models: Tensor, beside: Beside, found: Tensor) -> Tensor:
        """Add the gradients of some models' mean losses over these samples to `found` [models, P]; the mean losses, [models]."""
        count = len(shards)
        meter = models.new_zeros(count, METER_WIDTH + self._group.engine.squares)
        longest, device = max(map(len, shards)), models.device
        indices = to_device(np.stack([np.pad(shard, (0, longest - len(shard))) for shard in shards]), device)
        sizes = to_device(np.array([len(shard) for shard in shards]), device)
        present = (torch.arange(longest, device=device) < sizes[:, None]).to(models.dtype)
        targets = torch.zeros(count, 1, dtype=models.dtype, device=device)
        for first in range(0, longest, PASS_SAMPLES):
            part = slice(first, min(first + PASS_SAMPLES, longest))
            which = indices[:, part]
            inputs = self._samples.plain(which.flatten())
            batch = Batch(
                inputs.view(*which.shape, *inputs.shape[1:]),
                self._samples.targets[which],
                present[:, part],
                meter,
                np.zeros(count, np.int64),
                np.zeros((count, len(CALLS)), np.int64),
                statistics=beside.statistics,
                frozen=beside.frozen,
                training=False,
            )
            counted = count_targets(batch.targets, present[:, part])
            found.addcmul_(self._group.engine.gradient(models, batch), counted)
            targets += counted
        found.div_(targets.clamp(min=1))
        return meter[:, 0] / targets[:, 0].clamp(min=1)


class RunShards:
    """:class:`fl_hydra.seams.clients.ShardPass` of one run.

    Args:
        passes: over shards. state: of the run, with the models' buffers. charged: whether passes are charged to the run.
    """

    def __init__(self, passes: ShardPasses, run: PackedRun, state: State, charged: bool = True) -> None:
        self._passes, self._run, self._state, self._charged = passes, run, state, charged

    def gradient(self, ids: Indices, models: Tensor) -> Tensor:
        if self._charged:
            self._run.charge_gradients(ids, architecture=self._passes.architecture)
        return self._passes.gradient(self._run, self._state, ids, models)

    def gradient_of(self, ids: Indices, models: Tensor, samples: Sequence[Indices]) -> tuple[Tensor, Tensor]:
        if self._charged:
            self._run.charge_gradients(ids, np.array([len(own) for own in samples]), self._passes.architecture)
        chosen = [self._run.shards[client][own] for client, own in zip(ids.tolist(), samples, strict=True)]
        return self._passes.gradient_of(self._run, self._state, ids, models, chosen)

    def outputs(self, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        if self._charged:
            self._run.charge_outputs(client, self._passes.architecture)
        return self._passes.outputs(self._run, self._state, client, model)

    def tune(self, ids: Indices, models: Tensor, steps: int, lr: Tensor | float | None, columns: Columns | None) -> Tensor:
        if self._charged:
            self._run.charge_gradients(ids, steps * self._run.experiment.batch_size, self._passes.architecture)
        return self._passes.tune(self._run, self._state, ids, models, steps, lr, columns)

    def charge_server(self, flops: int) -> None:
        if self._charged:
            self._run.server_flops += flops

    def charge(self, flops: int) -> None:
        if self._charged:
            self._run.members[self._passes.architecture].other_flops += flops

    def public(self) -> tuple[Tensor, Tensor]:
        return self._passes.public(self._run)
