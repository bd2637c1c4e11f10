"""`python -m benchmarks.t4_estimate [data=FOLDER]`: hours of each section on a T4, from the runs' floating-point operations alone.

An estimate, not a measurement: a T4 has 8.1 TFLOP/s in fp32, of which :data:`REACHED` is taken to be reached. The table of
notebooks/colab.ipynb is what this prints with all of CIFAR-100 and Shakespeare in the data folder.
"""

from __future__ import annotations

import copy
import itertools
import sys
from functools import cache

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from fl_hydra.arguments import groups, sections
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model
from fl_hydra.paths import CONF, DATA
from fl_hydra.resolving import resolve
from fl_hydra.runs.identity import run_hash
from fl_hydra.schema import register_schema, typed
from fl_hydra.training.experiment import Experiment

PEAK = 8.1e12
"""Floating-point operations a second of a T4 in fp32 (NVIDIA's data sheet)."""
REACHED = 0.2
"""The part of it that is taken to be reached: an assumption. Small models and long recurrences reach less, packs of runs more."""


def main() -> None:
    """Print the table."""
    data = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("data=")), str(DATA))
    print("| section | runs | PFLOP | on a T4, estimated |\n| --- | --- | --- | --- |")
    for track, names in sections().items():
        for name in names:
            found = experiments(track, name, data)
            flops = float(sum(map(run_flops, found)))
            print(f"| `+sweep/{track}={name}` | {len(found)} | {flops / 1e15:,.0f} | {_duration(seconds(flops))} |")


def seconds(flops: float) -> float:
    """How long a T4 is taken to need."""
    return flops / (REACHED * PEAK)


def experiments(track: str, name: str, data: str) -> list[Experiment]:
    """The distinct runs of a section."""
    register_schema()
    parser = OverridesParser.create()
    with initialize_config_dir(str(CONF)):
        of_section = [f"+sweep/{track}={name}", f"data={data}"]

        @cache
        def composed(choices: tuple[str, ...]) -> DictConfig:
            return compose("config", overrides=[*of_section, *choices], return_hydra_config=True)

        axes = []
        for key, values in composed(()).hydra.sweeper.params.items():
            parsed = parser.parse_override(f"{key}={values}")
            axes.append([f"{key}={value}" for value in (parsed.sweep_string_iterator() if parsed.is_sweep_override() else [values])])
        found: dict[str, Experiment] = {}
        for words in itertools.product(*axes):
            choices = tuple(word for word in words if word.partition("=")[0] in groups())
            point = copy.deepcopy(composed(choices))
            with open_dict(point):
                point.pop("hydra")
            ConfigLoaderImpl._apply_overrides_to_config(parser.parse_overrides([word for word in words if word not in choices]), point)
            try:
                experiment = resolve(typed(point))
            except UserError:
                continue  # a sweep refuses it, too
            found[run_hash(experiment)] = experiment
    return list(found.values())


def run_flops(e: Experiment) -> int:
    """Training and evaluations of a run."""
    from fl_hydra.data.shakespeare import TextDataset
    from fl_hydra.training.text_samples import EVAL_SUBSET_SIZE

    forward, both = _sample_flops(e.model, e.dataset_info)
    held = sum(e.dataset_info.train_counts) - e.train_samples
    looked_at = 2 * EVAL_SUBSET_SIZE if isinstance(e.dataset, TextDataset) else held + sum(e.dataset_info.test_counts)
    return both * e.budget + forward * e.points * looked_at


_counted: dict[tuple[str, DatasetInfo], tuple[int, int]] = {}


def _sample_flops(model: Model, info: DatasetInfo) -> tuple[int, int]:
    """Of a sample's forward pass, and of both passes."""
    from fl_hydra.training.sample_cost import sample_flops

    key = (repr(model), info)
    if key not in _counted:
        module = model.build(info)
        _counted[key] = sample_flops(module, info, backward=False), sample_flops(module, info)
    return _counted[key]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


if __name__ == "__main__":
    main()
