"""From a point of a sweep to the configuration of a run."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from fl_hydra.config import Config


class Composer:
    """Composes the points of a sweep.

    Most points differ in values only (K, a learning rate, a seed) and not in what is composed (options of groups). Hydra takes a tenth of
    a second to compose options, so the composition of each choice of options is cached, and values are put into a copy.
    """

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self._context, self._config = context, config
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._parse = lru_cache(maxsize=None)(OverridesParser.create().parse_override)

    def __call__(self, overrides: list[str]) -> Config:
        """Compose a point and check each of its values.

        Raises:
            UserError, HydraException, OmegaConfBaseException: it is not valid.
        """
        from fl_hydra.arguments import groups, keys
        from fl_hydra.schema import typed
        from fl_hydra.tuning.chosen import with_chosen

        values = [override for override in overrides if (key := override.partition("=")[0]) in keys() and key not in groups()]
        choices = [override for override in overrides if override not in values]

        def compose(more: list[str]) -> DictConfig:
            point = copy.deepcopy(self._options((*choices, *more)))
            ConfigLoaderImpl._apply_overrides_to_config([self._parse(value) for value in values], point)
            return point

        return typed(with_chosen(compose, overrides))

    def _options(self, choices: tuple[str, ...]) -> DictConfig:
        """Hydra's composition of a choice of options."""
        if choices not in self._composed:
            composed = copy.deepcopy(self._context.config_loader.load_sweep_config(self._config, list(choices)))
            with open_dict(composed):
                del composed["hydra"]
            self._composed[choices] = composed
        return self._composed[choices]
