"""Runs of W&B, through its own client. Only the followers' process, `sync` and `resume` import this.

A row of metrics.jsonl is sent with its number as step. What W&B has is asked of W&B when a run is opened, and compared by digest with
what the run has: rows that are there are not sent again, and a run that has other rows, because it was trained from zero again, is another
attempt, with an id of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import netrc
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from fl_hydra.tracking.artifacts import Uploads
from fl_hydra.tracking.trackers.base import Followed, Held

if TYPE_CHECKING:
    from fl_hydra.tracking.trackers.wandb import Wandb

CONNECT_SECONDS = 15.0
"""How long W&B may take to answer when a run is opened."""
FINISH_SECONDS = 7.0
"""How long it may take at a run's end, unless told otherwise."""
ANOTHER_SECONDS = 20.0
"""How long a process is waited for that still sends what a killed one has left."""
ROWS, DIGEST = "tracked/rows", "tracked/rows_sha256"
"""Of a run's summary at W&B: how many rows it was sent, and the digest of their lines."""
AXES = ("round", "samples", "epoch", "bytes", "seconds", "flops")
AGAIN = "make sync uploads what is missing"


class Unreachable(Exception):
    """W&B cannot be used; the text says why."""


def use_folder(outputs: Path) -> Path:
    """Have the client write below `outputs/wandb` alone: it would use the home folder and the present one. Call it before its import."""
    folder = outputs / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DIR"] = str(folder)
    os.environ.setdefault("WANDB_SILENT", "true")
    for name, part in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_ARTIFACT_DIR", "artifacts")):
        os.environ[name] = str(folder / part)
    return folder


def has_key() -> bool:
    """Whether there is a key for the server, so that the client need not ask for one at the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlparse(wandb.setup().settings.base_url).hostname or ""
    known = (host, "api.wandb.ai") if host.endswith(("wandb.ai", "coreweave.com")) else (host,)
    with suppress(OSError, netrc.NetrcParseError):
        entries = netrc.netrc(os.environ.get("NETRC") or None)
        return any(name in entries.hosts for name in known)
    return False


def run_id(run: str, attempt: int) -> str:
    """The id of a run's n-th attempt, from 1, at W&B."""
    return run if attempt == 1 else f"{run}-{attempt}"


