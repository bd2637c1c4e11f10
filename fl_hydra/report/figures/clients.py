"""What clients hold and how probable they are, from the `clients.json` of runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.files import CorruptFile, read_file
from fl_hydra.report.figures.fitting import Fitted, Panel
from fl_hydra.report.figures.legends import pretty
from fl_hydra.report.figures.scales import logarithmic
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE
from fl_hydra.runs.reading import Run

CLIENTS = 100
"""Clients of which classes are drawn, at most."""

CHARACTERS = 18
"""Characters that are drawn, at most: the most frequent ones."""

TWICE = 1.0
"""Characters that are more than 2^1 times as frequent with a client as in all text, or as rare, are drawn alike: roles differ by less."""

LEAST = 1e-6
"""A smaller probability is drawn as this one: such a client does not come in a run."""


@dataclass(frozen=True)
class Holdings:
    """Of a run's clients. counts: float64 [clients, names]; None: not written, as they were too many. probabilities: float64 [clients];
    None: all alike."""

    kind: str
    names: tuple[str, ...]
    counts: Reals | None
    sizes: Reals
    probabilities: Reals | None


def read_clients(run: Run) -> Holdings | None:
    """What a run wrote of its clients; None where it wrote nothing that can be read."""
    try:
        content = json.loads(read_file(run.folder / "clients.json"))
        sizes = np.array(content["sizes"], np.float64).reshape(-1)
        counts, probabilities = content["counts"], content["probabilities"]
        return Holdings(
            content["kind"],
            tuple(map(str, content["names"])),
            None if counts is None else np.array(counts, np.float64).reshape(len(sizes), -1),
            sizes,
            None if probabilities is None else np.array(probabilities, np.float64).reshape(len(sizes)),
        )
    except (OSError, CorruptFile, ValueError, KeyError, TypeError):
        return None


def _runs(panel: Panel) -> list[Run]:
    runs = [run for setting in panel.settings for run in setting.runs]
    return sorted(runs, key=lambda run: int(run.config.get("seed", 0)))


def read_probabilities(plan: Fitted) -> list[tuple[str, list[Reals], Any]] | None:
    """For each value of color: its name, the sorted probabilities of each seed, and its colour; None where nobody's differ."""
    found = []

    def sorted_(held: Holdings) -> Reals:
        alike = (held.sizes > 0) / max(1, int(np.count_nonzero(held.sizes)))
        return np.sort(alike if held.probabilities is None else held.probabilities)[::-1]

    for panel in plan.panels:
        for series in panel.series:
            mine = [each for run in _runs(Panel("", (series,))) if (each := read_clients(run)) is not None and len(each.sizes) > 1]
            lines = [sorted_(each) for each in mine]
            lines = [line for line in lines if len(line) == len(lines[0])]
            name = ", ".join(part for part in (plan.color.label(series.color) if plan.color else "", panel.title) if part)
            if lines:
                found.append((name, lines, plan.colors[series.color]))
    skewed = any(not np.allclose(line, line[0]) for _, lines, _ in found for line in lines)
    return found if skewed else None


