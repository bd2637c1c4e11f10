"""Panels: classes or characters by client, sizes, participation."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.data.shakespeare import TextDataset
from fl_hydra.errors import require
from fl_hydra.files import write_atomically
from fl_hydra.participation.base import Round
from fl_hydra.participation.schemes import probabilities
from fl_hydra.report.axes import varying
from fl_hydra.report.colors import BLUE, PALETTE, colors
from fl_hydra.report.figures.clients import TWICE, character, of_characters, relative
from fl_hydra.report.figures.fitting import DASHES
from fl_hydra.report.figures.legends import legend, pretty
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE, canvas
from fl_hydra.runs.holdings import character_counts
from fl_hydra.runs.identity import describe
from fl_hydra.sharding.base import Shards
from fl_hydra.training.experiment import Experiment

CHARACTERS = 30
"""How many characters of a text are drawn, the most frequent ones."""

COLUMNS = 400
"""Columns of a heat map, at most."""

FIRST = 100
"""Most rounds that the panel of cohorts shows."""

ROUNDS = 2000
"""Most rounds over which it is counted how often each client takes part."""

PANELS = ("classes", "distinct", "characters", "sizes", "probabilities", "visits", "cohorts")
"""The panels of a configuration; panel= draws one of them alone."""


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn on axes that it shares with others. name: what sets it apart; empty if it is the only one."""

    color: str = BLUE
    dash: Any = "-"
    name: str = ""


Panel = Callable[[Look, Any, Any], None]
"""Draws with (look, figure, axis)."""


def draw_clients(experiment: Experiment, path: Path, panel: str | None = None) -> None:
    """Write a picture of what the clients of an experiment hold, how much, and how often they take part; nothing is trained.

    Raises:
        UserError: the requested data, division or panel is not available.
    """
    draw_beside([("", experiment)], path, panel)


def draw_beside(experiments: Sequence[tuple[str, Experiment]], path: Path, panel: str | None = None) -> None:
    """Like :func:`draw_clients` for several named experiments: curves share axes, maps are side by side. panel: draw this one alone.

    Raises:
        UserError: the requested data, division or panel is not available.
    """
    require(len(experiments) <= len(PALETTE), f"{len(experiments)} configurations: at most {len(PALETTE)} can be told apart in a picture")
    found: dict[str, list[tuple[Look, Any, Panel]]] = {}
    looks = _looks(experiments)
    for look, (_, experiment) in zip(looks, experiments, strict=True):
        for kind, held, draw in _panels_of(experiment, panel):
            found.setdefault(kind, []).append((look, held, draw))
    if panel is not None:
        known = f"choose {', '.join(PANELS)}"
        require(panel in PANELS, f"panel={panel}: {known}")
        require(panel in found, f"panel={panel}: there is no such panel of this configuration; it has {', '.join(_kinds(experiments))}")
    for kind, drawn in found.items():
        if len(drawn) == len(experiments) and all(np.array_equal(held, drawn[0][1]) for _, held, _ in drawn):
            found[kind] = [(Look(), *drawn[0][1:])]  # what is the same for all is drawn once
    shared: list[list[Callable[[Any, Any], None]]] = [
        [partial(draw, look) for look, _, draw in found[kind]] for kind in ("distinct", "sizes", "probabilities", "visits") if kind in found
    ]
    alone: list[list[Callable[[Any, Any], None]]] = [
        [_titled(look, draw)] for kind in ("classes", "characters", "cohorts") for look, _, draw in found.get(kind, [])
    ]
    _write(
        [*alone, *shared],
        path,
        looks if any(len(found[kind]) > 1 for kind in found if kind in ("distinct", "sizes", "probabilities", "visits")) else [],
    )


def _looks(experiments: Sequence[tuple[str, Experiment]]) -> list[Look]:
    """A look for each experiment: in the report's colours if the experiments differ on one axis only, else in any."""
    if len(experiments) == 1:
        return [Look()]
    configs = [describe(experiment) for _, experiment in experiments]
    differ = varying(configs)
    tones = list(PALETTE)
    if len(differ) == 1:
        values = [differ[0].of(config) for config in configs]
        paint = colors(differ[0], values)
        tones = [paint[value] for value in values]
    return [Look(tones[index], DASHES[index % len(DASHES)], pretty(name)) for index, (name, _) in enumerate(experiments)]


