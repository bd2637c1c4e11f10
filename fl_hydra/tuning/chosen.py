"""The values chosen by a search, or from a grid: `outputs/tuned/NAME.yaml`, which runs use with `tuned=NAME`.

The file is a list: each entry has the values that were chosen, where they apply (`where`, such as K=2 and J=4), and what they are based on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import UserError, require
from fl_hydra.files import read_file, write_atomically
from fl_hydra.paths import SWEEPS

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Chosen:
    """where: keys and values that a run must have for it. values: of the keys that were chosen. objective, value: what decided, and how
    good it was. study: or the section of a grid. trials: that it was chosen from. seeds: that they had. date: of the choice.
    """

    where: dict[str, Any]
    values: dict[str, Any]
    objective: str
    value: float
    study: str
    trials: int
    seeds: list[int]
    date: str


def file_of(name: str, outputs: Path) -> Path:
    """The file of the choices of this name."""
    return outputs / "tuned" / f"{name}.yaml"


def write_chosen(name: str, outputs: Path, chosen: Sequence[Chosen]) -> Path:
    """Write choices, replacing earlier ones, and return the file.

    Raises:
        OSError: it cannot be written.
    """
    from omegaconf import OmegaConf

    path = file_of(name, outputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, OmegaConf.to_yaml(OmegaConf.create([asdict(each) for each in chosen])).encode())
    return path


def read_chosen(name: str, outputs: Path) -> list[Chosen]:
    """The choices of this name.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    from omegaconf import OmegaConf

    path = file_of(name, outputs)
    known = sorted(each.stem for each in path.parent.glob("*.yaml"))
    instead = f"there are {', '.join(known)}; " if known else ""
    section = (SWEEPS / "search" / f"{name}.yaml").exists()
    instead += f"search first: {f'make tune-{name}' if section else f'with section={name}, then python -m fl_hydra.tuning best {name}'}"
    require(path.exists(), f"tuned={name}: there is no {path}; {instead}")
    try:
        entries = OmegaConf.to_container(OmegaConf.create(read_file(path).decode()))
        assert isinstance(entries, list)
        return [Chosen(**entry) for entry in entries]
    except Exception as error:  # whatever YAML and OmegaConf raise over it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"tuned={name}: {path} cannot be read ({reason}); fix it or choose again") from error


def with_chosen(compose: Callable[[list[str]], DictConfig], overrides: Sequence[str]) -> DictConfig:
    """A composed configuration with the values that its `tuned` names, but for keys that the command line, or its grid, gives.

    Args:
        compose: makes the configuration of the overrides and some more: the options of groups that were chosen.
        overrides: what was typed.

    Raises:
        UserError: there is no such choice, or none matches the configuration.
    """
    from omegaconf import OmegaConf

    from fl_hydra.arguments import groups

    composed = compose([])
    name = composed.get("tuned")
    if name is None:
        return composed
    outputs = Path(str(composed.outputs)).expanduser()
    choices = read_chosen(str(name), outputs)
    fitting = [each for each in choices if all(_same(composed, overrides, key, value) for key, value in each.where.items())]
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    if len(fitting) > 1:  # algorithm=fedadam is FedAvg too, with another server: what is typed decides
        typed = [[f"{key}={value}" for key, value in each.where.items() if key in groups() and key in given] for each in fitting]
        fitting = [each for each, words in zip(fitting, typed, strict=True) if set(words) <= set(overrides)] or fitting
    there = "; ".join(" ".join(f"{key}={value}" for key, value in each.where.items()) for each in choices)
    require(
        len(fitting) == 1,
        f"tuned={name}: {'no choice is' if not fitting else f'{len(fitting)} choices are'} for this run; {file_of(str(name), outputs)} "
        f"has: {there}",
    )
    values = fitting[0].values
    # A rate that was chosen for AdamW means nothing to the optimizer that was typed in its place.
    other = {key for key, value in values.items() if key in groups() and key in given and f"{key}={value}" not in overrides}
    taken = {key: value for key, value in values.items() if key not in given and key.partition(".")[0] not in other}
    try:
        if options := [f"{key}={value}" for key, value in taken.items() if key in groups()]:
            composed = compose(options)
        for key, value in taken.items():
            if key not in groups():
                OmegaConf.update(composed, key, value)
    except Exception as error:  # whatever Hydra and OmegaConf raise where a value does not suit the run
        raise UserError(f"tuned={name}: {' '.join(str(error).split())[:200]}; choose again for this run") from error
    OmegaConf.update(composed, "chosen", {**asdict(fitting[0]), "values": taken}, force_add=True)  # for whoever reads config.yaml
    return composed


def _same(composed: DictConfig, overrides: Sequence[str], key: str, value: Any) -> bool:
    """Whether a configuration has a value: of a key, or of a group's option."""
    from omegaconf import DictConfig, OmegaConf

    if f"{key}={value}" in overrides:
        return True
    found = OmegaConf.select(composed, key)
    return bool((found.get("name") if isinstance(found, DictConfig) else found) == value)
