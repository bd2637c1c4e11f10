"""`resume=wandb`: before a run is trained, a newer checkpoint than its folder has is brought there from W&B.

Everything is verified before anything is put into the folder: whose checkpoint it is, its digest, and those of the client state that it
refers to. Client state comes first, the checkpoint last, as when they are written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.files import CorruptFile, make_folder, read_verified, write_atomically
from fl_hydra.runs.checkpoint import Checkpoint, Checkpoints
from fl_hydra.runs.ended import refuse_foreign
from fl_hydra.runs.failure import ForeignRun
from fl_hydra.runs.folder import METRICS, TIMINGS
from fl_hydra.runs.identity import run_hash
from fl_hydra.tracking.artifacts import CLIENTS, collection_of, sound_sha256, versions
from fl_hydra.training.client_files import read_states

if TYPE_CHECKING:
    from fl_hydra.config import Config
    from fl_hydra.training.experiment import Experiment


class ResumeRefused(ForeignRun):
    """What should be gone on from cannot be had; the text says why, and what to do."""


def bring(config: Config, experiment: Experiment, folder: Path, checkpoints: Checkpoints, warn: Callable[[str], None]) -> None:
    """Download the newest intact checkpoint of a run from W&B, if it is newer than those that are here.

    Raises:
        ResumeRefused: W&B cannot be reached and there is no checkpoint here to continue from.
        ForeignRun: what is at W&B is a checkpoint of another configuration.
        OSError: it cannot be written.
    """
    from fl_hydra.tracking.trackers.wandb import Wandb
    from fl_hydra.tracking.wandb_run import Unreachable, connection

    assert isinstance(config.tracker, Wandb)
    run = run_hash(experiment)
    there = connection(config.tracker, Path(config.outputs).absolute(), warn)
    own = checkpoints.newest()
    try:
        if there.offline:
            raise Unreachable(there.offline)
        found = versions(there, run)
    except Exception as error:
        if own is None:
            raise ResumeRefused(
                f"resume=wandb: {' '.join(str(error).split())[:200]}, and {folder} has no checkpoint; fix that, or leave resume out"
            ) from error
        warn(f"resume=wandb: {' '.join(str(error).split())[:200]}; the run continues from the local checkpoint")
        return
    newer = [version for version in found if own is None or int(version.metadata.get("round", -1)) > own.round]
    if not newer:
        if own is None:
            warn(f"resume=wandb: W&B has no checkpoint of {folder.name} in {there.entity}/{there.project}; it begins")
        return
    for version in newer:
        incoming = there.folder / "incoming" / f"{run}-{os.getpid()}"
        try:
            shutil.rmtree(incoming, ignore_errors=True)
            checkpoint = _verified(version, incoming, experiment, folder)
            _place(incoming, checkpoint, checkpoints)
            warn(f"{folder.name}: continues from round {checkpoint.round}, with the checkpoint downloaded from W&B ({version.name})")
            return
        except CorruptFile as error:
            warn(f"{collection_of(run)}:{version.version} at W&B cannot be used ({error}); the one before it is tried")
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    if own is None:
        raise ResumeRefused(
            f"resume=wandb: no checkpoint of {collection_of(run)} at W&B is sound; leave resume out to start from the beginning"
        )


def _verified(version: Any, incoming: Path, experiment: Experiment, folder: Path) -> Checkpoint:
    """Download a version, and look at all of it.

    Raises:
        CorruptFile: it is not what was uploaded, or something is missing.
        ForeignRun: it is of another configuration.
    """
    try:
        version.download(root=str(incoming), skip_cache=True)
    except Exception as error:
        raise CorruptFile(f"it cannot be downloaded: {' '.join(str(error).split())[:200]}") from error
    files = list(incoming.glob("round-*.pt"))
    if len(files) != 1:
        raise CorruptFile(f"it has {len(files)} checkpoints")
    try:
        sha256 = sound_sha256(files[0])
    except ValueError as error:
        raise CorruptFile(str(error)) from error
    if sha256 != version.metadata.get("sha256"):
        raise CorruptFile("it is not the file that was uploaded")
    checkpoint = Checkpoint.of(read_verified(files[0]))
    try:
        refuse_foreign(experiment, folder, checkpoint.run, checkpoint.config)
    except ForeignRun as error:
        what = str(error).partition(" holds another run, ")[2].partition("; ")[0]
        raise ForeignRun(
            f"resume=wandb: {version.name} is a checkpoint of another configuration, {what}; leave resume out, or delete it at W&B"
        ) from error
    for _ in read_states(incoming / CLIENTS, checkpoint.trainer["clients"]):
        pass
    return checkpoint


def _place(incoming: Path, checkpoint: Checkpoint, checkpoints: Checkpoints) -> None:
    clients = checkpoints.folder / CLIENTS
    make_folder(clients)
    for path in sorted((incoming / CLIENTS).iterdir()):
        os.replace(path, clients / path.name)
    for name, content in ((METRICS, checkpoint.metrics), (TIMINGS, checkpoint.timings)):  # as if they had been written here
        write_atomically(checkpoints.folder.parent / name, content.encode())
    os.replace(next(incoming.glob("round-*.pt")), checkpoints.path(checkpoint.round))
