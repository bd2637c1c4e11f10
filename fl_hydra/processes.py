"""Which process this is, and whether another one, known by what it wrote about itself, is still there."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, named so that no other one is ever taken for it.

    host: the machine's name. boot: of the machine, another one after each start. namespace: in which `pid` counts; containers have their
    own. started: when, in the kernel's ticks since the boot, so that a number that is given again is told apart.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @property
    def here(self) -> bool:
        """Whether this process could see it: on this machine, since it was started, in this container."""
        return bool(self.boot) and (self.boot, self.namespace) == (_boot(), _namespace())

    @property
    def alive(self) -> bool | None:
        """Whether it runs; None if that cannot be told from here."""
        return (_started(self.pid) == self.started if _runs(self.pid) else False) if self.here else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    """The calling process."""
    return Process(os.uname().nodename, _boot(), _namespace(), os.getpid(), _started(os.getpid()))


def machine() -> str:
    """Eight hex digits that processes share if, and only if, they can see each other's numbers."""
    return hashlib.sha256(f"{_boot()} {_namespace()}".encode()).hexdigest()[:8]


def is_gone(machine_name: str, pid: int) -> bool:
    """Whether process `pid` of :func:`machine` is certainly there no more."""
    return machine_name == machine() and not _runs(pid)


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:  # macOS
        return subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@lru_cache(maxsize=1)
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none where there is no such file."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    return status[19] if len(status := _status(pid)) > 19 else ""


def _runs(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return _status(pid)[:1] not in (["Z"], ["X"])  # ended, and not yet asked for by its parent
