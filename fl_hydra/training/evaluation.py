"""A line of metrics.jsonl: the model on the validation and test sets, and the training figures since the last line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from fl_hydra.training.measurements import Measurements
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.samples import Samples
from fl_hydra.training.split import Split

Metrics = dict[str, float | int | None]
"""One line of metrics.jsonl; None where a number is not finite or there is no such set."""


def evaluate(
    run: PackedRun, index: int, models: Tensor, split: Split, group: RowGroup, measured: Measurements, notify: Callable[[str], None]
) -> Metrics:
    """A run's present metrics. Reads back, and begins its training figures anew.

    Args:
        index: the run's, among those of the trainer. models: [models, P], what is evaluated. notify: is told that a long evaluation begins.
    """
    e = run.experiment
    sets = {"val": split.validation, "test": split.test} if e.test else {"val": split.validation}
    if run.finished and any(samples.eval_subset_size < e.final * len(samples) for samples in sets.values()):
        count = sum(math.ceil(e.final * len(samples)) for samples in sets.values())
        fewer = "" if e.final < 1 else "; evaluation.final=0.1 would look at a tenth"
        notify(f"the last evaluation looks at {count:,} samples of the validation and test sets{fewer}")
    loss, correct, targets = measured.meter[index].tolist()
    metrics: Metrics = {
        "round": run.round,
        "samples": run.samples,
        "epoch": run.samples / len(split.train),
        "lr": run.lr,
        "train/loss": _finite(loss / max(1, targets)),
        "train/acc": _finite(correct / max(1, targets)),
    }
    for name in ("val", "test"):
        metrics[f"{name}/loss"] = metrics[f"{name}/acc"] = None
        if samples := sets.get(name):
            totals = group.engine.evaluate(models, samples, _looked_at(run, samples, group.device)).mean(0)
            mean_loss, metrics[f"{name}/acc"], _ = (totals / totals[2]).tolist()
            metrics[f"{name}/loss"] = _finite(mean_loss)
    measured.meter[index].zero_()
    return {
        **metrics,
        **({} if measured.noise is None else {"noise_scale": _finite(float(measured.noise.values()[index]))}),
        **({"J": run.J} if not e.local_steps.steady else {}),
        **({"asked": run.evaluated} if e.participation.asks else {}),
        **asdict(run.traffic),
        "seconds": run.seconds,
        "flops": group.sample_flops * run.computed + (group.forward_flops * run.evaluated if run.evaluated else 0),
    }


def _looked_at(run: PackedRun, samples: Samples, device: torch.device) -> Tensor:
    """Which samples of a set are evaluated now, int64 [n]: a fixed part while the run goes on, at its end those that it asks for."""
    final = run.experiment.final
    if run.finished and final < 1:
        return samples.fair(math.ceil(final * len(samples)))
    return torch.arange(len(samples) if run.finished else samples.eval_subset_size, device=device)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
