"""From a point of a sweep to the configuration of a run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from fl_hydra.config import Config


def compose_point(context: HydraContext, config: DictConfig, overrides: list[str]) -> Config:
    """Compose a point and check each of its values.

    Raises:
        UserError, HydraException, OmegaConfBaseException: it is not valid.
    """
    from fl_hydra.schema import typed

    composed = copy.deepcopy(context.config_loader.load_sweep_config(config, overrides))
    with open_dict(composed):
        del composed["hydra"]
    return typed(composed)
