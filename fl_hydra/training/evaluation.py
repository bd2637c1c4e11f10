"""A line of metrics.jsonl: the model on the validation and test sets, and the training figures since the last line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fl_hydra.training.measurements import Measurements
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.personal_evaluation import PersonalScores
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.samples import Samples
from fl_hydra.training.split import Split

Metrics = dict[str, Any]
"""One line of metrics.jsonl: numbers, None if one is not finite or the set does not exist; and in the last line lists by client."""


def evaluate(
    run: PackedRun,
    index: int,
    models: Tensor,
    personal: Callable[[Mapping[str, Tensor]], Mapping[str, PersonalScores]] | None,
    split: Split,
    groups: Sequence[RowGroup],
    measured: Measurements,
    notify: Callable[[str], None],
) -> Metrics:
    """A run's current metrics. Reads back, and resets its training figures.

    Args:
        index: of the run in the trainer. models: [models, P], evaluated as the global model.
        personal: scores clients with their own models on some samples of the sets `val` and `test`; None if they have none.
        groups: the rows of each architecture.
        notify: is called when a long evaluation begins.
    """
    e, group = run.experiment, groups[0]
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
    looked_at = {name: _looked_at(run, samples, group.device) for name, samples in sets.items() if len(samples) or e.personal == "shards"}
    scores = {} if personal is None else personal(looked_at)
    for name in ("val", "test"):
        metrics[f"{name}/loss"] = metrics[f"{name}/acc"] = None
        if name not in looked_at:
            continue
        if e.global_model and len(sets[name]):
            totals = group.engine.evaluate(models, sets[name], looked_at[name]).mean(0)
            mean_loss, metrics[f"{name}/acc"], _ = (totals / totals[2]).tolist()
            metrics[f"{name}/loss"] = _finite(mean_loss)
        if name in scores:
            own = scores[name]
            figures = own.figures(f"personal/{name}") | {f"personal/choice/{key}": value for key, value in own.choice.items()}
            metrics |= {key: None if value is None else _finite(value) for key, value in figures.items()}
            metrics |= own.by_client(f"personal/{name}") if run.finished else {}
    measured.meter[index].zero_()
    return {
        **metrics,
        **({} if measured.noise is None else {"noise_scale": _finite(float(measured.noise.values()[index]))}),
        **({"J": run.J} if not e.local_steps.steady else {}),
        **({"asked": run.evaluated} if e.participation.asks else {}),
        **asdict(run.traffic),
        "seconds": run.seconds,
        "flops": sum(_flops(run, rows) for rows in groups),
        **({"server_flops": run.server_flops} if e.algorithm.computes_at_server else {}),
    }


def _flops(run: PackedRun, rows: RowGroup) -> int:
    """Floating-point operations of a run's clients of one architecture."""
    members = run.members[rows.number]
    asked = run.evaluated if rows.number == 0 else 0
    return rows.flops(members.computed, asked + members.forwarded, members.products) + members.other_flops


def _looked_at(run: PackedRun, samples: Samples, device: torch.device) -> Tensor:
    """The samples of a set that are evaluated now, int64 [n]: a fixed subset during the run, the fraction `final` at its end."""
    final = run.experiment.final
    if run.finished and final < 1:
        return samples.fair(math.ceil(final * len(samples)))
    return torch.arange(len(samples) if run.finished else samples.eval_subset_size, device=device)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