def digest_of(lines: Sequence[str]) -> str:
    """Of rows as they are in metrics.jsonl."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def history_row(line: str) -> dict[str, Any]:
    """A row as it is sent: what is not there (null) is left out, and so are lists by client; bytes are those of both ways together."""
    row = {name: value for name, value in json.loads(line).items() if value is not None and not isinstance(value, list)}
    if "bytes_up" in row and "bytes_down" in row:
        row["bytes"] = row["bytes_up"] + row["bytes_down"]
    return row


class Connection:
    """A server and a project at it. `offline` says why nothing is sent, if it is not; once offline it stays so.

    Args:
        tracker: what was asked for.
        outputs: of the runs.
        note: tells the user something in a line.

    """

    def __init__(self, tracker: Wandb, outputs: Path, note: Callable[[str], None]) -> None:
        self.project, self._given_entity = tracker.project, tracker.entity
        self.folder = use_folder(outputs)
        self.note = note
        self.offline = "tracker.mode=offline" if tracker.mode == "offline" else ""
        self.open: set[str] = set()
        """Ids of the runs that are open now."""
        self.said_size = False
        self._api: Any = None
        if not self.offline:
            self._connect()

    def _connect(self) -> None:
        if not has_key():
            self.go_offline("there is no API key; give one in WANDB_API_KEY, or once by wandb login")
            return
        try:
            self.api()
        except Unreachable as error:
            self.go_offline(str(error))

    def api(self) -> Any:
        """The client's public interface.

        Raises:
            Unreachable: there is no answer, or a refusal.
        """
        if self._api is None:
            import wandb

            try:
                api = wandb.Api(timeout=int(CONNECT_SECONDS))
                self.entity = str(self._given_entity or api.default_entity)
                self._api = api
            except Exception as error:
                raise Unreachable(f"W&B cannot be reached ({brief(error)})") from error
        return self._api

    def go_offline(self, why: str) -> None:
        """Send nothing from here on."""
        if not self.offline:
            self.offline = why
            self.note(f"{why}: runs are tracked offline; {AGAIN}")

    def settings(self, **more: Any) -> Any:
        """Of the client: quiet, of bounded patience, and without what it would find out about the machine and the program."""
        import wandb

        given = {
            "console": "off",
            "silent": True,
            "symlink": False,
            "disable_git": True,
            "save_code": False,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_save_requirements": False,
            "init_timeout": CONNECT_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
        }
        return wandb.Settings(**{**given, **more})

    def find(self, id: str) -> Any:
        """A run at W&B; None if there is none.

        Raises:
            Unreachable: there is no answer.
        """
        try:
            return self.api().run(f"{self.entity}/{self.project}/{id}")
        except Unreachable:
            raise
        except Exception as error:
            if "could not find" in str(error).lower():
                return None
            raise Unreachable(f"W&B cannot be reached ({brief(error)})") from error

    def attempt(self, run: str, lines: Sequence[str]) -> tuple[int, Any]:
        """Which attempt of a run has these rows, or is to have them; and its run at W&B, if there is one.

        The last one, unless it has other rows, or has some while the run has none: then it is a new one.

        Raises:
            Unreachable: there is no answer.
        """
        number, last = 1, self.find(run_id(run, 1))
        while last is not None and (following := self.find(run_id(run, number + 1))) is not None:
            number, last = number + 1, following
        if last is None:
            return 1, None
        there = rows_there(last)
        other = not lines if there else False
        if (claimed := claim(dict(last.summary))) and claimed[0] <= len(lines):
            other = other or claimed[1] != digest_of(lines[: claimed[0]])
        return (number + 1, None) if other else (number, last)


def rows_there(run: Any) -> int:
    """How many rows W&B has of a run."""
    return int(run._attrs.get("historyLineCount") or 0)


def claim(summary: dict[str, Any]) -> tuple[int, str] | None:
    """How many rows a run's summary says that there are, and with what digest."""
    count, digest = summary.get(ROWS), summary.get(DIGEST)
    if count is None and isinstance(nested := summary.get("tracked"), dict):
        count, digest = nested.get("rows"), nested.get("rows_sha256")
    return (int(count), str(digest)) if count and digest else None


_connections: dict[tuple[str, ...], Connection] = {}


def connection(tracker: Wandb, outputs: Path, note: Callable[[str], None]) -> Connection:
    """The one that all runs of this process share."""
    key = (tracker.project, str(tracker.entity), tracker.mode, str(outputs))
    if key not in _connections:
        _connections[key] = Connection(tracker, outputs, note)
    return _connections[key]


