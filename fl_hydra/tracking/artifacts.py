"""Checkpoints as artifacts of W&B: the file, and the client state that it refers to.

Files are linked, or copied where there are no links, into `outputs/wandb/staging` by the followers' process; the run continues meanwhile,
and may delete them. If an artifact's files are gone by then, the next one is uploaded instead. An artifact is committed by the server as a
whole or not at all, and those before it are deleted only then.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.files import MAGIC, read_file
from fl_hydra.tracking.trackers.base import Followed, Held

if TYPE_CHECKING:
    from fl_hydra.tracking.wandb_run import Connection

TYPE = "checkpoint"
CLIENTS = "clients"


def collection_of(run: str) -> str:
    """The artifact's name; checkpoints are its versions."""
    return f"checkpoint-{run}"


def sound_sha256(path: Path) -> str:
    """The SHA-256 of a file that :func:`fl_hydra.files.write_verified` wrote.

    Raises:
        ValueError: it is not what was written then.
        OSError: it is gone or cannot be read.
    """
    data = read_file(path)
    header, _, payload = data.partition(b"\n")
    if header != MAGIC + hashlib.sha256(payload).hexdigest().encode():
        raise ValueError(f"{path.name} is truncated or corrupted")
    return hashlib.sha256(data).hexdigest()


class Staged:
    """A checkpoint's files, kept until they are uploaded."""

    def __init__(self, held: Held, folder: Path) -> None:
        assert held.checkpoint is not None
        self.folder, self.round = folder, held.round
        self.final = False
        """Whether it is uploaded as the run's last."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / CLIENTS).mkdir(parents=True)
        self.files: dict[str, Path] = {}
        try:
            self._keep(held.checkpoint, held.checkpoint.name)
            for name in held.clients:
                self._keep(held.checkpoint.parent / CLIENTS / name, f"{CLIENTS}/{name}")
            self.sha256 = sound_sha256(self.files[held.checkpoint.name])
        except BaseException:
            self.remove()
            raise

    def _keep(self, path: Path, name: str) -> None:
        target = self.folder / name
        try:
            os.link(path, target)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(path, target)
        self.files[name] = target

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.files.values())

    def remove(self) -> None:
        """Delete the kept files."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Waiting(threading.Thread):
    """Waits until the server has committed an artifact; the client can only be asked once."""

    def __init__(self, artifact: Any) -> None:
        super().__init__(daemon=True)
        self._artifact = artifact
        self.committed, self.why = False, ""
        self.start()

    def run(self) -> None:
        try:
            self._artifact.wait()
            self.committed = True
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"[:200]


class Uploads:
    """Uploads the checkpoints of one run, one at a time.

    Args:
        followed: the run.
        run: at W&B, open.
        connection: to the server.
        seconds: between two uploads; the last one of a run does not wait.
        say_size: is told the bytes before each.
        note: tells the user something in a line.
    """

    def __init__(
        self,
        followed: Followed,
        run: Any,
        connection: Connection,
        seconds: float,
        say_size: Callable[[int], None],
        note: Callable[[str], None],
    ) -> None:
        self._followed, self._run, self._connection = followed, run, connection
        self._seconds, self._say_size, self._note = seconds, say_size, note
        self._since = time.monotonic()
        self._newest: Held | None = None
        self._going: tuple[Staged, Any, _Waiting] | None = None
        self._uploaded: int | None = None
        self._final_there = False
        self.count = 0
        """How many were uploaded."""
        self.final = False
        """Whether the newest checkpoint is the run's last."""
        self.at_once = False
        """Whether the newest is uploaded without waiting for its time."""

    def offer(self, held: Held) -> None:
        """There is a newer checkpoint."""
        self._newest = held
        self.poll()

    def poll(self) -> bool:
        """Begin the next upload if it is time, or end one; whether anything is left to do."""
        if self._going is not None:
            staged, artifact, waiting = self._going
            if waiting.is_alive():
                return True
            self._going = None
            if not waiting.committed:
                staged.remove()
                self._note(f"{self._followed.folder}: a checkpoint was not uploaded ({waiting.why}); the next one is tried")
                return False
            self._uploaded, self._final_there = staged.round, staged.final  # the run may have ended since it was begun
            self.count += 1
            staged.remove()
            self._delete_superseded(artifact)
        due = self.at_once or time.monotonic() - self._since >= self._seconds
        wanted = self._newest is not None and (self._newest.round != self._uploaded or (self.final and not self._final_there))
        if wanted and due:
            self._begin()
        return self._going is not None

    def _begin(self) -> None:
        import wandb

        held, self._newest = self._newest, None
        assert held is not None
        folder = self._connection.folder / "staging" / f"{self._followed.run}-{os.getpid()}"
        try:
            staged = Staged(held, folder)
        except (OSError, ValueError):
            return  # deleted meanwhile: the next one is uploaded
        self._since = time.monotonic()
        self._newest = held
        staged.final = self.final
        self._say_size(staged.size)
        artifact = wandb.Artifact(
            collection_of(self._followed.run),
            TYPE,
            metadata={
                "run": self._followed.run,
                "round": staged.round,
                "rows": len(held.lines),
                "sha256": staged.sha256,
                "fingerprint": self._followed.config.get("fingerprint"),
                "final": self.final,
            },
        )
        for name, path in staged.files.items():
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        aliases = ["latest", f"round-{staged.round}", *(["final"] if self.final else [])]
        self._going = staged, artifact, _Waiting(self._run.log_artifact(artifact, aliases=aliases))

    def _delete_superseded(self, newest: Any) -> None:
        """Delete the versions before one that the server has committed; one that cannot be deleted stays."""
        with suppress(Exception):
            for version in versions(self._connection, self._followed.run):
                if version.state == "COMMITTED" and int(version.version[1:]) < int(newest.version[1:]):
                    version.delete(delete_aliases=True)

    def close(self) -> None:
        """What has not been uploaded is not waited for."""
        if self._going is not None:
            self._note(f"{self._followed.folder}: its last checkpoint is not at W&B yet; make sync uploads it")
            self._going = None


def versions(connection: Connection, run: str) -> list[Any]:
    """The versions of a run's artifact that W&B has committed, newest first; none if there is no such artifact."""
    api = connection.api()
    name = f"{connection.entity}/{connection.project}/{collection_of(run)}"
    if not api.artifact_collection_exists(name, TYPE):
        return []
    there = [version for version in api.artifacts(TYPE, name) if version.state == "COMMITTED"]
    return sorted(there, key=lambda version: int(version.version[1:]), reverse=True)
