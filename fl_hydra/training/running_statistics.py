"""BatchNorm's running statistics from round to round."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_hydra.training.round_inputs import RunRound
from fl_hydra.training.row_group import PERSONAL_STATISTICS, RowGroup


class RunningStatistics:
    """Statistics of rows: sent with the model, updated by their batches, and averaged like models, whatever the outer optimizer does.

    Workers with their own models also keep their own statistics (gossip mixes them like models; asynchronous workers do not exchange
    them), whose mean is evaluated. Statistics of modules with personal parameters stay with the client, too, and with
    `model.statistics=local` all of them. Fixed ones are sent with the model, since a client may not have them yet, and do not come back;
    those that were fixed from the beginning are known to all.

    Args:
        group: the rows.
    """

    def __init__(self, group: RowGroup) -> None:
        self._group = group
        running, ours = group.layout.statistics, group.personal_statistics
        self._sent = running.size - ours.width
        self._variances = torch.tensor(
            [name.endswith("running_var") for name, size in zip(running.names, running.sizes, strict=True) for _ in range(size)],
            dtype=torch.bool,
            device=group.device,
        )

    def begin(self, part: RunRound) -> None:
        """Give the rows of a run their statistics at the beginning of a round."""
        rows = self._rows(part)
        if rows is None:
            return
        rows.copy_(self._given(part))
        if self._group.personal_statistics.width:
            self._group.personal_statistics.write(rows, self._group.buffers.kept[PERSONAL_STATISTICS][part.rows])
        if "workers" not in part.state.buffers and not self._group.statistics_known:
            part.clients.fabric.count_down(rows[:, : self._sent], plain=True)

    def end(self, part: RunRound) -> None:
        """Collect the rows' statistics at the end of a round; those of a row that drops out are reset to what it was given."""
        rows = self._rows(part)
        if rows is None or part.plan.fixed:
            return
        buffers, ours = part.state.buffers, self._group.personal_statistics
        given = self._given(part)
        for row in part.lost:
            rows[row - part.rows.start].copy_(given[row - part.rows.start])
        if ours.width:
            self._group.buffers.kept[PERSONAL_STATISTICS][part.rows].copy_(ours.of(rows))
        if "workers" in buffers:
            buffers["workers"][0].copy_(rows)
            buffers["model"].copy_(rows.mean(0, keepdim=True))
            return
        part.clients.fabric.count_up(rows[:, : self._sent], plain=True)
        model, stays = buffers["model"], ours.of(buffers["model"]).clone()
        mean = part.clients.fabric.sum_weighted(rows, part.clients.weights)
        if part.plan.residual_weight:  # with weights that do not sum to 1, a variance could become negative
            mean.add_(model, alpha=part.plan.residual_weight)
            mean.copy_(torch.where(self._variances, mean.clamp(min=0), mean))
        model.copy_(mean)
        ours.write(model, stays)

    def _rows(self, part: RunRound) -> Tensor | None:
        statistics = self._group.buffers.statistics
        return None if statistics is None else statistics[part.rows]

    @staticmethod
    def _given(part: RunRound) -> Tensor:
        """The statistics that each row was given, [rows, size]."""
        buffers = part.state.buffers
        return buffers["workers"][0] if "workers" in buffers else buffers["model"].expand(len(part.plan.ids), -1)
