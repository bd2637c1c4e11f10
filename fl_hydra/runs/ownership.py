"""One writer for each folder, on whatever file system it lies.

Whoever writes a folder holds its `.lock` with flock, where the file system has that, and has written its name into `.owner`. The name
is what counts: flock is missing on some network drives, and on others two machines hold the same lock. `.owner` is one line that
says which process on which machine and a random token, and a number under it that the owner raises every few seconds.

- An owner on this machine, in this container, is there if its process is.
- Of another one that can only be told by watching: it is gone when nothing in `.owner` has changed for a minute of the observer's own
  clock. Clocks of machines are never compared.
- The owner looks before each write whether `.owner` still has its token, and stops if not. Whoever removes the file or the folder stops it.

Taking over is atomic. `.owner-after-TOKEN` is made, which only one can do, and names the successor of TOKEN; then `.owner` is replaced. A
successor that dies between the two has successors itself: who owns a folder is found by following the names.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from fl_hydra.errors import UserError
from fl_hydra.files import again, open_file, read_file, temporary_name, write_atomically
from fl_hydra.processes import Process, this_process

HEARTBEAT = 10.0
"""Seconds after which an owner shows again that it is there."""
STALE = 60.0
"""Seconds without a sign of it, by the observer's clock, after which an owner that cannot be seen from here is gone."""

LOCK, OWNER, AFTER = ".lock", ".owner", ".owner-after-"

WITHOUT_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
WITHOUT_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)


class RunBusy(UserError):
    """Another process is writing this run."""


class OwnershipLost(Exception):
    """The folder is no longer this process's to write: its lock was removed, or another process has it."""


@dataclass(frozen=True)
class _Owner:
    """What `.owner`, or the name of a successor, says. process: None where it cannot be understood. beat: what changes while it lives."""

    path: Path
    token: str
    process: Process | None
    beat: bytes

    @classmethod
    def read(cls, path: Path) -> _Owner | None:
        """None if there is no such file."""
        try:
            content = read_file(path)
        except FileNotFoundError:
            return None
        line, _, beat = content.partition(b"\n")
        try:
            said = json.loads(line)
            token, process = str(said.pop("token")), Process(**said)
            return cls(path, token, process, beat)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(path, hashlib.sha256(line).hexdigest()[:16], None, beat)

    @property
    def who(self) -> str:
        return str(self.process or "another process")

    @property
    def gone(self) -> bool | None:
        """Whether it is there no more; None if only watching can tell."""
        if self.process is None:
            return None
        if self.process == this_process():
            return self.token not in _held
        return None if (alive := self.process.alive) is None else not alive


_held: set[str] = set()
"""Tokens of the folders that this process owns."""

_unchanged_since: dict[tuple[Path, str], tuple[bytes, float]] = {}
"""By folder and token, what an owner's file was last seen with, and when this process first saw it so."""


class Ownership:
    """The right to write a folder, while :meth:`check` does not object. Shows in the background that its owner is there."""

    def __init__(self, folder: Path, record: bytes, token: str) -> None:
        self.folder = folder
        self.lost = ""
        """Why the folder is no longer owned, if that was noticed."""
        self._path, self._record, self._token = folder / OWNER, record, token
        self._beats = 0
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._show, name=f"owner of {folder.name}", daemon=True)
        _held.add(token)
        self._heart.start()

    def check(self) -> None:
        """To be called before each write.

        Raises:
            OwnershipLost: somebody else may be writing.
            OSError: it cannot be told.
        """
        if not self.lost:
            try:
                present = read_file(self._path)
            except (FileNotFoundError, NotADirectoryError):
                self._note(None)
            else:
                self._note(present)
        if self.lost:
            raise OwnershipLost(self.lost)

    def release(self) -> None:
        """Leave the folder to others."""
        self._released.set()
        self._heart.join()
        _held.discard(self._token)
        with suppress(OSError):
            if read_file(self._path).startswith(self._record):
                self._path.unlink()

    def _note(self, content: bytes | None) -> None:
        if content is None:
            self.lost = (
                f"{self._path} was removed while the run was being written, alone or with its folder: nothing more is written, as another "
                "process may have begun to; give the same command again"
            )
        elif not content.startswith(self._record):
            other = _Owner.read(self._path)
            self.lost = f"{self.folder} was taken over by {other.who if other else 'another process'}: this one writes nothing more"

    def _show(self) -> None:
        while not self._released.wait(HEARTBEAT) and not self.lost:
            try:
                # In the file that was verified, under whatever name it may be by now: nobody else's is ever changed.
                with open_file(self._path, "r+b") as file:
                    content = file.read()
                    if not content.startswith(self._record):
                        self._note(content)
                        return
                    self._beats += 1
                    file.seek(len(self._record))
                    file.write(_beat(self._beats))
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError:
                self._note(None)
            except OSError:
                pass  # tried again at the next beat


def _beat(number: int) -> bytes:
    return f"{number:012d}\n".encode()