class WandbRun:
    """Follows one run.

    Args:
        tracker: what was asked for.
        followed: the run.
        connection: to the server.
        note: tells the user something in a line.
        finish_seconds: how long W&B may take at the end.
    """

    def __init__(
        self,
        tracker: Wandb,
        followed: Followed,
        connection: Connection,
        note: Callable[[str], None],
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._tracker, self._followed, self._connection, self._note = tracker, followed, connection, note
        self._finish_seconds = finish_seconds
        self._run: Any = None
        self._lines: list[str] = []
        self._claim: tuple[int, str] | None = None
        """What was there when the run was opened, until it was compared."""
        self._exit_code = 1
        self._lock: int | None = None
        self.sent = 0
        self.uploads: Uploads | None = None

    def held(self, held: Held) -> None:
        """Send the rows that W&B does not have, and a checkpoint when it is time for one."""
        self._lines = held.lines
        if self._run is None:
            self._open()
        if self._run is None:
            return
        if self._claim is not None and self._claim[0] <= len(self._lines):
            count, digest = self._claim
            self._claim = None
            if digest_of(self._lines[:count]) != digest:
                self._note(f"{self._followed.folder}: W&B has other rows of this run, made elsewhere; it continues as a new attempt")
                self._finish(1)
                self._open()
        self._send()
        if self.uploads is not None and held.checkpoint is not None:
            self.uploads.offer(held)

    def _open(self) -> None:
        connection = self._connection
        self._take_lock()
        if not connection.offline:
            try:
                number, there = connection.attempt(self._followed.run, self._lines)
                self._claim = None if there is None else claim(dict(there.summary))
                self._begin(run_id(self._followed.run, number), online=True)
                if self._tracker.artifact_minutes is not None:
                    self.uploads = Uploads(
                        self._followed, self._run, connection, self._tracker.artifact_minutes * 60, self._note_size, self._note
                    )
                return
            except Exception as error:
                connection.go_offline(str(error) if isinstance(error, Unreachable) else f"W&B cannot be used ({brief(error)})")
                if not connection.open:
                    self._tear_down()
        self._begin(self._followed.run, online=False)

    def _begin(self, id: str, online: bool) -> None:
        import wandb

        followed = self._followed
        self._run = wandb.init(
            project=self._tracker.project,
            entity=self._tracker.entity,
            id=id,
            name=followed.name,
            group=followed.group,
            job_type="trial" if followed.trial else "train",
            tags=list(dict.fromkeys([followed.config["dataset"]["name"], followed.config["algorithm"]["name"], *self._tracker.tags])),
            config={**followed.config, "run": followed.run},
            dir=str(self._connection.folder),
            mode="online" if online else "offline",
            resume="allow" if online else None,
            reinit="create_new",
            settings=self._connection.settings(finish_timeout=self._finish_seconds),
        )
        self._connection.open.add(id)
        self.sent = self._run.step if online else 0
        for axis in AXES:
            self._run.define_metric(axis, hidden=axis not in ("round", "samples"))
        self._run.define_metric("*", step_metric="round")

    def _take_lock(self) -> None:
        """Wait for a process that still sends what one that was killed has left."""
        folder = self._connection.folder / "locks"
        folder.mkdir(exist_ok=True)
        with suppress(OSError):
            self._lock = self._lock or os.open(folder / self._followed.run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            until = time.monotonic() + ANOTHER_SECONDS
            while time.monotonic() < until:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(0.1)

    def _send(self) -> None:
        if self.sent >= len(self._lines):
            return
        for step in range(self.sent, len(self._lines)):
            self._run.log(history_row(self._lines[step]), step=step)
        self.sent = len(self._lines)
        self._run.summary.update({ROWS: self.sent, DIGEST: digest_of(self._lines)})

    def _note_size(self, size: int) -> None:
        if not self._connection.said_size:
            self._connection.said_size = True
            minutes = self._tracker.artifact_minutes
            self._note(
                f"checkpoints go to W&B as artifacts of {size / 1e6:.3g} MB, every {minutes:g} minutes and at the end of a run; "
                "tracker.artifact_minutes=null keeps them here"
            )

    def ended(self, status: str) -> None:
        """Say how the run has ended, and see that its last checkpoint is uploaded."""
        self._exit_code = 0 if status in ("finished", "diverged", "paused") else 1
        if self._run is not None:
            self._run.summary["status"] = status
        if self.uploads is not None:
            self.uploads.final = status in ("finished", "diverged")
            self.uploads.at_once = True

    def poll(self) -> bool:
        """Whether a checkpoint is still being uploaded, or is to be."""
        return self.uploads is not None and self.uploads.poll()

    def close(self) -> None:
        """Close the run at W&B."""
        if self._run is not None:
            self._finish(self._exit_code)
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if self.uploads is not None:
            self.uploads.close()
            self.uploads = None
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._connection.go_offline(f"W&B has not taken everything within {self._finish_seconds:.0f} s")
        finally:
            self._connection.open.discard(run.id)

    def _tear_down(self) -> None:
        import wandb

        with suppress(Exception):
            wandb.teardown()


def brief(error: BaseException) -> str:
    """What was wrong, short enough for a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
