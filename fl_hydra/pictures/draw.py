"""Panels: classes or characters by client, sizes, participation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.data.shakespeare import TextDataset, TextSplit
from fl_hydra.data.shakespeare_text import LEAF_ALPHABET, SEQUENCE_ALPHABET
from fl_hydra.files import write_atomically
from fl_hydra.participation.base import Round
from fl_hydra.participation.schemes import log_dirichlet
from fl_hydra.report.figures import STYLE
from fl_hydra.sharding.base import Shards
from fl_hydra.training.experiment import Experiment

CHARACTERS = 30
"""Characters drawn of a text: its most frequent ones."""

MOST = 2.0
"""Characters that are more than 2^2 times as frequent with a client as in all text, or as rare, are drawn alike."""

COLUMNS = 400
"""Columns of a heat map, at most."""

FIRST = 100
"""Rounds whose cohorts are drawn one by one, at most."""

ROUNDS = 2000
"""Rounds whose cohorts are drawn, at most."""

Panel = Callable[[Any, Any], None]
"""Draws into (figure, axis)."""


def draw_clients(experiment: Experiment, path: Path) -> None:
    """Write a picture of what the clients of an experiment hold, how much, and how often they come; nothing is trained.

    Raises:
        UserError: the data or the division that is asked for cannot be had.
    """
    e = experiment
    population = e.dataset.population(e.data, e.split_seed)
    shards = e.sharding.shards(population, e.K, e.N_c, e.seed)
    panels: list[Panel] = []
    if isinstance(e.dataset, TextDataset):
        split = e.dataset.split(e.data, e.split_seed)
        panels.append(lambda figure, axis: _draw_characters(figure, axis, split, experiment, shards))
    elif population.labels is not None:
        counts = _counts(shards, population.labels, e.card.classes)
        panels += [lambda figure, axis: _draw_classes(figure, axis, counts), lambda figure, axis: _draw_distinct(axis, counts)]
    panels.append(lambda figure, axis: _draw_sizes(axis, shards.sizes, "samples"))
    panels += _participation(experiment, shards.sizes)
    _write(panels, path)


def _counts(shards: Shards, labels: Indices, classes: int) -> Indices:
    """Samples of each class of each client, int64 [K, classes]."""
    owners = np.repeat(np.arange(len(shards.sizes)), shards.sizes)
    flat = np.bincount(owners * classes + labels[shards.indices], minlength=len(shards.sizes) * classes)
    return flat.reshape(-1, classes)


def _draw_classes(figure: Any, axis: Any, counts: Indices) -> None:
    """Dots, whose area is the number of samples, where there is room for them; else a heat map."""
    K, classes = counts.shape
    if K * classes <= 2500:
        clients, labels = np.nonzero(counts)
        axis.scatter(clients, labels, s=120 * counts[clients, labels] / counts.max(), color="C0", linewidths=0)
        axis.set_xlim(-1, K)
        axis.set_ylim(-1, classes)
    else:
        # Of more clients than an image has columns some would be left out: neighbours share a column then, which shows the most of them.
        firsts = np.unique(np.linspace(0, K, COLUMNS, endpoint=False).astype(np.int64))
        most = np.maximum.reduceat(counts, firsts).T
        image = axis.imshow(
            np.where(most, most, np.nan),
            aspect="auto",
            origin="lower",
            cmap="viridis_r",
            vmin=0,
            interpolation="nearest",
            extent=(-0.5, K - 0.5, -0.5, classes - 0.5),
        )
        axis.grid(False)
        figure.colorbar(image, ax=axis, label="samples" if K <= COLUMNS else f"samples, the most of {K / COLUMNS:.1f} neighbours")
    axis.set(xlabel="client", ylabel="class", title="classes by client")


def _draw_distinct(axis: Any, counts: Indices) -> None:
    distinct = (counts > 0).sum(1)
    axis.hist(distinct, bins=np.arange(distinct.min(), distinct.max() + 2) - 0.5, color="C0")
    axis.set_xlim(distinct.min() - 1, distinct.max() + 1)
    axis.set(xlabel="distinct classes", ylabel="clients", title=f"distinct classes of a client: {distinct.mean():.2f} on average")


def _draw_sizes(axis: Any, sizes: Indices, unit: str) -> None:
    axis.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0, color="C0")
    spread = sizes.std() / sizes.mean() if sizes.any() else 0.0
    axis.set(xlabel="client, by size", ylabel=unit, title=f"sizes: mean {sizes.mean():,.1f}, std/mean {spread:.2f}")


def _draw_characters(figure: Any, axis: Any, split: TextSplit, experiment: Experiment, shards: Shards) -> None:
    """How often each of the most frequent characters is among a client's, relative to how often it is in the text of all."""
    everywhere = experiment.card.everywhere
    alphabet = "\0" + SEQUENCE_ALPHABET + "\0\0\0" if everywhere else LEAF_ALPHABET
    width = experiment.card.shape[0] if everywhere else 1
    first = 1 if everywhere else experiment.card.shape[0]
    targets = split.characters[split.train[:, None] + first + np.arange(width)]
    owners = np.repeat(np.arange(len(shards.sizes)), shards.sizes)
    flat = (owners[:, None] * len(alphabet) + targets[shards.indices]).ravel()
    counts = np.bincount(flat, minlength=len(shards.sizes) * len(alphabet)).reshape(-1, len(alphabet)).astype(float)
    if everywhere:
        counts[:, [0, *range(len(SEQUENCE_ALPHABET) + 1, len(alphabet))]] = 0
    shown = np.argsort(-counts.sum(0), kind="stable")[: min(CHARACTERS, int((counts.sum(0) > 0).sum()))]
    whole = counts.sum(0) / counts.sum()
    ratio = _relative(counts[:, shown], counts.sum(1, keepdims=True), whole[shown])
    image = axis.imshow(ratio.T, aspect="auto", cmap="RdBu_r", vmin=-MOST, vmax=MOST, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="times as frequent as in all text (log2)", extend="both")
    names = ["space" if alphabet[code] == " " else repr(alphabet[code])[1:-1] for code in shown]
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.grid(False)
    axis.set(xlabel="client", ylabel="target character", title="characters by client")