@contextmanager
def owned(folder: Path, notify: Callable[[str], None]) -> Iterator[Ownership]:
    """Own a folder, which exists.

    Args:
        folder: that will be written.
        notify: is told in one line whom this process waits for.

    Raises:
        RunBusy: another process writes it; the text says which, and how to stop it.
        OSError: nothing can be written there.
    """
    with locked(folder / LOCK, seconds=0, notify=notify) as taken:
        if not taken:
            raise _busy(folder, _holder(folder))
        token = secrets.token_hex(8)
        record = json.dumps({**asdict(this_process()), "token": token}).encode() + b"\n"
        _take(folder, record + _beat(0), token, notify)
        ownership = Ownership(folder, record, token)
        try:
            yield ownership
        finally:
            ownership.release()


def observe(folder: Path) -> None:
    """Start to watch the owner of a folder that is needed later, so that waiting times for several folders overlap."""
    with suppress(OSError):
        if (holder := _holder(folder)) is not None:
            _silent_for(holder)


def writer(folder: Path) -> tuple[Process | None, bool | None]:
    """The owner of a folder, if it can be read, and whether it is gone; None if only watching can tell.

    A folder without an owner is one whose owner is gone.
    """
    try:
        holder = _holder(folder)
    except OSError:
        return None, None
    return (None, True) if holder is None else (holder.process, holder.gone)


def _busy(folder: Path, holder: _Owner | None) -> RunBusy:
    process = holder.process if holder is not None else None
    stop = "stop it" if process is None else f"stop it (kill {process.pid}{'' if process.here else f' on {process.host}'})"
    who = process or "another process"
    return RunBusy(f"{folder} is being written by {who}; wait for it, or {stop} and run the same command again")


def _take(folder: Path, content: bytes, token: str, notify: Callable[[str], None]) -> None:
    """Write `.owner`, alone of all who try.

    Raises:
        RunBusy: it belongs to a process that is there.
    """
    while True:
        holder = _holder(folder)
        if holder is None:
            if _create(folder / OWNER, content):
                break
            continue
        if not _is_gone(folder, holder, notify):
            raise _busy(folder, holder)
        claim = folder / f"{AFTER}{holder.token}"
        if not _create(claim, content):
            continue
        successor = _holder(folder)
        if successor is not None and successor.token == token:
            write_atomically(folder / OWNER, content)
            break
        claim.unlink(missing_ok=True)  # what was seen was over by then: others have succeeded in the meantime
    for claim in folder.glob(f"{AFTER}*"):
        if claim.name != f"{AFTER}{token}":
            with suppress(OSError):
                claim.unlink()


def _holder(folder: Path) -> _Owner | None:
    """Who owns a folder: the one in `.owner`, or the last in the line of its successors."""
    holder = _Owner.read(folder / OWNER)
    seen = set[str]()
    while holder is not None and holder.token not in seen:
        seen.add(holder.token)
        successor = _Owner.read(folder / f"{AFTER}{holder.token}")
        if successor is None:
            break
        holder = successor
    return holder


def _is_gone(folder: Path, holder: _Owner, notify: Callable[[str], None]) -> bool:
    """Whether an owner is there no more, or another one in its place; watches it for a minute if need be."""
    if (gone := holder.gone) is not None:
        return gone
    told = False
    while (silent := _silent_for(holder)) < STALE:
        if not told:
            notify(
                f"{folder} may still be written by {holder.who}, which cannot be seen from here; waiting for {STALE:.0f} s whether it is"
            )
            told = True
        time.sleep(min(1.0, STALE / 10, STALE - silent))
        present = _holder(folder)
        if present is None or present.token != holder.token:
            return True  # to be looked at anew
        if present.beat != holder.beat:
            return False
    return True


def _silent_for(holder: _Owner) -> float:
    """Seconds without a sign of life of an owner, as far as this process has seen."""
    now, key = time.monotonic(), (holder.path.parent, holder.token)
    beat, since = _unchanged_since.get(key, (b"", now))
    if beat != holder.beat:
        since = now
    _unchanged_since[key] = (holder.beat, since)
    return now - since


def _create(path: Path, content: bytes) -> bool:
    """Make a file that no one else has made; whether it is this one."""
    whole = temporary_name(path)
    try:
        write_atomically(whole, content)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        again(partial(os.link, whole, path))
        return True
    except FileExistsError:
        return read_file(path) == content  # the answer to a first try may have been lost on the way
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
    finally:
        whole.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return True


@contextmanager
def locked(path: Path, seconds: float, notify: Callable[[str], None]) -> Iterator[bool]:
    """Hold a file with flock, which the system releases when the process ends, however it ends.

    Args:
        path: of the file; made if need be, never removed.
        seconds: to wait for another process that holds it.
        notify: is told in one line whom this process waits for.

    Yields:
        Whether nobody else is known to hold it; True, too, on a file system that has no such locks.

    Raises:
        OSError: the file cannot be made.
    """
    until, told = time.monotonic() + seconds, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            held = again(partial(_flock, descriptor))
            if held and not _is_named(descriptor, path):
                continue  # removed after it was opened
            if held or time.monotonic() >= until:
                yield held
                return
        finally:
            os.close(descriptor)
        if not told:
            notify(f"waiting for another process that holds {path}")
            told = True
        time.sleep(0.1)


def _flock(descriptor: int) -> bool:
    """Whether nobody else holds an open file now, which is then held until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_FLOCK:
            raise
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
