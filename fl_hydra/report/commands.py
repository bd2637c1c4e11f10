"""Commands that reproduce results: for a run, from the configuration in its folder; for a sweep, as recorded by its section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fl_hydra.arguments import as_typed, groups
from fl_hydra.config import REGISTRIES, Config
from fl_hydra.files import CorruptFile, read_file
from fl_hydra.paths import DATA, OUTPUTS, PROJECT
from fl_hydra.runs.folder import CONFIG
from fl_hydra.runs.identity import by_key
from fl_hydra.runs.reading import Run

NOT_OF_THE_RUN = frozenset(
    {"tracker", "objective", "tune", "engine", "device", "threads", "checkpoint", "until"}
    | {"section", "size", "dry_run", "study", "resume", "tuned", "chosen", "outputs"}
)
"""Keys on which no run's result or name depends. Tuned values appear under their own keys."""


def command_of(run: Run) -> str | None:
    """`python train.py KEY=VALUE ...`, which finds or trains this very run; None if config.yaml does not describe it.

    It names the data, the method, the options that these would not choose by default, and every value that differs from the options'.
    Folders inside the project are relative to it; `data` and `outputs` elsewhere are left out, as they mean nothing on other machines.
    """
    composed = _composed_in(run)
    if composed is None:
        return None
    names = {registry.group: str(composed[registry.group]["name"]) for registry in REGISTRIES if registry.group in composed}
    if any(name not in groups()[group] for group, name in names.items() if group != "tracker"):
        return None
    chosen = {group: names[group] for group in ("dataset", "algorithm")}
    plain = _composition(tuple(chosen.items()))
    chosen |= {group: name for group, name in names.items() if group != "tracker" and plain[f"{group}.name"] != name}
    plain = _composition(tuple(chosen.items()))
    changed = {key: value for key, value in by_key(composed).items() if key.partition(".")[0] not in NOT_OF_THE_RUN}
    changed = {key: value for key, value in changed.items() if plain.get(key, value) != value}
    changed |= {"data": changed.get("data") or str(DATA), "outputs": str(run.folder.resolve().parents[2])}  # where the run is now
    for key, own in (("data", DATA), ("outputs", OUTPUTS)):
        folder = Path(changed.pop(key)).expanduser().resolve()
        if folder != own and folder.is_relative_to(PROJECT):
            changed[key] = folder.relative_to(PROJECT).as_posix()
    within = f"{PROJECT}/"
    changed = {key: value.removeprefix(within) if isinstance(value, str) else value for key, value in changed.items()}
    words = [f"{group}={name}" for group, name in chosen.items()] + [as_typed(f"{key}={_typed(value)}") for key, value in changed.items()]
    return " ".join(["python train.py", *words])


def portable(command: str) -> str:
    """A command without the folders of its machine, which mean nothing elsewhere."""
    return re.sub(r"\s(?:'(?:outputs|data|dataset\.\w+)=[/~][^']*'|(?:outputs|data|dataset\.\w+)=[/~]\S*)", "", command)


def _typed(value: Any) -> str:
    """A value as it is typed after `KEY=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    return str(value)


def _composed_in(run: Run) -> dict[str, Any] | None:
    """The composed configuration in config.yaml, if it is this run's and of this version."""
    import yaml  # type: ignore[import-untyped]

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, for hundreds of runs
        content = yaml.load(read_file(run.folder / CONFIG), loader)
        config = content["config"]
        known = set(Config.__dataclass_fields__)
        sound = run.folder.name.endswith(str(content["run"])) and isinstance(config, dict) and set(config) <= known
        return config if sound and all(config[group]["name"] for group in groups()) else None
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


@lru_cache(maxsize=256)
def _composition(chosen: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    """Hydra's composition of these options alone, by key."""
    from hydra import compose
    from omegaconf import OmegaConf

    from fl_hydra.api import composing
    from fl_hydra.schema import register_schema

    register_schema()
    with composing():
        composed = OmegaConf.to_container(compose("config", overrides=[f"{group}={name}" for group, name in chosen]), resolve=False)
    assert isinstance(composed, dict)
    return by_key({str(key): value for key, value in composed.items() if key != "hydra"})
