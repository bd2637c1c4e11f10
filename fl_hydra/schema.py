"""The configuration's schema in Hydra's store: every registered part under `schema/<group>/<name>`."""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl_hydra.arguments import is_guest
from fl_hydra.config import REGISTRIES, Config
from fl_hydra.errors import UserError


def register_schema() -> None:
    """Make the schema known to Hydra, so that wrong types and unknown keys end at composition."""
    _register(tuple((registry.group, name, part) for registry in REGISTRIES for name, part in registry.items()))


@lru_cache(maxsize=1)  # a fifth of a second, to which nothing changes unless another part was registered
def _register(parts: tuple[tuple[str, str, type[Any]], ...]) -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config, replace=True)
    for group, name, part in parts:
        store.store(group=f"schema/{group}", name=name, node=part, replace=True)
        if is_guest(part):
            option = {"defaults": [{f"/schema/{group}@_here_": name}, "_self_"]}
            store.store(group=group, name=name, node=option, replace=True)


def typed(composed: DictConfig) -> Config:
    """The composed configuration as typed objects, whose ranges are checked as they are made.

    Raises:
        UserError: a value is missing, of the wrong type or out of range.
    """
    _refuse_unknown(composed, Config, "")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(config, Config)
    return config


def _refuse_unknown(composed: DictConfig, schema: type[Any], prefix: str) -> None:
    """Hydra lets `+key=value` add any key; one that no part reads would be a mistake without a word."""
    known = {field.name for field in dataclasses.fields(schema)}
    for key in composed:
        name = str(key)
        if name not in known:
            raise UserError(f"{prefix}{name}: no such key; choose from {', '.join(sorted(known))}")
        if not OmegaConf.is_missing(composed, name) and isinstance(value := composed._get_node(name), DictConfig):
            kind = OmegaConf.get_type(value)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                _refuse_unknown(value, kind, f"{prefix}{name}.")


def explain(error: BaseException) -> str:
    """A composition error and its causes as one line: what was wrong and what is allowed, without what helps to debug Hydra."""
    if isinstance(error, UserError):
        return str(error)
    noise = ("reference_type=", "object_type=", "full_key:", "set the environment variable", "to append to your config")
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        for line in map(str.strip, str(current).splitlines()):
            if line.startswith("Config search path"):
                break
            if line and line not in lines and not line.lower().startswith(noise):
                lines.append(line)
        current = current.__cause__
    text = "; ".join(lines).replace(":;", ":").replace(".;", ";") or type(error).__name__
    if unknown := re.search(r"Key '(.+?)' not in '(\w+)'", text):
        classes: list[type[Any]] = [Config, *(part for registry in REGISTRIES for part in registry.values())]
        known = [field.name for part in classes if part.__name__ == unknown[2] for field in dataclasses.fields(part)]
        text += f"; choose from {', '.join(known)}" if known else ""
    return text
