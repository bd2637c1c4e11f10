"""Runs as read from their folders: what was requested, how it ended, and a label in the field's letters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fl_hydra.algorithms.base import algorithms
from fl_hydra.files import CorruptFile, read_file
from fl_hydra.models.base import models
from fl_hydra.options import has_option, read_option
from fl_hydra.registry import records
from fl_hydra.runs.folder import METRICS, SUMMARY, rows_of
from fl_hydra.runs.identity import hash_of
from fl_hydra.runs.standing import is_written
from fl_hydra.runs.summary import FORMAT, read_ended


@dataclass(frozen=True)
class Method:
    """How a method is labelled.

    optimizer, server: what it usually has, which its label need not say. variant: the option that makes another method of it, as
    `post_local`. federated: its label says how images are divided, even if evenly. J: whether J means more to it than how often it is
    evaluated.
    """

    title: str
    optimizer: str
    server: str
    variant: str
    federated: bool
    J: bool


@dataclass(frozen=True)
class Run:
    """A requested run.

    config: the resolved configuration; empty where no file tells it. rows: of metrics.jsonl, at least one if the run has ended, else none.
    status: `finished` or `diverged`; `unfinished`, `damaged` or `missing` if there is no result to report. why: it is not finished.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    status: str
    why: str = ""

    @property
    def finished(self) -> bool:
        """Whether its figures go into means."""
        return self.status == "finished"

    @property
    def label(self) -> str:
        """The setting in the field's letters, without the seed."""
        c = self.config
        algorithm, rule = c["algorithm"], c.get("local_steps", {}).get("name", "fixed")
        inner, outer = inner_optimizer(c["optimizer"]), outer_optimizer(c.get("server", {}))
        title, method = method_of(c)
        J = [f"J={c['J']}"] if c["J"] is not None and (method is None or method.J) else []
        if rule != "fixed" and (method is None or rule != method.variant):
            J.append(f"({rule})")
        words, further = [title], []
        if c["K"] == 1:
            words += J
            further.append(f"batch {c['batch_size']}")
            if c.get("data_parallel", 1) > 1:
                further.append(f"data_parallel={c['data_parallel']}")
        else:
            cohort = [f"C={c['m'] / c['K']:g}"] if c["m"] != c["K"] else []
            blocks = [f"{key}={algorithm[key]}" for key in ("J_b", "blocks") if key in algorithm]
            power = [f"power={algorithm['power']:g}"] if algorithm.get("power", 0) not in (0, 1) else []
            words += [*([algorithm["topology"]] if "topology" in algorithm else []), f"K={c['K']}", *cohort, *J, *blocks, *power]
            if c["N_c"] is not None:
                further.append(f"N_c={c['N_c']}")
            elif method is None or method.federated or c["sharding"]["name"] != "iid":
                further.append(_division(c["sharding"]))
            further += _participation(c)
        if method is None or inner != method.optimizer:
            further.append(inner)
        if outer != (method.server if method else "sgd"):
            further.append(f"server.{outer}" if outer.startswith("lr=") else f"server={outer}")
        if c.get("swa"):
            further.append(f"swa.start={c['swa']['start']:g}")
        return ", ".join([" ".join(words), *further])

    def column(self, name: str) -> list[float | None]:
        """One figure of every row."""
        return [row[name] for row in self.rows]


def method_of(config: Mapping[str, Any]) -> tuple[str, Method | None]:
    """The method of a configuration by its title, and what is known of it; of one that is not here any more, the name alone.

    The title is what its class says, the rest what its file in `conf` chooses.
    """
    algorithm, rule = config["algorithm"], config.get("local_steps", {}).get("name", "fixed")
    cls = algorithms.get(algorithm["name"])
    if cls is None or not has_option("algorithm", cls.name):
        return str(algorithm["name"]), None
    known = {field.name for field in fields(cls)}
    # What means nothing to a run is null in its name.
    option = cls(**{key: value for key, value in algorithm.items() if key in known and value is not None}).option
    outer = outer_optimizer(config.get("server", {}))
    own = vars(cls)  # a method that subclasses another has not its names
    variant = next((each for each in (option, rule, outer) if each in own.get("variants", ())), "")
    title = own["variants"][variant] if variant else own.get("label", cls.name)
    usual = read_option("algorithm", cls.name).chooses
    server = read_option("server", usual.get("server", "sgd"))
    usual_outer = variant if variant == outer else outer_optimizer({"name": server.part.name, **server.values})
    return title, Method(title, usual.get("optimizer", "sgd"), usual_outer, variant, cls.federated, cls.J_matters)


def _division(sharding: dict[str, Any]) -> str:
    """How samples are divided. The two ways to draw classes mean different things by alpha, so one has another word with it."""
    word = {"dirichlet": "", "dirichlet_classes": "per-class ", "quantity": "quantity "}.get(sharding["name"])
    if word is None:
        return str(sharding["name"])
    return f"{word}alpha={sharding['alpha']:g}{' equal' if sharding.get('equal') else ''}"


