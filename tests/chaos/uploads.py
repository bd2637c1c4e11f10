"""`python -m tests.chaos.uploads`: runs killed while they upload checkpoints must end, on another machine, as if nothing had happened.

Each of them is killed at a seeded random moment within the upload of an artifact: all its processes at once, as a machine that is taken
away, or only the one that trains, or only those that upload. Then the same command is given with `resume=wandb`, in an empty folder or in
the same one. What is compared are the weights and the metrics, and the history that the server has received, row by row.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support.tracked import RUN, TRACKED, assert_sent, digests, finish, rows_of, start
from tests.support.wandb_server import serving

VICTIMS = ("all", "trainer", "uploader")


def below(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [[int(word) for word in line.split()] for line in listing.splitlines()]
    found = [process]
    for each in found:
        found += [child for child, parent in pairs if parent == each]
    return found[1:]


def kill(process: subprocess.Popen[str], victims: str) -> None:
    """Kill a run's processes, or some of them, and wait until the one that trains has ended."""
    children = below(process.pid)
    for each in ([process.pid] if victims != "uploader" else []) + (children if victims != "trainer" else []):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate(timeout=100)


def differs(seed: int, folder: Path, undisturbed: Path) -> str:
    """Kill one run and continue it; what differs from an undisturbed one, or nothing."""
    moments = random.Random(seed)
    victims, other_machine = VICTIMS[seed % len(VICTIMS)], moments.random() < 0.5
    first, second = folder / "first", folder / ("second" if other_machine else "first")
    with serving() as server:
        server.upload_seconds = 0.2
        process = start(server, first, *RUN, *TRACKED, "outputs=outputs", slowly=True)
        uploads, until = moments.randint(1, 12), time.monotonic() + 60
        while len(server.uploads) < uploads and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        ended = " (it had ended)" if process.poll() is not None else ""
        kill(process, victims)
        server.upload_seconds = 0.0
        what = f"{victims} killed after {uploads} uploads, continued {'elsewhere' if other_machine else 'there'}{ended}"
        output = finish(start(server, second, *RUN, *TRACKED, "outputs=outputs", "resume=wandb"))
        if victims == "uploader":  # that run itself went on
            finish(start(server, second, "-m-tracking", "sync", "--outputs", "outputs"))
        try:
            if digests(second) != digests(undisturbed):
                return f"{what}: other weights or metrics\n{output}"
            (run,) = server.runs
            assert_sent(server, run, rows_of(undisturbed))
        except (AssertionError, ValueError) as error:
            return f"{what}: {error}\n{output}"
    print(f"{what}: equal", flush=True)
    return ""


def main() -> None:
    """Kill some runs, and leave with 1 if one ends otherwise."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=24, help="how many, each killed once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        undisturbed = Path(folder, "undisturbed")
        finish(start(server, undisturbed, *RUN, "outputs=outputs"))
        found = [differs(seed, Path(folder, str(seed)), undisturbed) for seed in range(arguments.runs)]
    differing = list(filter(None, found))
    print(*differing, f"{arguments.runs} runs killed while they uploaded: {len(differing)} end otherwise", sep="\n")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
