"""`python -m fl_hydra.pictures KEY=VALUE ...`: draw what the clients of a configuration hold and how often they take part."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

from fl_hydra.exits import fail, framed

USAGE = """\
python -m fl_hydra.pictures [-m] KEY=VALUE ...: the same keys as train.py has, for example
    dataset=cifar100 algorithm=fedavg sharding=classes N_c=5 participation=skewed gamma=0.5
With -m, values with commas are drawn over or beside each other; panel=classes draws one panel alone, of classes, distinct,
characters, sizes, probabilities, visits and cohorts.
Writes OUTPUTS/pictures/DATASET-ALGORITHM-NAME.png; nothing is trained."""


def main() -> None:
    """Draw the configuration on the command line."""
    framed(_draw)


def _draw() -> None:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from fl_hydra.arguments import prepare
    from fl_hydra.errors import UserError, require
    from fl_hydra.paths import CONF
    from fl_hydra.pictures.draw import PANELS, draw_beside
    from fl_hydra.resolving import notes, resolve
    from fl_hydra.runs.identity import run_folder
    from fl_hydra.schema import explain, register_schema, typed
    from fl_hydra.training.experiment import Experiment

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    register_schema()
    several = bool({"-m", "--multirun"} & set(arguments))
    asked = [word.partition("=")[2] for word in arguments if word.startswith("panel=")]
    require(len(asked) < 2, f"panel={','.join(asked)}: one panel, or all of them without panel=")
    panel = asked[0] if asked else None
    require(panel is None or panel in PANELS, f"panel={panel}: choose {', '.join(PANELS)}")
    arguments = [word for word in arguments if word not in ("-m", "--multirun") and not word.startswith("panel=")]
    experiments: dict[Path, tuple[str, Experiment]] = {}
    try:
        with initialize_config_dir(str(CONF)):
            for name, point in _points(arguments) if several else [("", arguments)]:
                composed = compose("config", overrides=prepare(point))
                with open_dict(composed):
                    composed.pop("hydra", None)
                config = typed(composed)
                for note in notes(config):
                    print(note, file=sys.stderr)
                experiment = resolve(config)
                experiments.setdefault(run_folder(experiment, Path()), (name, experiment))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    words = "-".join(next(iter(experiments)).parts)
    if len(experiments) > 1:  # named after all of them
        words += f"-and-{hashlib.sha256(' '.join(map(str, experiments)).encode()).hexdigest()[:6]}"
    path = Path(config.outputs) / "pictures" / f"{words}{f'-{panel}' if panel else ''}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_beside(list(experiments.values()), path, panel)
    except OSError as error:
        fail(f"the picture cannot be written: {error}", 1)
    if panel is None and (experiment.participation.asks or experiment.participation.measures):
        print(f"participation={experiment.participation.name} depends on what is trained, so how often clients take part is not drawn")
    print(f"wrote {path}")


def _points(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Every combination of comma-separated values, named by what differs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    choices: list[list[tuple[str, str]]] = []
    for word in arguments:
        override = parser.parse_override(word)
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([(f"{key}={value}", f"{key}={value}") for value in override.sweep_string_iterator()])
        else:
            choices.append([("", word)])
    return [(", ".join(name for name, _ in point if name), [word for _, word in point]) for point in itertools.product(*choices)]


if __name__ == "__main__":
    main()
