"""`python -m fl_hydra.pictures KEY=VALUE ...`: draw what the clients of a configuration hold and how often they take part."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from fl_hydra.app import PROJECT
from fl_hydra.config import resolve, unused_keys
from fl_hydra.errors import UserError, require
from fl_hydra.pictures.draw import draw_clients
from fl_hydra.runs.identity import run_folder
from fl_hydra.schema import explain, register_schema, typed

USAGE = """\
python -m fl_hydra.pictures KEY=VALUE ...: the same keys as train.py has, for example
    dataset=cifar100 algorithm=fedavg sharding=classes N_c=5 participation=skewed gamma=0.5
Writes OUTPUTS/pictures/DATASET-ALGORITHM-NAME.png; nothing is trained."""


def main() -> None:
    """Draw the configuration on the command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    register_schema()
    try:
        require("-m" not in sys.argv, "-m: a picture is of one configuration; leave -m out")
        with initialize_config_dir(str(PROJECT / "conf")):
            composed = compose("config", overrides=sys.argv[1:])
        with open_dict(composed):
            composed.pop("hydra", None)
        config = typed(composed)
        for note in unused_keys(config):
            print(note, file=sys.stderr)
        experiment = resolve(config)
        folder = run_folder(experiment, Path())
        path = Path(config.outputs) / "pictures" / f"{'-'.join(folder.parts)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_clients(experiment, path)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: the picture cannot be written: {error}", file=sys.stderr)
        sys.exit(1)
    if experiment.participation.asks or experiment.participation.measures:
        print(f"participation={experiment.participation.name} depends on what is trained, so how often clients come is not drawn")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
