"""What is done to the files of runs between commands."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.chaos.damage import Material, NotHere, damages
from tests.chaos.settings import PACKS, methods
from tests.chaos.stage import Stage, copy, referred, remove
from tests.chaos.watch import kind

FILES = ("checkpoint", "client state", "metrics", "summary", "timings", "environment", "config", "section", "lock")
WHICH = ("newest", "all", "older")


def damage(stage: Stage, state: str) -> None:
    """One file, or all checkpoints or all client state of a run."""
    files = [file for file in FILES if state == "finished" or file != "summary"]
    combinations = [(file, name) for file in files for name in damages(file)]
    random.Random(f"{stage.event.seed} {state}").shuffle(combinations)
    combinations.sort(key=lambda pair: pair[0] in ("lock", "section", "config"))  # those that decide results come first
    file, name = combinations[stage.event.turn % len(combinations)]
    stage.state(state)
    if file == "client state" and not any(stage.outputs.rglob("clients/*.rows")):
        instead = PACKS[0] if stage.setting.pack else methods("localsgd")[0]
        stage.what.append(instead.name)
        stage.reference = referred(instead, stage.reference.folder.parent)
        stage.state(state)
    run = stage.rng.choice(sorted(stage.reference.runs))
    files_of_run = (path for path in [*(stage.outputs / run).rglob("*"), *stage.outputs.glob("sections/*")] if path.is_file())
    present = sorted(path for path in files_of_run if path.suffix != ".tmp" and kind(path.relative_to(stage.outputs).as_posix()) == file)
    if not present:
        raise NotHere(f"there is no {file}")
    which = stage.rng.choice(WHICH) if len(present) > 1 else "newest"
    paths = {"newest": present[-1:], "all": present, "older": present[:1]}[which]
    stage.what += [f"{state}: {which} {file}" if len(present) > 1 else f"{state}: {file}", name]
    earlier = stage.reference.state("early" if state == "half" else "half")
    for path in paths:
        place = path.relative_to(stage.outputs)
        damages(file)[name](path, Material(stage.rng, _named(earlier, place), _named(_foreign(stage, run, state), place)))
    # What is no file, or another run's, is for the user to move away; any other damage is mended, passed over or made again.
    stage.may_refuse = "in its place" in stage.what[-1] or "another run's" in stage.what[-1]
    if stage.rng.random() < 0.3:
        stage.look_at_report()


def _named(outputs: Path, place: Path) -> Path | None:
    """The file of the same name, or of the same place in the order of names, in the other outputs' run."""
    if place.parts[0] == "sections":
        return outputs / place
    runs = [path for path in outputs.glob("*/*/*") if path.is_dir() and "sections" not in path.parts]
    run = next((run for run in runs if run.name == place.parts[2]), runs[0] if runs else None)
    if run is None:
        return None
    exact = run.joinpath(*place.parts[3:])
    if exact.is_file():
        return exact
    pattern = f"*{exact.suffix}" if exact.suffix in (".pt", ".rows") else exact.name
    alike = sorted(exact.parent.glob(pattern)) if exact.parent.is_dir() else []
    return alike[-1] if alike else None


def _foreign(stage: Stage, run: str, state: str) -> Path:
    """Outputs with another run: of another seed, or of a pack another member."""
    if not stage.setting.pack:
        return stage.reference.other("sibling") if state == "finished" else stage.reference.unfinished_sibling()
    other = stage.rng.choice([name for name in sorted(stage.reference.runs) if name != run])
    place = stage.folder / "foreign"
    copy(stage.reference.state(state) / other, place / other)
    return place


def damage_unfinished(stage: Stage) -> None:
    damage(stage, "half")


def damage_finished(stage: Stage) -> None:
    damage(stage, "finished")


def damage_pack(stage: Stage) -> None:
    damage(stage, ("half", "finished")[stage.event.turn % 2])


COPIES = (
    "a finished run of another seed in its place",
    "an unfinished run of another seed in its place",
    "a finished run of a smaller budget in its place",
    "checkpoints of another run in the unfinished run",
    "newest checkpoint of another run in the unfinished run",
    "summary of another run in the unfinished run",
    "summary and metrics of another run in the unfinished run",
    "summary of another run in the finished run",
    "metrics of another run in the finished run",
    "everything but the checkpoints of another run in the finished run",
    "checkpoints of another run in the finished run, without its summary",
    "moved while unfinished",
    "moved when finished",
    "an older copy put back",
    "only its checkpoints kept",
    "only its newest checkpoint kept",
)


def copied(stage: Stage) -> None:
    """Folders and files of other runs, or of this run from elsewhere, in this run's place."""
    name = COPIES[stage.event.turn % len(COPIES)]
    stage.what.append(name)
    stage.state("half" if "unfinished" in name or "older" in name else "finished")
    run = stage.rng.choice(sorted(stage.reference.runs))
    place = stage.outputs / run

    def others(state: str) -> Path:
        outputs = stage.reference.other("shorter") if "budget" in name and not stage.setting.pack else _foreign(stage, run, state)
        return next(path.parent for path in outputs.glob("*/*/*/config.yaml"))

    match name.split(" in ")[0]:
        case "a finished run of another seed" | "a finished run of a smaller budget":
            copy(others("finished"), place)
        case "an unfinished run of another seed":
            copy(others("half"), place)
        case "checkpoints of another run":
            copy(others("half" if "unfinished" in name else "finished") / "checkpoints", place / "checkpoints")
            if "without" in name:
                remove(place / "summary.json")
        case "newest checkpoint of another run":
            newest = max((place / "checkpoints").glob("round-*.pt"))
            shutil.copyfile(max((others("half") / "checkpoints").glob("round-*.pt")), newest)
        case "summary of another run":
            shutil.copyfile(others("finished") / "summary.json", place / "summary.json")
        case "summary and metrics of another run":
            other = others("finished")
            for file in ("summary.json", "metrics.jsonl"):
                shutil.copyfile(other / file, place / file)
        case "metrics of another run":
            shutil.copyfile(others("finished") / "metrics.jsonl", place / "metrics.jsonl")
        case "everything but the checkpoints of another run":
            for path in others("finished").iterdir():
                if path.is_file():
                    shutil.copyfile(path, place / path.name)
        case "an older copy put back":
            copy(stage.reference.state("early") / run, place)
        case "only its checkpoints kept" | "only its newest checkpoint kept":
            for path in place.iterdir():
                if path.name != "checkpoints":
                    remove(path)
            rounds = sorted((place / "checkpoints").glob("round-*.pt"))
            for path in rounds[:-1] if "newest" in name else ():
                remove(path)
    stage.may_refuse = not name.startswith(("moved", "an older", "only"))
    if stage.rng.random() < 0.3:
        stage.look_at_report()
