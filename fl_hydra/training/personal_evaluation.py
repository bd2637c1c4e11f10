"""Models of clients, each evaluated on its own share of the validation and test samples (`personal_shares.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.arrays import Indices, Reals
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import METER_WIDTH
from fl_hydra.training.judged import JudgedModel
from fl_hydra.training.loop_engine import LoopEngine
from fl_hydra.training.losses import score
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.personal_shares import PersonalShares
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.samples import Samples
from fl_hydra.training.split import Split

CLIENTS_AT_ONCE = 16
"""Clients whose models are in memory together."""

OUTPUTS_AT_ONCE = 512


@dataclass(frozen=True)
class PersonalScores:
    """Scores of clients on their own samples.

    losses, accuracies: float64 [K]; NaN of clients without samples. sizes: int64 [K], targets of each.
    held_out: int64, the clients that were never drawn.
    choice: how they predict, where the method had a choice (:attr:`Algorithm.choices`).
    """

    losses: Reals
    accuracies: Reals
    sizes: Indices
    held_out: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    choice: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def together(cls, scores: Sequence[PersonalScores]) -> PersonalScores:
        """The scores of clients of several architectures, each of which has its own samples alone."""
        losses, accuracies, sizes = scores[0].losses, scores[0].accuracies, scores[0].sizes
        for each in scores[1:]:
            theirs = each.sizes > 0
            losses, accuracies = np.where(theirs, each.losses, losses), np.where(theirs, each.accuracies, accuracies)
            sizes = sizes + each.sizes
        return replace(scores[0], losses=losses, accuracies=accuracies, sizes=sizes)

    def figures(self, prefix: str) -> dict[str, float | None]:
        """Figures for a line of metrics: means over clients that may be drawn, also weighted by targets, the mean of the worst tenth, and
        the deviation; and the mean over those that are held out, if any are. Clients without samples do not count. None: nobody counts."""
        is_away = np.isin(np.arange(len(self.sizes)), self.held_out)
        drawn, away = np.flatnonzero(~is_away & (self.sizes > 0)), np.flatnonzero(is_away & (self.sizes > 0))
        accuracies = self.accuracies[drawn]
        worst = np.sort(accuracies)[: -(-len(drawn) // 10)]
        some = len(drawn) > 0
        return {
            f"{prefix}/loss": float(self.losses[drawn].mean()) if some else None,
            f"{prefix}/acc": float(accuracies.mean()) if some else None,
            f"{prefix}/acc_weighted": float(np.average(accuracies, weights=self.sizes[drawn])) if some else None,
            f"{prefix}/acc_worst_tenth": float(worst.mean()) if some else None,
            f"{prefix}/acc_deviation": float(accuracies.std()) if some else None,
            f"{prefix}/clients": len(drawn),
            **self._of_held_out(prefix, away),
        }

    def _of_held_out(self, prefix: str, away: Indices) -> dict[str, float | None]:
        if not len(self.held_out):
            return {}
        mean = float(self.accuracies[away].mean()) if len(away) else None
        return {f"{prefix}/acc_held_out": mean, f"{prefix}/clients_held_out": len(away)}

    def by_client(self, prefix: str) -> dict[str, list[float | None]]:
        """Lists for the last line of metrics, of length K: accuracies, None of clients without samples, and sizes."""
        accuracies = [accuracy if size else None for accuracy, size in zip(self.accuracies.tolist(), self.sizes.tolist(), strict=True)]
        return {f"{prefix}/accs": accuracies, f"{prefix}/sizes": self.sizes.tolist()}


class PersonalEvaluation:
    """Evaluates models of clients.

    Args:
        algorithm: makes the models. group: the rows. split: the samples.
    """

    def __init__(self, algorithm: Algorithm, group: RowGroup, split: Split) -> None:
        self._algorithm, self._group = algorithm, group
        self._shares = PersonalShares(split)

    def scores(
        self, run: PackedRun, state: State, looked_at: Mapping[str, Tensor], clients: Callable[[Indices], Clients]
    ) -> dict[str, PersonalScores]:
        """Scores of a run's clients on their shares of the sets `val` and `test`. Reads back.

        Where the method has `choices`, scores on `val` decide which of them is used for all.

        Args:
            state: of the run, [1, ...]. looked_at: by set, int64 [n], what is evaluated of it.
            clients: makes the :class:`Clients` of some clients.
        """
        sets = {name: self._shares.of(run, name, positions) for name, positions in looked_at.items()}
        ids = np.flatnonzero(
            [any(each) for each in zip(*([share is not None for share in shares] for _, shares in sets.values()), strict=True)]
        )
        ids = ids[run.architectures.have(ids, self._group.number)]
        scored, totals = [], []
        for some in self.together(ids, run.facts.held_out):
            models = self.models(run, state, clients(self._filled(some)))[: len(some)]
            wholes = self._group.whole(models, state, self._group.client_statistics(state, run.members[self._group.number].clients, some))
            for model, whole, client in zip(models, wholes, some.tolist(), strict=True):
                # A copy, as the last bits of a product may depend on the address.
                judge = self._judge(model[None].clone(), whole[None].clone(), partial(clients, np.array([client])))
                for name, (samples, shares) in sets.items():
                    if (which := shares[client]) is not None:
                        scored.append((name, client))
                        totals.append(judge(samples, which))
        found = {name: np.zeros((METER_WIDTH, len(self._algorithm.choices), run.experiment.K)) for name in sets}
        for (name, client), values in zip(scored, torch.stack(totals).cpu().numpy() if totals else [], strict=True):
            found[name][..., client] = values.T
        chosen = self._best(found["val"], run.facts.held_out) if "val" in found else 0
        return {name: self._scores(values[:, chosen], run.facts.held_out, chosen) for name, values in found.items()}

    @staticmethod
    def _best(found: Reals, held_out: Indices) -> int:
        """The choice with the highest mean accuracy over clients that may be drawn. found: [3, choices, K]."""
        _, correct, targets = found
        counts = targets[0] > 0
        counts[held_out] = False
        return int((correct[:, counts] / targets[:, counts]).mean(1).argmax()) if counts.any() else 0

    def _scores(self, found: Reals, held_out: Indices, chosen: int) -> PersonalScores:
        """Scores from sums over each client's samples, [3, K]."""
        loss, correct, targets = found
        none, counted, choices = targets == 0, np.maximum(targets, 1), self._algorithm.choices
        return PersonalScores(
            np.where(none, np.nan, loss / counted),
            np.where(none, np.nan, correct / counted),
            targets.astype(np.int64),
            held_out,
            choices[chosen] if len(choices) > 1 else {},
        )

    @staticmethod
    def together(ids: Indices, held_out: Indices) -> Iterator[Indices]:
        """Clients whose models are made together: some of those that may be drawn, or some of those that are held out."""
        away = np.isin(ids, held_out)
        for kind in (ids[~away], ids[away]):
            for first in range(0, len(kind), CLIENTS_AT_ONCE):
                yield kind[first : first + CLIENTS_AT_ONCE]

    def _filled(self, ids: Indices) -> Indices:
        """Clients, int64 [n], with the last repeated where the number of rows that are tuned together affects their last bits."""
        missing = 0 if isinstance(self._group.engine, LoopEngine) else CLIENTS_AT_ONCE - len(ids)
        return np.pad(ids, (0, missing), mode="edge")

    def models(self, run: PackedRun, state: State, clients: Clients) -> Tensor:
        """The models with which some clients are judged, [rows, P]. Either all of them are held out, and have joined, or none is."""
        models, steps = self._algorithm.personal_models(state, clients), run.experiment.joining_steps
        if steps is not None and np.isin(clients.ids, run.facts.held_out).all():
            models = self._algorithm.join(state, models, clients, steps)
        return self._algorithm.adapt(models, clients)

    def module(self, run: PackedRun, state: State, client: int, clients: Callable[[Indices], Clients], choice: int) -> JudgedModel:
        """The model with which a client is judged. clients: makes the :class:`Clients` of some clients. choice: which of the method's
        `choices` is used."""
        group, algorithm, ids = self._group, self._algorithm, np.array([client])
        model = self.models(run, state, clients(self._filled(ids)))[:1].clone()
        whole = group.whole(model, state, group.client_statistics(state, run.members[self._group.number].clients, ids))
        module = group.architecture.build().to(group.dtype)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, view in group.layout.whole_views(whole[0]).items():
                tensors[name].copy_(view)
        predict = algorithm.predictor(clients(ids), model) if algorithm.predicts else None
        return JudgedModel(module, group.engine.precision, group.layout.head, predict, choice)

    def _judge(self, model: Tensor, whole: Tensor, client: Callable[[], Clients]) -> Callable[[Samples, Tensor], Tensor]:
        """Gives summed loss, correct predictions and targets of a client on some samples, int64 [n]: [choices, 3].

        Args:
            model: [1, P]. whole: the same with its other tensors. client: makes the client's :class:`Clients`, which takes time.
        """
        engine, choices = self._group.engine, len(self._algorithm.choices)
        if not self._algorithm.predicts:
            return partial(engine.evaluate, whole)
        predict = self._algorithm.predictor(client(), model)

        def judged(samples: Samples, which: Tensor) -> Tensor:
            totals = torch.zeros(choices, METER_WIDTH, dtype=torch.float64, device=model.device)
            for part in torch.split(which, OUTPUTS_AT_ONCE):
                totals += score(predict(engine.outputs_of(whole, samples.plain(part)[None])), samples.targets[part])
            return totals

        return judged
