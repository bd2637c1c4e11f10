"""Pictures of a study: how the search went, which keys mattered, and where the good values lie. Read from `study.json` alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.files import write_atomically
from fl_hydra.report.colors import BLUE, VERMILION
from fl_hydra.report.figures.scales import logarithmic
from fl_hydra.tuning.objective import Objective
from fl_hydra.tuning.pruning import quietly

MOST_SLICES = 6
"""Keys that have a panel of their own."""

ENOUGH = 8
"""Complete trials from which the importance of keys is worked out."""


@dataclass(frozen=True)
class _Trials:
    """The trials of a study that have a value that can be drawn. values: of the objective. complete: others were given up."""

    params: list[dict[str, Any]]
    values: list[float]
    numbers: list[int]
    complete: list[bool]


def draw_study(study: dict[str, Any], path: Path) -> Path:
    """Draw what `study.json` holds into a PNG file; the file.

    The history by trial; the importance of each key (fANOVA; Hutter et al., ICML 2014), where there are several and enough trials; the
    objective against each key; and of the first two numeric keys together (rate and weight decay, say). Of two objectives, one against
    the other with the Pareto front, and the first one elsewhere.
    """
    from fl_hydra.report.figures.style import COLUMN, WIDE, canvas

    objectives = [Objective.of(typed) for typed in study["objectives"]]
    trials = _trials(study, objectives[0].figure)
    keys = [key for key in study["question"]["space"] if len({repr(params[key]) for params in trials.params}) > 1]
    numeric = [key for key in keys if all(_is_number(params[key]) for params in trials.params)]
    scale, label = (
        (100, f"{objectives[0]}, %") if objectives[0].figure.endswith("acc") and not objectives[0].target else (1, str(objectives[0]))
    )
    values = [value * scale for value in trials.values]
    panels: list[Any] = [lambda axis: _history(axis, trials, values, label, objectives[0].maximised)]
    if len(objectives) > 1:
        panels.append(lambda axis: _front(axis, study, objectives))
    importance = _importance(study, objectives[0]) if len(keys) > 1 and sum(trials.complete) >= ENOUGH else {}
    if importance:
        panels.append(lambda axis: _bars(axis, importance))
    for key in keys[:MOST_SLICES]:
        panels.append(lambda axis, key=key: _slice(axis, trials, values, key, label, _is_log(study, key)))
    if len(numeric) >= 2:
        panels.append(lambda axis: _plane(axis, trials, values, numeric[:2], label, study))
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with canvas(rows, columns, (COLUMN if columns == 1 else WIDE, 1.9 * rows + 0.2)) as (figure, axes):
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_visible(False)
        where = ", ".join(f"{key}={value}" for key, value in study["where"].items())
        pruned = sum(trial["state"] == "pruned" for trial in study["trials"])
        given_up = f", {pruned} given up" if pruned else ""
        figure.suptitle(
            f"{study['section'] or study['study']}{', ' * bool(where)}{where}: {len(study['trials'])} trials{given_up}", fontsize=8
        )
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return path


def _trials(study: dict[str, Any], figure: str) -> _Trials:
    shown = [trial for trial in study["trials"] if trial["values"] and math.isfinite(trial["values"][0])]
    return _Trials(
        [trial["params"] for trial in shown],
        [float(trial["values"][0]) for trial in shown],
        [trial["number"] for trial in shown],
        [trial["state"] == "complete" for trial in shown],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_log(study: dict[str, Any], key: str) -> bool:
    return bool(study["question"]["space"][key]["attributes"].get("log"))


def _scatter(axis: Any, x: Sequence[Any], values: Sequence[float], complete: Sequence[bool]) -> None:
    """Filled where a trial is complete, hollow where it was given up."""
    for state, face in ((True, BLUE), (False, "none")):
        mine = [(a, b) for a, b, done in zip(x, values, complete, strict=True) if done == state]
        if mine:
            axis.scatter(*zip(*mine, strict=True), s=18, facecolors=face, edgecolors=BLUE, label="complete" if state else "given up")


def _history(axis: Any, trials: _Trials, values: Sequence[float], label: str, maximised: bool) -> None:
    _scatter(axis, trials.numbers, values, trials.complete)
    best: list[float] = []
    numbers = [number for number, done in zip(trials.numbers, trials.complete, strict=True) if done]
    for value, done in zip(values, trials.complete, strict=True):
        if done:
            best.append(value if not best else max(best[-1], value) if maximised else min(best[-1], value))
    axis.step(numbers, best, where="post", color=VERMILION, label="best so far")
    axis.set(xlabel="trial", ylabel=label)
    axis.legend()


def _front(axis: Any, study: dict[str, Any], objectives: Sequence[Objective]) -> None:
    shown = [trial for trial in study["trials"] if trial["values"] and all(map(math.isfinite, trial["values"]))]
    for front in (False, True):
        mine = [trial["values"] for trial in shown if (trial["number"] in study["best"]) == front]
        if mine:
            axis.scatter(*zip(*mine, strict=True), s=18, color=VERMILION if front else BLUE, label="Pareto front" if front else "others")
    axis.set(xlabel=str(objectives[0]), ylabel=str(objectives[1]))
    axis.legend()


def _importance(study: dict[str, Any], objective: Objective) -> dict[str, float]:
    """By key, how much of the objective's variance it explains; empty where all trials are alike."""
    import json

    import optuna
    from optuna.distributions import json_to_distribution

    distributions = {key: json_to_distribution(json.dumps(held)) for key, held in study["question"]["space"].items()}
    with quietly():
        scratch = optuna.create_study(direction=objective.direction)
        for trial in study["trials"]:
            if trial["state"] == "complete" and math.isfinite(trial["values"][0]):
                params = {key: trial["params"][key] for key in distributions}
                scratch.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial["values"][0]))
        try:
            return optuna.importance.get_param_importances(scratch, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
        except (ValueError, RuntimeError):  # nothing varies
            return {}


def _bars(axis: Any, importance: dict[str, float]) -> None:
    names = list(importance)[::-1]
    axis.barh(names, [100 * importance[name] for name in names], height=0.6, color=BLUE)
    axis.set_xlabel("part of the variance, %")


def _slice(axis: Any, trials: _Trials, values: Sequence[float], key: str, label: str, log: bool) -> None:
    held = [params[key] for params in trials.params]
    x = held if all(map(_is_number, held)) else [str(value) for value in held]
    _scatter(axis, x, values, trials.complete)
    if log:
        logarithmic(axis, "x")
    axis.set(xlabel=key, ylabel=label)


def _plane(axis: Any, trials: _Trials, values: Sequence[float], keys: Sequence[str], label: str, study: dict[str, Any]) -> None:
    """Two keys, and the objective as colour of each complete trial; hollow where it was given up, at less than the full budget."""
    x, y = ([params[key] for params, done in zip(trials.params, trials.complete, strict=True) if done] for key in keys)
    painted = axis.scatter(
        x,
        y,
        c=[value for value, done in zip(values, trials.complete, strict=True) if done],
        cmap="viridis_r",
        s=36,
        edgecolors="0.3",
        linewidths=0.5,
    )
    x, y = ([params[key] for params, done in zip(trials.params, trials.complete, strict=True) if not done] for key in keys)
    axis.scatter(x, y, s=18, facecolors="none", edgecolors="0.3", linewidths=0.6)
    for key, which, scale in zip(keys, "xy", (axis.set_xscale, axis.set_yscale), strict=True):
        if _is_log(study, key):
            logarithmic(axis, which)
        elif any(params[key] == 0 for params in trials.params) and max(params[key] for params in trials.params) < 0.1:
            scale("symlog", linthresh=min(params[key] for params in trials.params if params[key]))
    axis.set(xlabel=keys[0], ylabel=keys[1])
    axis.figure.colorbar(painted, ax=axis, label=label)
