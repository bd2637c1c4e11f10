"""What several processes do to the same runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tests.chaos.judge import Verdict
from tests.chaos.process import Ended, Process, command
from tests.chaos.stage import Stage, remove
from tests.chaos.strikes import pick
from tests.chaos.watch import Strike, kind

MEANWHILE = ("nothing else", "the lock is removed", "the run's folder is removed", "the outputs are removed", "the checkpoints are removed")


def _meanwhile(stage: Stage, what: str) -> None:
    for name in stage.reference.runs:
        match what:
            case "the lock is removed":
                for path in (stage.outputs / name).glob("*"):
                    if path.is_file() and kind(f"{name}/{path.name}") == "lock":
                        path.unlink(missing_ok=True)
            case "the run's folder is removed":
                remove(stage.outputs / name)
            case "the checkpoints are removed":
                remove(stage.outputs / name / "checkpoints")
    if what == "the outputs are removed":
        remove(stage.outputs)


def _written_by_two(stage: Stage, ended: Sequence[Ended]) -> None:
    """A process that goes on writing a run after another has begun to. One write may be under way when it loses the run."""
    kept = {"checkpoint", "client state", "metrics", "timings", "summary"}
    calls = sorted(
        (call.seconds, call.process, call.path)
        for each in ended
        for call in each.trace
        if call.done and call.call in ("replace", "append") and call.kind in kept
    )
    for name in stage.reference.runs:
        writes = [process for _, process, path in calls if path.startswith(name + "/")]
        for process in dict.fromkeys(writes):
            others = [position for position, writer in enumerate(writes) if writer != process]
            own = [position for position, writer in enumerate(writes) if writer == process]
            late = [position for position in own if others and own[0] < others[0] < position]
            if len(late) > 1:
                stage.wrong.append((Verdict.DIFFERS, f"{name}: two processes wrote it"))
                return


def second_process(stage: Stage) -> None:
    """The first is held at some call; what protects the run goes, or stays; a second one is given the same command; the first goes on."""
    what = MEANWHILE[stage.event.turn % len(MEANWHILE)]
    call, file, n = pick(stage, ("open", "append", "fsync", "replace"), stage.settings)
    strike = Strike(call, file, n, "pause")
    stage.what += [f"{strike}; meanwhile {what}, and a second process starts"]
    words = stage.setting.command(stage.outputs)
    first = Process.start(words, stage.outputs, [strike])
    os.set_blocking(first.asks, False)
    asked: list[bytes] = []

    def paused() -> bool:
        try:
            asked.append(os.read(first.asks, 1))
        except BlockingIOError:
            return False
        return True

    stage.struck = first.wait(paused)
    had: set[str] = set()
    if stage.struck:
        _meanwhile(stage, what)
        had = stage.begun()
        second = command(words, stage.outputs)
        os.write(first.tells, b"g")
    both = [first.end(), *([second] if stage.struck else [])]
    stage.look(both[0], set(), harmed=True)
    for each in both[1:]:
        stage.look(each, had, harmed=True)
    _written_by_two(stage, both)


def many_processes(stage: Stage) -> None:
    """Two to eight start at once, and more when something is removed under them."""
    number = stage.rng.randint(2, 4) if stage.event.few else stage.rng.randint(2, 8)
    what = MEANWHILE[stage.event.turn % 4]
    words = stage.setting.command(stage.outputs)
    stage.what += [f"{number} processes at once; {what}"]
    processes = [Process.start(words, stage.outputs) for _ in range((number + 1) // 2)]
    after = stage.rng.randint(1, 60)
    processes[0].wait(lambda: sum(call.done for each in processes for call in each.trace()) > after)
    _meanwhile(stage, what)
    processes += [Process.start(words, stage.outputs) for _ in range(number // 2)]
    ended = [process.end() for process in processes]
    for each in ended:
        stage.look(each, set(), harmed=True)
    _written_by_two(stage, ended)