def _relative(counts: Reals, totals: Reals, whole: Reals) -> Reals:
    """How frequent characters are with each client, relative to their frequency in all text: log2 of at most MOST, float64 [K, n].

    A character that a client never uses is as rare as can be drawn; a client without text is drawn as average.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Reals = np.log2(counts / totals / whole)
    return np.nan_to_num(ratio, nan=0.0, neginf=-MOST, posinf=MOST).clip(-MOST, MOST)


def _participation(experiment: Experiment, sizes: Indices) -> list[Panel]:
    """Sampling probabilities where they are drawn, and how often each client comes, where that does not depend on what is trained."""
    e = experiment
    if e.m == e.K:
        return []
    panels: list[Panel] = []
    if e.gamma is not None:
        panels.append(lambda figure, axis: _draw_probabilities(axis, np.exp(log_dirichlet(e.gamma or 0.0, e.K, e.seed)), e.gamma))
    if e.participation.asks or e.participation.measures:
        return panels
    rounds = min(ROUNDS, e.rounds or ROUNDS)
    counts = np.zeros(e.K, np.int64)
    came = np.zeros((min(FIRST, rounds), e.K), np.bool_)
    seconds = np.ones(e.K)
    memory: dict[str, Reals] = {}
    for number in range(rounds):
        cohort = e.participation.cohort(Round(sizes, e.m, e.seed, number, e.gamma, seconds, dict(memory)))
        memory.update(cohort.remember)
        counts[cohort.ids] += 1
        if number < FIRST:
            came[number, cohort.ids] = True
    panels.append(lambda figure, axis: _draw_visits(axis, counts, rounds, e.m))
    panels.append(lambda figure, axis: _draw_cohorts(axis, came))
    return panels


def _draw_probabilities(axis: Any, probabilities: Reals, gamma: float | None) -> None:
    axis.plot(np.arange(len(probabilities)), np.sort(probabilities)[::-1], marker=".", markersize=3, linewidth=1, color="C1")
    axis.axhline(1 / len(probabilities), color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="client, by probability", ylabel="p", title=f"sampling probabilities, gamma={gamma:g}")
    axis.set_yscale("log", nonpositive="clip")
    # Below, no client comes in a run; a single client would leave no room on the axis.
    axis.set_ylim(max(1e-9, probabilities.min() / 2), min(1.0, 2 * probabilities.max()))


def _draw_visits(axis: Any, counts: Indices, rounds: int, m: int) -> None:
    axis.bar(np.arange(len(counts)), np.sort(counts)[::-1], width=1.0, color="C2")
    axis.axhline(rounds * m / len(counts), color="black", linestyle=":", linewidth=1)
    never = int((counts == 0).sum())
    axis.set(xlabel="client, by rounds", ylabel="rounds", title=f"{rounds} rounds; {never} clients never came")


def _draw_cohorts(axis: Any, came: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Which clients, by number, are in the cohort of each of the first rounds: came is bool [rounds, K]."""
    rounds, clients = np.nonzero(came)
    # Marks, and no image: of more clients than it has rows, an image would leave some out.
    axis.scatter(rounds, clients, s=np.clip(150 / max(came.shape), 1, 5) ** 2, marker="s", color="black", linewidths=0)
    axis.grid(False)
    axis.set(
        xlim=(-1, len(came)), ylim=(-1, came.shape[1]), xlabel="round", ylabel="client", title=f"cohorts of the first {len(came)} rounds"
    )


def _write(panels: list[Panel], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import AutoLocator, MaxNLocator

    rows = -(-len(panels) // 2)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, 2, figsize=(9, 3.2 * rows), squeeze=False, layout="constrained")
        try:
            for panel, axis in zip(panels, axes.flat, strict=False):
                axis.set_axisbelow(True)
                panel(figure, axis)
                for each in (axis.xaxis, axis.yaxis):
                    if isinstance(each.get_major_locator(), AutoLocator):
                        each.set_major_locator(MaxNLocator("auto", integer=True))
            for axis in axes.flat[len(panels) :]:
                figure.delaxes(axis)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        finally:
            pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
