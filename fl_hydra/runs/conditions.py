"""What determines the last bits of a run besides its configuration. It is stored in each checkpoint and kept when the run continues."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fl_hydra.config import Config
from fl_hydra.files import CorruptFile
from fl_hydra.training.engine_names import ENGINE_KINDS

if TYPE_CHECKING:
    from fl_hydra.training.trainer import Trainer


@dataclass(frozen=True)
class Conditions:
    """At equal conditions a run has equal bits.

    rows_at_once, samples_at_once: rows of one run that are trained in one block, and samples of a batch whose gradient is taken at
    once. device: the name of a GPU, or `cpu` with its instruction set. torch: version.
    """

    engine: str
    threads: int
    rows_at_once: int
    samples_at_once: int
    device: str
    torch: str

    @classmethod
    def of(cls, stored: Any) -> Conditions:
        """From plain values.

        Raises:
            CorruptFile: they are no conditions.
        """
        try:
            conditions = cls(**{field.name: stored[field.name] for field in fields(cls)})
            counts = (conditions.threads, conditions.rows_at_once, conditions.samples_at_once)
            if conditions.engine in ENGINE_KINDS and all(isinstance(count, int) and count >= 1 for count in counts):
                return conditions
        except (KeyError, TypeError):
            pass
        raise CorruptFile("it does not say under which conditions it was written")

    @classmethod
    def now(cls, trainer: Trainer) -> Conditions:
        """The conditions of a trainer."""
        import torch

        cuda = trainer.device.type == "cuda"
        device = torch.cuda.get_device_name(trainer.device) if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})"
        return cls(
            trainer.engine_name,
            torch.get_num_threads(),
            trainer.group.rows_at_once,
            trainer.group.samples_at_once,
            device,
            version("torch"),
        )

    def changes(self, now: Conditions) -> list[str]:
        """A note for each condition that has changed."""
        before, after = asdict(self), asdict(now)
        names = ["engine", "threads", "device", "torch"]
        names += ["rows_at_once", "samples_at_once"] if before["engine"] == after["engine"] else []
        return [
            f"begun with {name}={before[name]} and goes on with {after[name]}: results stay valid, but are not bitwise the same"
            for name in names
            if before[name] != after[name]
        ]


@dataclass(frozen=True)
class Wish:
    """The requested conditions; None, or `auto`, leaves the choice to the trainer."""

    engine: str
    threads: int | None
    rows_at_once: int | None
    samples_at_once: int | None

    @classmethod
    def of(cls, config: Config, stored: Conditions | None, device: str) -> Wish:
        """The command takes precedence, then what the run was begun with; graphs are not requested from a device without them."""
        if stored is None:
            return cls(config.engine, config.threads, None, None)
        engine = stored.engine if config.engine == "auto" else config.engine
        if engine.startswith("graph") and not device.startswith("cuda"):
            engine = "auto"
        same = engine == stored.engine
        return cls(
            engine,
            config.threads or stored.threads,
            stored.rows_at_once if same else None,
            stored.samples_at_once if same else None,
        )

    @classmethod
    def met_by(cls, conditions: Conditions) -> Wish:
        """The request for what there is already."""
        return cls(conditions.engine, conditions.threads, conditions.rows_at_once, conditions.samples_at_once)


def machine() -> str:
    """A description of this machine, for information."""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"


def environment(conditions: Conditions, together: int) -> dict[str, Any]:
    """The conditions, and other information about where a run was trained and beside how many others."""
    return {
        **asdict(conditions),
        "machine": machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("fl-hydra", "numpy", "hydra-core")},
        **({"together": together} if together > 1 else {}),
    }
