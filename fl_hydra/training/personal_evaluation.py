"""Models of clients, each evaluated on its own share of the validation and test samples.

Each class's samples are dealt to clients in proportion to their training samples of it, by largest remainders; samples without a
label, in proportion to shard sizes. So every dealt sample is used once, for any K. Clients that are dealt none are left out;
the number of the others is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import to_device
from fl_hydra.randomness import generator
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import METER_WIDTH
from fl_hydra.training.losses import score
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.samples import Samples

CLIENTS_AT_ONCE = 16
"""Clients whose models are in memory together."""

OUTPUTS_AT_ONCE = 512


def deal_shares(counts: Indices, labels: Indices, seed: int) -> list[Indices]:
    """Deal labelled samples to clients.

    Args:
        counts: int64 [K, classes], training samples of each client and class. labels: int64 [n], of the samples that are dealt.
        seed: determines which sample goes to whom.

    Returns:
        for each client, positions in `labels`, ascending. Samples of a class that no client has are not dealt.
    """
    dealt: list[list[Indices]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        members, total = np.flatnonzero(labels == label), int(counts[:, label].sum())
        if not total or not len(members):
            continue
        wanted = counts[:, label] * len(members)
        own = wanted // total
        largest = np.argsort(-(wanted % total), kind="stable")[: len(members) - int(own.sum())]
        own[largest] += 1
        order = generator(seed, "personal-shares", label).permutation(members)
        for client, piece in enumerate(np.split(order, np.cumsum(own)[:-1])):
            dealt[client].append(piece)
    return [np.sort(np.concatenate(pieces)) if pieces else np.zeros(0, np.int64) for pieces in dealt]


@dataclass(frozen=True)
class PersonalScores:
    """Scores of clients on their own samples.

    losses, accuracies: float64 [clients]. sizes: int64 [clients], targets of each.
    choice: how they predict, where the method had a choice (:attr:`Algorithm.choices`).
    """

    losses: Reals
    accuracies: Reals
    sizes: Indices
    choice: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def together(cls, scores: Sequence[PersonalScores]) -> PersonalScores:
        """The scores of several groups of clients."""
        if len(scores) == 1:
            return scores[0]
        parts = ([getattr(each, name) for each in scores] for name in ("losses", "accuracies", "sizes"))
        return cls(*(np.concatenate(part) for part in parts), scores[0].choice)

    def figures(self, prefix: str) -> dict[str, float]:
        """Figures for a line of metrics: means over clients, also weighted by targets, the mean of the worst tenth, and the deviation."""
        worst = np.sort(self.accuracies)[: -(-len(self.accuracies) // 10)]
        return {
            f"{prefix}/loss": float(self.losses.mean()),
            f"{prefix}/acc": float(self.accuracies.mean()),
            f"{prefix}/acc_weighted": float(np.average(self.accuracies, weights=self.sizes)),
            f"{prefix}/acc_worst_tenth": float(worst.mean()),
            f"{prefix}/acc_deviation": float(self.accuracies.std()),
            f"{prefix}/clients": len(self.sizes),
        }


class PersonalEvaluation:
    """Evaluates models of clients.

    Args:
        algorithm: makes the models. group: the rows.
    """

    def __init__(self, algorithm: Algorithm, group: RowGroup) -> None:
        self._algorithm, self._group = algorithm, group
        self._shares: WeakKeyDictionary[PackedRun, dict[tuple[int, int, int], list[Indices]]] = WeakKeyDictionary()
        self._chosen: WeakKeyDictionary[PackedRun, int] = WeakKeyDictionary()

    def scores(
        self, run: PackedRun, state: State, samples: Samples, looked_at: Tensor, clients: Callable[[Indices], Clients], chooses: bool
    ) -> PersonalScores:
        """Scores of a run's clients on their shares of some samples, `looked_at` int64 [n]. Reads back.

        Args:
            state: of the run, [1, ...]. clients: makes the :class:`Clients` of some clients.
            chooses: whether these scores decide which of the method's `choices` is used, from now on.
        """
        shares = self._shares_of(run, samples, looked_at)
        ids = np.array([client for client, share in enumerate(shares) if len(share)], np.int64)
        ids = ids[run.architectures.have(ids, self._group.number)]
        totals = []
        for first in range(0, len(ids), CLIENTS_AT_ONCE):
            some = ids[first : first + CLIENTS_AT_ONCE]
            models = self.models(state, clients(some))
            wholes = self._group.whole(models, state, self._group.client_statistics(state, run.members[self._group.number].clients, some))
            for model, whole, client in zip(models, wholes, some.tolist(), strict=True):
                which = looked_at[to_device(shares[client], looked_at.device)]
                # A copy, as the last bits of a product may depend on the address.
                totals.append(self._score(model[None].clone(), whole[None].clone(), samples, which, clients(np.array([client]))))
        loss, correct, targets = torch.stack(totals).permute(2, 1, 0).cpu().numpy()  # each [choices, clients]
        choices = self._algorithm.choices
        if chooses:
            self._chosen[run] = int((correct / targets).mean(1).argmax())
        chosen = self._chosen.get(run, 0)
        sizes = targets[chosen]
        return PersonalScores(
            loss[chosen] / sizes, correct[chosen] / sizes, sizes.astype(np.int64), choices[chosen] if len(choices) > 1 else {}
        )

    def models(self, state: State, clients: Clients) -> Tensor:
        """The models with which some clients are judged, [rows, P]."""
        return self._algorithm.adapt(self._algorithm.personal_models(state, clients), clients)

    def _score(self, model: Tensor, whole: Tensor, samples: Samples, which: Tensor, client: Clients) -> Tensor:
        """Summed loss, correct predictions and targets of a client, [choices, 3]. model: [1, P]; whole: the same with its other tensors."""
        engine = self._group.engine
        if not self._algorithm.predicts:
            return engine.evaluate(whole, samples, which)
        predict = self._algorithm.predictor(client, model)
        totals = torch.zeros(len(self._algorithm.choices), METER_WIDTH, dtype=torch.float64, device=model.device)
        for part in torch.split(which, OUTPUTS_AT_ONCE):
            totals += score(predict(engine.outputs_of(whole, samples.plain(part)[None])), samples.targets[part])
        return totals

    def _shares_of(self, run: PackedRun, samples: Samples, looked_at: Tensor) -> list[Indices]:
        known = self._shares.setdefault(run, {})
        key = (id(samples), len(looked_at), int(looked_at.sum()))  # the first samples, or a representative subset
        if key not in known:
            counts = run.facts.label_counts
            if counts is None:
                counts, labels = run.shard_sizes[:, None], np.zeros(len(looked_at), np.int64)
            else:
                labels = samples.targets[looked_at].cpu().numpy()
            known[key] = deal_shares(counts, labels, run.experiment.seed)
        return known[key]