def draw_probabilities(found: list[tuple[str, list[Reals], Any]], open_canvas: Any) -> Any:
    """A panel for each distribution, beside each other."""
    columns = min(5, len(found))
    rows = -(-len(found) // columns)
    figure, axes = open_canvas(rows, columns, (COLUMN if columns == 1 else WIDE, 1.5 * rows + 0.2), sharey=True, sharex=True)
    for index, axis in enumerate(axes.flat):
        if index >= len(found):
            axis.remove()
            continue
        name, lines, color = found[index]
        mean, clients = np.mean(lines, axis=0), np.arange(1, len(lines[0]) + 1)
        axis.fill_between(clients, LEAST, np.maximum(mean, LEAST), step="mid", color=color, alpha=0.35, linewidth=0)
        axis.step(clients, np.maximum(mean, LEAST), where="mid", color=color)
        axis.axhline(1 / len(mean), color="black", linestyle=(0, (1, 1.5)), linewidth=0.8)
        axis.set_yscale("log")
        effective = np.mean([1 / np.sum(line**2) for line in lines])
        axis.set_title(pretty(name))
        axis.text(
            0.97,
            0.95,
            f"{effective:.{0 if effective >= 9.95 else 1}f} effective",
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=SMALL,
        )
        if index % columns == 0:
            axis.set_ylabel("probability")
        if index + columns >= len(found):
            axis.set_xlabel("client, by probability")
    every = np.concatenate([line for _, lines, _ in found for line in lines])
    axes[0, 0].set_ylim(max(LEAST, float(every[every > 0].min()) / 2), min(1.5, 6 * float(every.max())))
    logarithmic(axes[0, 0], "y")
    return figure


def read_classes(plan: Fitted) -> list[tuple[str, Holdings]] | None:
    """For each panel its title and the first seed's clients; None where there are none."""
    found = []
    for panel in plan.panels:
        held = next((each for run in _runs(panel) if (each := read_clients(run)) is not None), None)
        if held is not None and held.counts is not None and held.counts.size and len(held.counts) > 1:
            found.append((panel.title, held))
    kinds = {held.kind for _, held in found}
    return [(title, held) for title, held in found if held.kind == found[0][1].kind] if kinds else None


def draw_classes(found: list[tuple[str, Holdings]], open_canvas: Any) -> Any:
    """A heat map for each division, beside each other: the part of a client's samples, or how unusual its characters are."""
    from matplotlib.colors import PowerNorm

    columns = min(5, len(found))
    rows = -(-len(found) // columns)
    characters = found[0][1].kind == "characters"
    figure, axes = open_canvas(rows, columns, (COLUMN if columns == 1 else WIDE, (2.35 if characters else 1.6) * rows + 0.2), sharey=True)
    image = None
    for index, axis in enumerate(axes.flat):
        if index >= len(found):
            axis.remove()
            continue
        title, held = found[index]
        assert held.counts is not None
        counts = held.counts[:CLIENTS]
        if characters:
            everywhere = held.counts.sum(0)
            shown = np.argsort(-everywhere, kind="stable")[: min(CHARACTERS, int((everywhere > 0).sum()))]
            values = relative(counts, everywhere)[:, shown]
            image = axis.imshow(values.T, aspect="auto", cmap="RdBu_r", vmin=-TWICE, vmax=TWICE, interpolation="nearest")
            axis.set_yticks(range(len(shown)), [character(held.names[code]) for code in shown])
        else:
            totals = counts.sum(1, keepdims=True)
            part = 100 * np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
            image = axis.imshow(
                np.where(part > 0, part, np.nan).T,
                aspect="auto",
                origin="lower",
                cmap="viridis_r",
                norm=PowerNorm(0.4, 0, 100),
                interpolation="nearest",
            )
        axis.grid(False)
        axis.set_title(pretty(title))
        if index + columns >= len(found):
            axis.set_xlabel("client" if len(held.counts) <= CLIENTS else f"client, the first {CLIENTS} of {len(held.counts)}")
        if index % columns == 0:
            axis.set_ylabel("next character" if characters else "class")
    if image is not None:
        left = [axis for axis in axes.flat if axis.figure is not None]
        bar = figure.colorbar(image, ax=left, pad=0.01, aspect=25, extend="both" if characters else "neither")
        if characters:
            of_characters(bar)
        else:
            bar.set_label("share of the client's\nsamples, %")
            bar.set_ticks([1, 5, 20, 50, 100])
        bar.outline.set_linewidth(0.5)
    return figure


def of_characters(bar: Any) -> None:
    """What a colour bar says of :func:`relative`."""
    bar.set_label("times as frequent\nas in all text")
    factors = (0.5, 0.7, 1, 1.4, 2)
    bar.set_ticks(np.log2(factors), labels=[f"{factor:g}" for factor in factors])


def relative(counts: Reals, everywhere: Reals) -> Reals:
    """How frequent characters are with each client, relative to their frequency in all text: log2 of at most TWICE, float64 [K, n].

    A character that a client never uses is as rare as can be drawn; a client without text is drawn as average.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Reals = np.log2(counts / counts.sum(1, keepdims=True) / (everywhere / everywhere.sum()))
    return np.nan_to_num(ratio, nan=0.0, neginf=-TWICE, posinf=TWICE).clip(-TWICE, TWICE)


def character(name: str) -> str:
    """A character as an axis names it."""
    return {" ": "space", "\n": "newline"}.get(name, name).replace("$", r"\$")