def _participation(config: dict[str, Any]) -> list[str]:
    """Who takes part, where it is not everyone or a uniform sample, and whether they drop out."""
    scheme = config["participation"]
    words = [] if scheme["name"] in ("all", "uniform", "skewed") else [str(scheme["name"])]
    if config.get("gamma") is not None:
        words.append(f"gamma={config['gamma']:g}")
    return words + ([f"dropout={scheme['dropout']:g}"] if scheme.get("dropout") else [])


def model_of(model: Mapping[str, Any]) -> str:
    """The model by the name of its option, and what becomes of its running statistics if they are not averaged."""
    cls = models.get(model.get("name", ""))
    if cls is None:
        return str(model.get("name"))
    known = {field.name for field in fields(cls)}
    made = cls(**{key: value for key, value in (records(cls) | dict(model)).items() if key in known})
    return made.option if made.statistics == "averaged" else f"{made.option} {made.statistics}"


def inner_optimizer(optimizer: dict[str, Any]) -> str:
    """The local optimizer by the name of its option."""
    return "sgd" if optimizer["name"] == "sgdm" and not optimizer["momentum"] else str(optimizer["name"])


def outer_optimizer(server: dict[str, Any]) -> str:
    """The outer optimizer by the name of its option, which several options share with `sgd`; of a step along the mean alone, its rate."""
    name = str(server.get("name", "sgd"))
    if name != "sgd":
        return name
    if server.get("per_rate"):
        return "slowmo"
    if server.get("momentum"):
        return "nesterov" if server["nesterov"] else "momentum"
    return "sgd" if server.get("lr", 1) == 1 else f"lr={server['lr']:g}"


def read_run(folder: Path) -> Run:
    """Read a run from its folder. A result counts only if everything that can be verified holds."""
    if not folder.is_dir():
        return Run(folder, {}, [], "missing", "it has not begun, or its folder was removed")
    try:
        ended = read_ended(folder)
        if ended is None:
            if is_written(folder):
                return Run(folder, _begun(folder), [], "unfinished", "it is being trained now")
            failed = "it failed, as error.txt says" if (folder / "error.txt").exists() else "it has not ended"
            return Run(folder, _begun(folder), [], "unfinished", f"{failed}; the same command continues it")
        if _is_newer(folder):
            raise CorruptFile("")
        config, run = ended.summary["config"], ended.summary["run"]
        if hash_of(config) != run:
            raise CorruptFile("summary.json is damaged")
        if not folder.name.endswith(run):
            raise CorruptFile(f"it holds run {run}, which the folder is not named after")
        read = Run(folder, config, ended.rows, ended.summary["status"], str(ended.summary.get("reason", "")))
        _check_rows(read)
        if not is_known(config):
            return Run(folder, {}, [], "damaged", OTHER_VERSION)
        return read
    except CorruptFile as error:
        why = "a newer version of this program wrote it; update this one" if _is_newer(folder) else str(error)
        return Run(folder, _begun(folder), [], "damaged", why)
    except OSError as error:
        return Run(folder, _begun(folder), [], "damaged", f"it cannot be read ({error.strerror or error})")


def with_rows(run: Run) -> Run:
    """A run that has not ended, with the readable rows that it has written so far; other runs unchanged."""
    if run.status != "unfinished" or not run.config:
        return run
    try:
        content = read_file(run.folder / METRICS)
        begun = replace(run, rows=rows_of(content[: content.rfind(b"\n") + 1]))  # the last one may be half written
        _check_rows(begun)
    except (OSError, CorruptFile):
        return run
    return begun


NEEDED = (
    "seed",
    "K",
    "J",
    "m",
    "N_c",
    "batch_size",
    "algorithm",
    "optimizer",
    "scheduler",
    "sharding",
    "participation",
    "dataset",
    "model",
)
"""Keys of every configuration, without which a run cannot be put beside others."""

OTHER_VERSION = "another version of this program wrote its configuration, which cannot be read here"


def is_known(config: dict[str, Any]) -> bool:
    """Whether a configuration is of a shape that can be labelled."""
    try:
        return all(key in config for key in NEEDED) and bool(Run(Path(), config, [], "finished").label)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False


def _check_rows(run: Run) -> None:
    """Find rows that no version has written.

    Raises:
        CorruptFile: a figure is no number or list of such, by client, or samples, against which all is drawn, are missing.
    """
    for row in run.rows:
        if not isinstance(row.get("samples"), int | float):
            raise CorruptFile(f"{METRICS} has a row without its samples")
        for name, value in row.items():
            if not all(_is_figure(each) for each in (value if isinstance(value, list) else [value])):
                raise CorruptFile(f"{METRICS} has a {name} that is no number")


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _is_newer(folder: Path) -> bool:
    """Whether summary.json has a format that is not known yet."""
    try:
        return int(json.loads(read_file(folder / SUMMARY))["format"]) > FORMAT
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, RecursionError):
        return False


def _begun(folder: Path) -> dict[str, Any]:
    """The resolved configuration that a run was begun with, from config.yaml; empty if that does not say what the folder is named after."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        content = OmegaConf.to_container(OmegaConf.create(read_file(folder / "config.yaml").decode()))
        config = content["resolved"] if isinstance(content, dict) else {}
        return config if isinstance(config, dict) and folder.name.endswith(hash_of(config)) and is_known(config) else {}
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException):
        return {}