def _kinds(experiments: Sequence[tuple[str, Experiment]]) -> list[str]:
    return list(dict.fromkeys(kind for _, experiment in experiments for kind, _, _ in _panels_of(experiment, None)))


def _titled(look: Look, draw: Panel) -> Callable[[Any, Any], None]:
    def titled(figure: Any, axis: Any) -> None:
        draw(look, figure, axis)
        if look.name:
            axis.set_title(look.name)

    return titled


def _panels_of(experiment: Experiment, panel: str | None) -> list[tuple[str, Any, Panel]]:
    """Each available panel: its name, the data it shows (equal for panels that look the same), and how it is drawn."""
    e = experiment
    sample_owners = e.dataset.sample_owners(e.data, e.split_seed)
    shards, *_ = e.divided(sample_owners)
    panels: list[tuple[str, Any, Panel]] = []
    if isinstance(e.dataset, TextDataset):
        panels.append(
            (
                "characters",
                (*shards.indices, *shards.sizes),
                lambda look, figure, axis: _draw_characters(figure, axis, experiment, shards),
            )
        )
    elif sample_owners.labels is not None:
        counts = shards.label_counts(sample_owners.labels, e.dataset_info.classes)
        panels.append(("classes", counts, lambda look, figure, axis: _draw_classes(figure, axis, counts)))
        panels.append(("distinct", counts, lambda look, figure, axis: _draw_distinct(axis, counts, look)))
    panels.append(("sizes", np.sort(shards.sizes), lambda look, figure, axis: _draw_sizes(axis, shards.sizes, "samples", look)))
    panels += _participation(experiment, e.participation.seen_sizes(shards.sizes))
    return [(kind, held, draw) for kind, held, draw in panels if panel in (None, kind) or panel not in PANELS]


def _draw_classes(figure: Any, axis: Any, counts: Indices) -> None:
    """Dots with areas proportional to the numbers of samples where there is room for them, else a heat map."""
    K, classes = counts.shape
    if K * classes <= 2500:
        clients, labels = np.nonzero(counts)
        axis.scatter(clients, labels, s=60 * counts[clients, labels] / counts.max(), color=BLUE, linewidths=0)
        axis.set_xlim(-1, K)
        axis.set_ylim(-1, classes)
    else:
        # An image leaves out clients if it has fewer columns: neighbours share a column then, which shows their maximum.
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


def _draw_distinct(axis: Any, counts: Indices, look: Look) -> None:
    distinct = (counts > 0).sum(1)
    numbers, clients = np.unique(distinct, return_counts=True)
    every = np.arange(numbers[0] - 1, numbers[-1] + 2)
    heights = np.zeros(len(every))
    heights[numbers - every[0]] = clients
    axis.step(every, heights, where="mid", color=look.color, linestyle=look.dash)
    if not look.name:
        axis.fill_between(every, heights, step="mid", color=look.color, alpha=0.3, linewidth=0)
    axis.set(xlabel="distinct classes", ylabel="clients", title="" if look.name else f"on average {distinct.mean():.2f} classes")


def _draw_sizes(axis: Any, sizes: Indices, unit: str, look: Look) -> None:
    spread = sizes.std() / sizes.mean() if sizes.any() else 0.0
    _sorted(axis, sizes, look)
    axis.set(xlabel="client, by size", ylabel=unit, title="" if look.name else f"mean {sizes.mean():,.1f}, std/mean {spread:.2f}")
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.08 * float(sizes.max())))


def _sorted(axis: Any, values: Any, look: Look) -> None:
    """Values of clients from the largest to the smallest."""
    clients, falling = np.arange(1, len(values) + 1), np.sort(values)[::-1]
    axis.step(clients, falling, where="mid", color=look.color, linestyle=look.dash, marker="." if len(values) == 1 else None)
    if not look.name:
        axis.fill_between(clients, falling, step="mid", color=look.color, alpha=0.3, linewidth=0)


