"""What a notebook or a script calls: `fl_hydra.run("algorithm=fedavg", "K=20")` and `fl_hydra.load(run)`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.config import REGISTRIES, Config, Evaluation, Tune
from fl_hydra.config import Checkpoint as CheckpointConfig
from fl_hydra.errors import UserError, require
from fl_hydra.files import CorruptFile, read_file, read_verified
from fl_hydra.paths import CONF, DATA, OUTPUTS
from fl_hydra.resolving import resolve
from fl_hydra.runs.checkpoint import Checkpoint
from fl_hydra.runs.folder import CONFIG, METRICS, rows_of
from fl_hydra.runs.identity import run_hash
from fl_hydra.runs.progress import ConsoleReporter
from fl_hydra.runs.summary import read_ended
from fl_hydra.training.averages import SWA

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from fl_hydra.runs.judging import Judge
    from fl_hydra.training.experiment import Experiment

AT_ONCE = 500
"""Inputs that are predicted together."""


class RunFailed(Exception):
    """A requested run has no result: it failed, was interrupted, or is being trained by another process; the text says which."""


class Metrics(Mapping[str, list[Any]]):
    """The rows of metrics.jsonl as a table: columns by name, each a list with a value for every row.

    Mappings of columns are what `pandas.DataFrame(run.metrics)` and matplotlib take; nothing else need be installed for them.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._names = list(dict.fromkeys(name for row in rows for name in row))

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._names:
            raise KeyError(f"{name}: there are {', '.join(self._names)}")
        return [row.get(name) for row in self.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<{len(self.rows)} rows of {', '.join(self._names)}>"


class Run:
    """A run that was trained, or as far as it was.

    Args:
        folder: of the run.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            ended = read_ended(folder)
            rows = ended.rows if ended else rows_of(read_file(folder / METRICS))
        except FileNotFoundError:
            rows = []
        except CorruptFile as error:
            raise UserError(f"{folder}: {error}; give the run's command again, which repairs it") from error
        self.summary: dict[str, Any] = dict(ended.summary) if ended else {}
        """Of summary.json; empty if the run has not ended."""
        self.status: str = self.summary.get("status", "unfinished")
        """`finished`, `diverged` or `unfinished`."""
        self.metrics = Metrics(rows)

    def __repr__(self) -> str:
        from fl_hydra.runs.progress import brief

        return f"<{self.status} run {self.folder}: {brief(*self.metrics.rows[-1:])}>"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as it was composed, with plain values: `run.config["optimizer"]["lr"]`.

        Raises:
            UserError: config.yaml is missing or damaged.
        """
        from omegaconf import OmegaConf

        try:
            content = OmegaConf.to_container(OmegaConf.create(read_file(self.folder / CONFIG).decode()))
            assert isinstance(content, dict)
            return dict(content["config"])
        except Exception as error:  # whatever YAML and OmegaConf raise over it
            raise UserError(f"{self.folder / CONFIG} cannot be read; give the run's command again, which writes it again") from error

    @cached_property
    def experiment(self) -> Experiment:
        """What was trained, resolved.

        Raises:
            UserError: it cannot be made again from config.yaml: the data are others now, or this version reads it in another way.
        """
        experiment = resolve(_typed(self.config))
        if not self.folder.name.endswith(run_hash(experiment)):
            raise UserError(
                f"{self.folder}: its config.yaml makes run {run_hash(experiment)} here: the data in {experiment.data} are others, or "
                "another version of this program trained it"
            )
        return experiment

    @cached_property
    def module(self) -> nn.Module:
        """The trained module, on the CPU and in evaluation mode, from the newest checkpoint that can be read.

        Raises:
            UserError: there is none, or it is not what summary.json was written for.
        """
        model = self._checkpoint.trainer["state"]["model"]
        digest = hashlib.sha256(model.contiguous().numpy().tobytes()).hexdigest()
        expected = self.summary.get("weights_parts", {}).get("model", self.summary.get("weights_sha256", digest))
        require(
            digest == expected, f"{self.folder}: its last checkpoint does not have the weights of its summary; give the run's command again"
        )
        return self._module(model, "model")

    @property
    def clients(self) -> int:
        """How many workers have models of their own that are kept from round to round, as in gossip, or how many clients there are, if they
        are judged; 0 if there is one model."""
        workers = self._checkpoint.trainer["state"].get("workers")
        return len(workers) if workers is not None else self.experiment.K if self.experiment.personalised else 0

    def client(self, k: int) -> nn.Module:
        """The model with which client k is judged, from 0: after it has joined or adapted, on the CPU and in evaluation. It gives the
        logits with which the client predicts. Of workers that keep models of their own, the module of worker k.

        It is made from the newest checkpoint that can be read, also while another process trains the run, whose folder is only read.

        Raises:
            UserError: there is no such client, or none has a model of its own.
        """
        count, e = self.clients, self.experiment
        asked, k = k, int(k) if isinstance(k, Integral) and not isinstance(k, bool) else -1
        require(count > 0, f"client({asked}): in algorithm={e.algorithm.option} there is one model after a round; see .module")
        who = "clients" if e.personalised else "workers"
        require(0 <= k < count, f"client({asked}): there are {who} 0 to {count - 1}")
        if not e.personalised:
            return self._module(self._checkpoint.trainer["state"]["workers"][k], "workers", k)
        try:
            return self._judge.client(k)
        except (CorruptFile, OSError):  # files that a later checkpoint no longer needs are gone
            self.__dict__.pop("_judge", None)
        try:
            return self._judge.client(k)
        except (CorruptFile, OSError) as error:
            raise UserError(f"{self.folder}: the model of client {k} cannot be loaded ({error}); give the run's command again") from error

    @cached_property
    def _judge(self) -> Judge:
        from fl_hydra.runs.judging import Judge

        self.__dict__.pop("_checkpoint", None)  # the newest one now
        return Judge(self.folder, self.experiment, self._checkpoint, self.summary)

    def predict(self, inputs: Any, client: int | None = None) -> Tensor:
        """Probabilities of each class, float32 [n, classes], under the trained model, or that of a client.

        Args:
            inputs: images uint8 [n, height, width, channels], or [n, height, width] of one channel, as they are in the dataset: they are
                normalised as the run's training images were, and neither cropped nor flipped. Of text, codes of characters
                uint8 [n, positions]; then, where every position has a target, probabilities are [n, positions, classes].

        Raises:
            UserError: they are of another kind or shape, or only clients have models.
        """
        import numpy as np
        import torch

        e = self.experiment
        who = f"algorithm={e.algorithm.name}" if not e.algorithm.global_model else f"model.statistics={e.model.statistics}"
        require(
            client is not None or e.global_model,
            f"{who} trains no model for everyone; its figures are personal/test/acc and so on; choose a client: predict(inputs, client=0)",
        )
        given = inputs.numpy() if isinstance(inputs, torch.Tensor) else np.asarray(inputs)
        info = self.experiment.dataset_info
        require(given.dtype == np.uint8, f"predict: inputs are {given.dtype}; uint8 is needed, as in the dataset")
        if info.textual:
            require(given.ndim == 2, f"predict: inputs have shape {given.shape}; codes of characters [n, positions] are needed")
            prepared = torch.from_numpy(given)
        else:
            channels, height, width = info.shape
            given = given[..., None] if given.ndim == 3 and channels == 1 else given
            wanted = (height, width, channels)
            require(
                given.shape[1:] == wanted, f"predict: inputs have shape {given.shape}; images [n, {height}, {width}, {channels}] are needed"
            )
            prepared = self._normalised(given)
        module = self.module if client is None else self.client(client)
        with torch.no_grad():
            logits = [module(piece).float() for piece in torch.split(prepared, AT_ONCE)]
        return torch.cat(logits).softmax(-1) if logits else torch.empty(0, info.classes)

    def _normalised(self, images: Any) -> Tensor:
        import numpy as np
        import torch

        from fl_hydra.data.images import ImageDataset, channel_statistics
        from fl_hydra.training.image_samples import Images

        e = self.experiment
        assert isinstance(e.dataset, ImageDataset)
        arrays = e.dataset.load(e.data)
        train, _ = e.dataset.split(arrays.train_labels, e.split_seed, arrays.train_clients)
        samples = Images(images, np.zeros(len(images), np.int64), *channel_statistics(arrays.train_images[train]))
        return samples.plain(torch.arange(len(images)))

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        why = "it has no checkpoint"
        for path in sorted((self.folder / "checkpoints").glob("round-*.pt"), reverse=True):
            try:
                found = Checkpoint.of(read_verified(path))
            except (CorruptFile, OSError) as error:
                why = f"{path.name}: {error}"
                continue
            if self.folder.name.endswith(found.run):
                return found
            why = f"{path.name} is of another run"
        raise UserError(f"{self.folder}: there are no weights to load ({why}); give the run's command again")

    def _module(self, vector: Tensor, whose: str, worker: int | None = None) -> nn.Module:
        """A module of some parameters [P], with the running statistics of `model`, or of one of the `workers`."""
        import torch

        from fl_hydra.seams.layout import Layout

        state = self._checkpoint.trainer["state"]
        statistics, frozen = state.get(f"buffers.{whose}"), state.get("buffers.frozen")
        if statistics is not None and worker is not None:
            statistics = statistics[worker]
        module = self.experiment.algorithm.extend(self.experiment.model.build(self.experiment.dataset_info))
        layout = Layout.of(module)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, view in layout.whole_views(layout.whole(vector[None], statistics, frozen)[0].float()).items():
                tensors[name].copy_(view)
        return module.eval().requires_grad_(False)


def run(*overrides: str, outputs: str | Path | None = None, quiet: bool = False) -> Run:
    """Train a run, continue it, or find its result, as `python train.py ...` does with the same arguments.

    Args:
        overrides: as on the command line: `"algorithm=fedavg"`, `"K=20"`, `"optimizer.lr=0.1"`.
        outputs: folder of the runs; None: what the words say, else the project's own.
        quiet: whether nothing is printed while it trains.

    Raises:
        UserError: what is wrong in the configuration, in one line; nothing was trained.
        RunFailed: it has no result; what was trained is kept, and the same call continues.
    """
    from fl_hydra.runs.execution import execute

    config = _composed(overrides if outputs is None else (*overrides, f"outputs={outputs}"))
    reporter = _Quiet() if quiet else ConsoleReporter()
    outcome = execute(config, reporter)
    if outcome.status not in ("finished", "diverged", "paused"):
        raise RunFailed(f"{outcome.status}: {outcome.reason}")
    return Run(outcome.folder)


def load(name: str | Path, outputs: str | Path = OUTPUTS) -> Run:
    """A run that was trained before, by its folder, the folder's name or the first digits (4 or more) of its hash.

    Raises:
        UserError: there is no such run, or several.
    """
    from fl_hydra.runs.finding import find_run

    return Run(find_run(str(name), Path(outputs).expanduser()))


class _Quiet(ConsoleReporter):
    """Says nothing but what the user should know."""

    def __init__(self) -> None:
        super().__init__(live=False)

    def _line(self, text: str) -> None:
        if text.startswith("note: "):
            super()._line(text)


def _composed(overrides: tuple[str, ...]) -> Config:
    """A configuration, as the command line composes it."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from fl_hydra.arguments import PATHS, prepare
    from fl_hydra.schema import explain, register_schema, typed
    from fl_hydra.tuning.chosen import with_chosen

    for word in overrides:
        require(isinstance(word, str) and not word.startswith("-"), f"{word}: a run takes words of the form KEY=VALUE")
        require(not re.match(r"\+*(hydra[./]|sweep/|search=)", word), f"{word}: this is for sweeps, and run() trains one run; leave it out")
        several = re.fullmatch(r"[\w./]+=[\w.+-]+(,[\w.+-]+)+", word) and word.partition("=")[0] not in PATHS
        require(not several, f"{word}: several values are a sweep of many runs, and run() trains one; call it for each")
    register_schema()
    prepared = prepare(overrides)

    def composed(more: list[str]) -> DictConfig:
        made = compose("config", overrides=[*prepared, *more])
        with open_dict(made):
            made.pop("hydra", None)
        return made

    try:
        with composing():
            config = typed(with_chosen(composed, prepared))
        require(not config.dry_run and config.size == "full", "dry_run and size are for the command line: leave them out here")
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None


@contextmanager
def composing() -> Iterator[None]:
    """Hydra with the project's configuration; what it was initialised with before, by the caller, it is again afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF)):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _typed(content: Mapping[str, Any]) -> Config:
    """The configuration that config.yaml holds.

    Raises:
        UserError: it is of another version.
    """
    from dataclasses import fields

    values = {**content, "tracker": {"name": "none"}, "resume": None}  # what followed it then may not be installed here
    try:
        for registry in REGISTRIES:
            part = dict(values[registry.group])
            values[registry.group] = registry[part["name"]](**part)
        for name, kind in (("evaluation", Evaluation), ("swa", SWA), ("tune", Tune), ("checkpoint", CheckpointConfig)):
            if name in values:
                values[name] = kind(**values[name])
        if not Path(str(values["data"])).is_dir():  # of another machine
            values["data"] = str(DATA)
        known = {field.name for field in fields(Config)}
        return Config(**{name: value for name, value in values.items() if name in known})
    except (KeyError, TypeError) as error:
        raise UserError(f"config.yaml is of another version of this program ({error})") from error
