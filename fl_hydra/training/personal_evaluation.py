"""Models of clients, each evaluated on its own share of the validation and test samples (`personal_shares.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.arrays import Indices, Reals
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import METER_WIDTH
from fl_hydra.training.judged import JudgedModel
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
        self._chosen: WeakKeyDictionary[PackedRun, int] = WeakKeyDictionary()

    def scores(self, run: PackedRun, state: State, name: str, looked_at: Tensor, clients: Callable[[Indices], Clients]) -> PersonalScores:
        """Scores of a run's clients on their shares of a set, `val` or `test`, of which `looked_at`, int64 [n], is evaluated. Reads back.

        Scores on `val` decide which of the method's `choices` is used, from now on.

        Args:
            state: of the run, [1, ...]. clients: makes the :class:`Clients` of some clients.
        """
        samples, shares = self._shares.of(run, name, looked_at)
        held_out = run.facts.held_out
        ids = np.array([client for client, share in enumerate(shares) if share is not None], np.int64)
        ids = ids[run.architectures.have(ids, self._group.number)]
        drawn, choices = ~np.isin(ids, held_out), self._algorithm.choices
        found = np.zeros((METER_WIDTH, len(choices), len(shares)))
        totals = []
        for some in self.together(ids, held_out):
            models = self.models(run, state, clients(some))
            wholes = self._group.whole(models, state, self._group.client_statistics(state, run.members[self._group.number].clients, some))
            for model, whole, client in zip(models, wholes, some.tolist(), strict=True):
                which = shares[client]
                assert which is not None
                # A copy, as the last bits of a product may depend on the address.
                totals.append(self._score(model[None].clone(), whole[None].clone(), samples, which, partial(clients, np.array([client]))))
        if totals:
            found[..., np.concatenate([ids[drawn], ids[~drawn]])] = torch.stack(totals).permute(2, 1, 0).cpu().numpy()
        loss, correct, targets = found  # each [choices, K]
        counted = np.maximum(targets, 1)
        if name == "val" and drawn.any():
            self._chosen[run] = int((correct / counted)[:, ids[drawn]].mean(1).argmax())
        chosen = self._chosen.get(run, 0)
        none = targets[chosen] == 0
        return PersonalScores(
            np.where(none, np.nan, loss[chosen] / counted[chosen]),
            np.where(none, np.nan, correct[chosen] / counted[chosen]),
            targets[chosen].astype(np.int64),
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

    def models(self, run: PackedRun, state: State, clients: Clients) -> Tensor:
        """The models with which some clients are judged, [rows, P]. Either all of them are held out, and have joined, or none is."""
        models, steps = self._algorithm.personal_models(state, clients), run.experiment.joining_steps
        if steps is not None and np.isin(clients.ids, run.facts.held_out).all():
            models = self._algorithm.join(state, models, clients, steps)
        return self._algorithm.adapt(models, clients)

    def module(self, run: PackedRun, state: State, clients: Clients, choice: int) -> JudgedModel:
        """The model with which one client is judged. clients: the client alone. choice: which of the method's `choices` is used."""
        group, algorithm = self._group, self._algorithm
        model = self.models(run, state, clients)
        whole = group.whole(model, state, group.client_statistics(state, run.members[self._group.number].clients, clients.ids))
        module = group.architecture.build().to(group.dtype)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, view in group.layout.whole_views(whole[0]).items():
                tensors[name].copy_(view)
        predict = algorithm.predictor(clients, model) if algorithm.predicts else None
        return JudgedModel(module, group.engine.precision, group.layout.head, predict, choice)

    def _score(self, model: Tensor, whole: Tensor, samples: Samples, which: Tensor, client: Callable[[], Clients]) -> Tensor:
        """Summed loss, correct predictions and targets of a client, [choices, 3].

        Args:
            model: [1, P]. whole: the same with its other tensors. client: makes the client's :class:`Clients`, which takes time.
        """
        engine = self._group.engine
        if not self._algorithm.predicts:
            return engine.evaluate(whole, samples, which)
        predict = self._algorithm.predictor(client(), model)
        totals = torch.zeros(len(self._algorithm.choices), METER_WIDTH, dtype=torch.float64, device=model.device)
        for part in torch.split(which, OUTPUTS_AT_ONCE):
            totals += score(predict(engine.outputs_of(whole, samples.plain(part)[None])), samples.targets[part])
        return totals
