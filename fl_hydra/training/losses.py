"""Losses of batches: cross-entropy, or a method's own; padding does not count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_hydra.seams.losses import cross_entropies, target_mask
from fl_hydra.seams.rows import METER_WIDTH, Batch, Loss, Outputs


@dataclass(frozen=True)
class Objective:
    """A loss other than cross-entropy, with its inputs.

    whole: whether it is computed on a whole batch. by_row: further inputs by name, [rows, ...]; by_sample: [rows, B, ...].
    """

    loss: Loss
    whole: bool
    by_row: dict[str, Tensor]
    by_sample: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All further inputs, with a leading axis of rows."""
        return self.by_row | self.by_sample

    def rows(self, part: slice) -> Objective:
        """The objective of some of the rows."""
        by_row, by_sample = ({name: value[part] for name, value in values.items()} for values in (self.by_row, self.by_sample))
        return replace(self, by_row=by_row, by_sample=by_sample)

    def samples(self, part: slice) -> Objective:
        """The objective of some samples of every row's batch."""
        return replace(self, by_sample={name: value[:, part] for name, value in self.by_sample.items()})

    def mean(self, outputs: Outputs, targets: Tensor, weights: Tensor | None, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of one row's batch: the mean over the targets that count, unless it is computed on the whole batch."""
        if self.whole:
            return self.loss(outputs, targets, weights=weights, **inputs)  # type: ignore[arg-type]
        losses, mask = self.loss(outputs, targets, **inputs), target_mask(targets, weights)
        return losses.mean() if mask is None else (losses * mask).sum() / mask.sum().clamp(min=1)


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed loss, correct predictions and number of targets, [models, 3], of logits [models, n, ...] for targets [n, ...]."""
    targets = targets.expand(len(logits), *targets.shape)
    totals = torch.empty(len(logits), METER_WIDTH, dtype=torch.float64, device=logits.device)
    totals[:, 0] = cross_entropies(logits, targets).flatten(1).sum(1)
    totals[:, 1] = (logits.argmax(-1) == targets).flatten(1).sum(1)
    totals[:, 2] = (targets >= 0).flatten(1).sum(1)
    return totals


def _sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of each sample's targets, [B]."""
    losses = cross_entropies(logits, targets)
    return losses if losses.dim() == 1 else losses.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def summed_squares(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of the squared losses of samples without padding."""
    squares = _sample_losses(logits.detach(), targets).square()
    return squares.sum() if weights is None else (squares * weights).sum()


def counts_of(batch: Batch) -> Tensor | int:
    """How many targets of each row's batch count: [rows, 1], or one number for all rows."""
    if batch.targets.dim() == 2:
        return batch.targets.shape[1] if batch.weights is None else batch.weights.sum(1, keepdim=True).clamp(min=1)
    present = (batch.targets >= 0).sum(2).to(batch.meter.dtype)
    return (present if batch.weights is None else present * batch.weights).sum(1, keepdim=True).clamp(min=1)


def count_targets(targets: Tensor, weights: Tensor) -> Tensor:
    """How many targets [rows, B] or [rows, B, positions] count in each row, by the weights [rows, B] of samples: [rows, 1]."""
    present = weights if targets.dim() == 2 else (targets >= 0).sum(2) * weights
    return present.sum(1, keepdim=True)