def _draw_characters(figure: Any, axis: Any, experiment: Experiment, shards: Shards) -> None:
    """The frequency of the most common characters in each client's text, relative to that in all clients' text."""
    names, counts = character_counts(experiment, shards)
    everywhere = counts.sum(0)
    shown = np.argsort(-everywhere, kind="stable")[:CHARACTERS]
    ratio = relative(counts.astype(float), everywhere.astype(float))[:, shown]
    image = axis.imshow(ratio.T, aspect="auto", cmap="RdBu_r", vmin=-TWICE, vmax=TWICE, interpolation="nearest")
    of_characters(figure.colorbar(image, ax=axis, extend="both"))
    axis.set_yticks(range(len(shown)), [character(names[code]) for code in shown], fontsize=SMALL)
    axis.grid(False)
    axis.set(xlabel="client", ylabel="target character", title="characters by client")


def _participation(experiment: Experiment, sizes: Indices) -> list[tuple[str, Any, Panel]]:
    """Sampling probabilities where they are drawn with gamma, and how often clients take part where that does not depend on training."""
    e = experiment
    if e.m == e.K:
        return []
    panels: list[tuple[str, Any, Panel]] = []
    if e.gamma is not None:
        drawn = probabilities(e.gamma, e.K, e.seed, e.participation.kept_away)
        panels.append(("probabilities", drawn, lambda look, figure, axis: _draw_probabilities(axis, drawn, e.gamma, look)))
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
    panels.append(("visits", counts, lambda look, figure, axis: _draw_visits(axis, counts, rounds, e.m, look)))
    panels.append(("cohorts", came, lambda look, figure, axis: _draw_cohorts(axis, came)))
    return panels


def _draw_probabilities(axis: Any, probabilities: Reals, gamma: float | None, look: Look) -> None:
    before = axis.get_ylim() if axis.lines else (1.0, 0.0)
    _sorted(axis, probabilities, look)
    axis.axhline(1 / len(probabilities), color="black", linestyle=":", linewidth=0.8)
    axis.set(xlabel="client, by probability", ylabel="probability", title="" if look.name else f"sampling probabilities, γ={gamma:g}")
    axis.set_yscale("log", nonpositive="clip")
    # A client below 1e-9 never takes part in a run. The factors of 2 give the axis a height even for a single client.
    axis.set_ylim(min(before[0], max(1e-9, probabilities.min() / 2)), max(before[1], min(1.0, 2 * probabilities.max())))


def _draw_visits(axis: Any, counts: Indices, rounds: int, m: int, look: Look) -> None:
    _sorted(axis, counts, look)
    axis.axhline(rounds * m / len(counts), color="black", linestyle=":", linewidth=0.8)
    never = int((counts == 0).sum())
    axis.set(xlabel="client, by rounds", ylabel="rounds", title="" if look.name else f"{rounds} rounds; {never} never took part")


def _draw_cohorts(axis: Any, came: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Which clients, by number, are in the cohort of each of the first rounds: came is bool [rounds, K]."""
    rounds, clients = np.nonzero(came)
    # Marks rather than an image, which would leave out clients if it had fewer rows.
    axis.scatter(rounds, clients, s=np.clip(150 / max(came.shape), 1, 5) ** 2, marker="s", color="black", linewidths=0)
    axis.grid(False)
    axis.set(xlim=(-1, len(came)), ylim=(-1, came.shape[1]), xlabel="round", ylabel="client", title=f"cohorts of {len(came)} rounds")


def _write(panels: list[list[Callable[[Any, Any], None]]], path: Path, looks: Sequence[Look]) -> None:
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = -(-len(panels) // columns)
    with canvas(rows, columns, (COLUMN if columns == 1 else WIDE, (2.3 if columns < 3 else 2.0) * rows)) as (figure, axes):
        from matplotlib.lines import Line2D
        from matplotlib.ticker import AutoLocator, MaxNLocator

        for layers, axis in zip(panels, axes.flat, strict=False):
            for layer in layers:
                layer(figure, axis)
            for each in (axis.xaxis, axis.yaxis):
                if isinstance(each.get_major_locator(), AutoLocator):
                    each.set_major_locator(MaxNLocator("auto", integer=True))
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        handles = [Line2D([], [], color=look.color, linestyle=look.dash) for look in looks]
        legend(figure, handles, [look.name for look in looks], WIDE if columns > 1 else COLUMN)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
