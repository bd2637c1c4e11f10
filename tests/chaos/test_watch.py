"""Strikes fall where they should."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.make import PROJECT

WRITER = """
import os, sys
from pathlib import Path
from tests.chaos.watch import Strike, Watch, install

outputs, call, kind, n, action, lasting = sys.argv[1:]
trace = os.open(outputs + ".trace", os.O_CREAT | os.O_WRONLY)
install(Watch(outputs, "/nowhere", trace, [Strike(call, kind, int(n), action, lasting == "True")], bytearray(1)))
summary, temporary = Path(outputs, "summary.json"), Path(outputs, ".summary.json.7.tmp")
for text in (b"old ten by", b"new ten by"):
    try:
        with open(temporary, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, summary)
        with Path(outputs, "metrics.jsonl").open("a") as file:
            file.write("ten bytes\\n")
        descriptor = os.open(Path(outputs, "timings.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"ten bytes\\n")
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize(
    ("call", "kind", "n", "action", "lasting", "summary", "temporary", "metrics", "timings", "printed"),
    [
        ("write", "summary", 2, "kill", False, "old ten by", "new t", 10, 10, ""),
        ("open", "summary", 2, "kill", False, "old ten by", None, 10, 10, ""),
        ("fsync", "summary", 2, "kill after", False, "old ten by", "new ten by", 10, 10, ""),
        ("replace", "summary", 2, "kill", False, "old ten by", "new ten by", 10, 10, ""),
        ("replace", "summary", 2, "kill after", False, "new ten by", None, 10, 10, ""),
        ("append", "metrics", 2, "kill", False, "new ten by", None, 15, 10, ""),
        ("append", "timings", 2, "kill", False, "new ten by", None, 20, 15, ""),
        ("write", "summary", 2, "ENOSPC", False, "old ten by", "new t", 10, 10, f"{errno.ENOSPC}\n"),
        ("fsync", "summary", 1, "EIO", False, "new ten by", None, 10, 10, f"{errno.EIO}\n"),
        ("fsync", "summary", 1, "EIO", True, None, "new ten by", 0, 0, f"{errno.EIO}\n" * 2),
        ("flock", "file", 1, "ENOLCK", True, "new ten by", None, 20, 20, ""),
    ],
)
def test_a_strike_falls_at_its_call_and_nowhere_else(
    call: str,
    kind: str,
    n: int,
    action: str,
    lasting: bool,
    summary: str | None,
    temporary: str | None,
    metrics: int,
    timings: int,
    printed: str,
    tmp_path: Path,
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    argv = [sys.executable, "-c", WRITER, str(outputs), call, kind, str(n), action, str(lasting)]
    run = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-9 if action.startswith("kill") else 0, printed), run.stderr
    texts = [path.read_text() if path.exists() else None for path in (outputs / "summary.json", outputs / ".summary.json.7.tmp")]
    assert texts[0] == summary
    assert texts[1] == temporary or action == "ENOSPC"  # what a buffer held back may be written when it is closed
    sizes = [path.stat().st_size if path.exists() else 0 for path in (outputs / "metrics.jsonl", outputs / "timings.jsonl")]
    assert sizes == [metrics, timings]
