"""`python -m fl_hydra.pictures KEY=VALUE ...`: draw what the clients of a configuration hold and how often they take part."""

from __future__ import annotations

import sys
from pathlib import Path

from fl_hydra.endings import fail, framed

USAGE = """\
python -m fl_hydra.pictures KEY=VALUE ...: the same keys as train.py has, for example
    dataset=cifar100 algorithm=fedavg sharding=classes N_c=5 participation=skewed gamma=0.5
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
    from fl_hydra.config import notes, resolve
    from fl_hydra.errors import UserError, require
    from fl_hydra.paths import CONF
    from fl_hydra.pictures.draw import draw_clients
    from fl_hydra.runs.identity import run_folder
    from fl_hydra.schema import explain, register_schema, typed

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    register_schema()
    require(not {"-m", "--multirun"} & set(arguments), "-m: a picture is of one configuration; leave -m out")
    overrides = prepare(arguments)
    try:
        with initialize_config_dir(str(CONF)):
            composed = compose("config", overrides=overrides)
        with open_dict(composed):
            composed.pop("hydra", None)
        config = typed(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    for note in notes(config):
        print(note, file=sys.stderr)
    experiment = resolve(config)
    folder = run_folder(experiment, Path())
    path = Path(config.outputs) / "pictures" / f"{'-'.join(folder.parts)}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_clients(experiment, path)
    except OSError as error:
        fail(f"the picture cannot be written: {error}", 1)
    if experiment.participation.asks or experiment.participation.measures:
        print(f"participation={experiment.participation.name} depends on what is trained, so how often clients come is not drawn")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
