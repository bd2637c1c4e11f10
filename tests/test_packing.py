"""Runs that train together: each is what it is alone, whatever happens to the others."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.resolving import resolve
from fl_hydra.runs.packing import packs, shape
from fl_hydra.training.trainer import Trainer
from tests.conftest import Program
from tests.support.make import config, experiment, kind, trainer

SHAPES = {
    "centralized": ("rounds=3", "batch_size=64"),
    "localsgd": ("K=4", "J=4", "batch_size=16"),
    "fedavg": ("K=12", "C=0.25", "J=3", "batch_size=16"),
}
"""What the members of a pack have in common."""

DIFFERENT = {
    "centralized": [("seed=1",), ("seed=2", "optimizer.lr=0.03", "scheduler=cosine"), ("optimizer.momentum=0.5", "rounds=2")],
    "localsgd": [("samples=1000",), ("seed=1", "samples=1000", "optimizer.lr=0.03"), ("samples=700", "optimizer.weight_decay=0")],
    "fedavg": [
        ("samples=700",),
        ("samples=700", "seed=3", "sharding=classes", "N_c=2", "optimizer.lr=0.03"),
        ("samples=1100", "K=6", "C=0.5", "scheduler=linear"),
    ],
}
"""In what they differ; budgets too, so that their last rounds are cut at different times."""


def members(algorithm: str, *more: str) -> list[tuple[str, ...]]:
    return [
        (f"algorithm={algorithm}", "optimizer=sgdm", *SHAPES[kind(algorithm)], *more, *different)
        for different in DIFFERENT[kind(algorithm)]
    ]


def train(run: Trainer) -> list[dict[str, Any]]:
    """Train to the end, dropping members as they finish; the last row of each, in the order in which they ended."""
    rows: list[dict[str, Any]] = []
    while run.runs:
        run.run_round()
        done = [position for position, packed_run in enumerate(run.runs) if packed_run.finished]
        for position in done:
            rows.append({**run.evaluate([position])[0], "weights": run.weights(position), "seed": run.runs[position].experiment.seed})
        left = [position for position in range(len(run.runs)) if position not in done]
        if not left:
            break
        if done:
            run.retain_runs(left)
    return rows


def assert_same(packed: dict[str, Any], alone: dict[str, Any]) -> None:
    """Bit by bit."""
    assert torch.equal(packed.pop("weights"), alone.pop("weights"))
    assert packed == alone


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars", "lamb"])
def test_runs_with_and_without_weight_decay_train_together(optimizer: str) -> None:
    """Which is not multiplying by 0 in one of them: each takes the operations that it takes alone."""
    settings = [(f"optimizer={optimizer}", f"optimizer.weight_decay={value}", "rounds=2", f"seed={value > 0:d}") for value in (0, 0.01)]
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine="loop"))
    for one, other in zip(together, (row for s in settings for row in train(trainer(*s, engine="loop"))), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("algorithm", list(algorithms))
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_packed_runs_are_the_runs_alone(algorithm: str, engine: str) -> None:
    settings = members(algorithm)
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine=engine))
    alone = [row for s in settings for row in train(trainer(*s, engine=engine))]
    for one in alone:
        (other,) = [row for row in together if (row["seed"], row["samples"], row["lr"]) == (one["seed"], one["samples"], one["lr"])]
        assert_same(other, one)


PARTICULAR: dict[str, tuple[str, ...]] = {
    "norms along rows": ("optimizer=lamb", "optimizer.clip=1"),
    "an outer optimizer": ("server=adam",),
    "low precision": ("precision=bf16",),
    "rows of different lengths": ("local_steps.spread=0.5",),
    "losses of rows": ("local_steps=loss",),
    "the noise scale": ("noise_scale=true",),
    "blocks of rows": (),
}
"""Where numbers of several runs might meet."""


@pytest.mark.parametrize("where", list(PARTICULAR))
@pytest.mark.parametrize(("engine", "threads"), [("loop", 2), ("stacked", 1)])
def test_no_bit_of_a_run_depends_on_the_others(where: str, engine: str, threads: int) -> None:
    """Neither on who they are nor on how many, from round to round. Two threads share a run's rows."""
    settings = [(*s, *PARTICULAR[where]) for s in members("localsgd")]
    rows = 2 if where == "blocks of rows" else None
    torch.set_num_threads(threads)
    try:
        together = train(Trainer(*(experiment(*s) for s in settings), engine=engine, rows_at_once=rows))
        alone = [row for s in settings for row in train(Trainer(experiment(*s), engine=engine, rows_at_once=rows))]
    finally:
        torch.set_num_threads(1)
    for one, other in zip(sorted(together, key=_key), sorted(alone, key=_key), strict=True):
        assert_same(one, other)


def _key(row: dict[str, Any]) -> tuple[float, ...]:
    return row["seed"], row["samples"], row["lr"]


def test_clients_that_choose_and_drop_out_do_so_alone() -> None:
    settings = [(*s, "participation=oort", "participation.dropout=0.4", "server=slowmo") for s in members("fedavg")]
    together = train(Trainer(*(experiment(*s) for s in settings), engine="stacked"))
    alone = [row for s in settings for row in train(trainer(*s, engine="stacked"))]
    for one, other in zip(sorted(together, key=_key), sorted(alone, key=_key), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_diverging_member_spoils_no_other(engine: str) -> None:
    settings = members("localsgd")
    run = Trainer(*(experiment(*s) for s in (settings[0], (*settings[1], "optimizer.lr=1e30"), settings[2])), engine=engine)
    for _ in range(2):
        run.run_round()
    assert not run.state.model[1].isfinite().all()
    run.retain_runs([0, 2])
    rows = train(run)
    for row, s in zip(rows, (settings[2], settings[0]), strict=True):  # the third has the smaller budget
        assert_same(row, train(trainer(*s, engine=engine))[0])


def test_a_member_may_come_from_elsewhere_and_go_on_alone(tmp_path: Path) -> None:
    """A run begun alone goes on inside a pack, whose other members begin, and then alone again; its workers' momentum goes with it."""
    settings = members("localsgd")[:2]
    folders = [tmp_path / "0", tmp_path / "1"]

    def alone(position: int) -> Trainer:
        return Trainer(experiment(*settings[position]), engine="stacked", client_folders=folders[position : position + 1])

    first = alone(0)
    first.run_round()
    first.run_round()
    together = Trainer(*(experiment(*s) for s in settings), engine="stacked", client_folders=folders)
    together.restore(first.checkpoint(), 0)
    together.run_round()
    for position, rounds in ((0, 3), (1, 1)):
        last = alone(position)
        last.restore(together.checkpoint(position))
        assert last.sole_run.round == rounds
        assert_same(train(last)[0], train(trainer(*settings[position], engine="stacked"))[0])


@pytest.mark.parametrize(
    "different",
    ["J=5", "batch_size=8", "C=0.5", "precision=bf16", "split_seed=1", "optimizer.nesterov=true", "optimizer.momentum=0", "model.hidden=8"],
)
def test_what_changes_shapes_is_not_packed(different: str) -> None:
    one = config("algorithm=fedavg", "optimizer=sgdm", "K=12", "C=0.25")
    other = config("algorithm=fedavg", "optimizer=sgdm", "K=12", "C=0.25", different)
    assert shape(one, resolve(one)) != shape(other, resolve(other))


def test_packs_are_as_large_as_allowed_and_in_order() -> None:
    assert packs(["a", "b", "a", "c", "a", "b"], most=2) == [[0, 2], [1, 5], [3], [4]]


GRID: tuple[str, ...] = (
    "-m",
    "hydra/launcher=packed",
    "algorithm=localsgd",
    "K=3",
    "J=4",
    "epochs=3",
    "batch_size=16",
    "evaluation.points=3",
)
GRID += ("checkpoint.seconds=0",)


def finals(outputs: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in outputs.rglob("summary.json"):
        summary = json.loads(path.read_text())
        found[path.parent.name] = {name: summary[name] for name in ("status", "weights_sha256", "metrics_sha256")}
    return found


def test_a_packed_grid_is_the_grid(program: Program, tmp_path: Path) -> None:
    points = ["seed=0,1", "optimizer.lr=0.01,0.05", "N_c=null"]
    packed = program(*GRID, *points, "outputs=packed", cwd=tmp_path)
    assert packed.status == 0, packed.output
    assert "4 runs together:" in packed.output
    assert "4 of 4 points finished" in packed.output
    alone = program(*(word for word in GRID if "launcher" not in word), *points, "outputs=alone", cwd=tmp_path)
    assert alone.status == 0, alone.output
    assert finals(tmp_path / "packed") == finals(tmp_path / "alone"), "bit for bit"
    again = program(*GRID, *points, "outputs=packed", cwd=tmp_path)
    assert again.status == 0
    assert again.output.count("finished before") == 4


@pytest.mark.parametrize(("kind", "n"), [("round", 9), ("replace", 43), ("write", 54)])
def test_a_killed_pack_resumes_and_its_points_go_on_alone_or_together(kind: str, n: int, program: Program, tmp_path: Path) -> None:
    """Also where it was killed while its members were saved one by one, so that they go on from different rounds."""
    points = ["seed=0,1,2"]
    whole = program(*GRID, *points, "outputs=whole", cwd=tmp_path)
    assert whole.status == 0, whole.output
    killed = program(*GRID, *points, "outputs=killed", cwd=tmp_path, kill={"kind": kind, "n": n})
    assert killed.status == -signal.SIGKILL
    alone = program(*(word for word in GRID[2:]), "seed=1", "outputs=killed", cwd=tmp_path)
    assert alone.status == 0, alone.output
    assert "resumed at round" in alone.output
    rest = program(*GRID, *points, "outputs=killed", cwd=tmp_path)
    assert rest.status == 0, rest.output
    assert "2 runs together:" in rest.output
    assert rest.output.count("resumed at round") == 2
    rounds = {int(number) for number in re.findall(r"resumed at round (\d+)", alone.output + rest.output)}
    assert (len(rounds) > 1) == (kind != "round")
    assert finals(tmp_path / "whole") == finals(tmp_path / "killed"), "bit for bit"


def test_a_signal_stops_a_pack_with_everything_saved(program: Program, tmp_path: Path) -> None:
    stopped = program(*GRID, "seed=0,1", cwd=tmp_path, asks=(signal.SIGTERM, 4))
    assert stopped.status == 128 + signal.SIGTERM, stopped.output
    assert "run the same command again" in stopped.output
    again = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert again.status == 0, again.output
    assert again.output.count("resumed at round 5") == 2


def test_divergence_and_a_lock_take_one_member_out(program: Program, tmp_path: Path) -> None:
    result = program(*GRID, "optimizer.lr=0.05,1e6,0.01", cwd=tmp_path)
    assert result.status == 1
    assert "2 of 3 points finished" in result.output
    assert "diverged" in result.output
    statuses = sorted(run["status"] for run in finals(tmp_path / "outputs").values())
    assert statuses == ["diverged", "finished", "finished"]


def test_a_member_that_cannot_be_written_leaves_the_others(program: Program, tmp_path: Path) -> None:
    probe = program(*GRID, "seed=0,1", "outputs=probe", cwd=tmp_path)
    assert probe.status == 0
    name = next(path.parent.name for path in (tmp_path / "probe").rglob("summary.json") if "-s1-" in path.parent.name)
    blocked = tmp_path / "outputs" / "digits" / "localsgd" / name / "metrics.jsonl"
    blocked.mkdir(parents=True)
    result = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert result.status == 1, result.output
    assert "1 of 2 points finished" in result.output
    assert "failed" in result.output


def test_a_folder_that_cannot_be_made_leaves_the_others(program: Program, tmp_path: Path) -> None:
    assert program(*GRID, "seed=0,1", "outputs=probe", cwd=tmp_path).status == 0
    name = next(path.parent.name for path in (tmp_path / "probe").rglob("summary.json") if "-s0-" in path.parent.name)
    blocked = tmp_path / "outputs" / "digits" / "localsgd" / name
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file")
    result = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert result.status == 1, result.output
    assert "1 of 2 points finished" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sections").write_text("a file")
    section = program(*GRID, "seed=0,1", "section=mine", "outputs=other", cwd=tmp_path)
    assert section.status == 2
    assert section.output.count("\n") == 1, section.output
    assert "section=mine: " in section.output and "other/sections/mine.txt cannot be written" in section.output
    file = program(*GRID, "seed=0,1", "outputs=other/sections", cwd=tmp_path)
    assert file.status == 2 and "other/sections is not a folder; choose another (this is so at all 2 points" in file.output, file.output


def test_a_checkpoint_in_memory_does_not_go_on_with_the_run() -> None:
    settings = members("fedavg", "precision=fp64")[0]
    run = trainer(*settings)
    run.run_round()
    kept = run.checkpoint()
    whole = train(run)[0]
    again = trainer(*settings)
    again.restore(kept)
    assert_same(train(again)[0], whole)


def test_options_of_the_launcher_are_checked(program: Program, tmp_path: Path) -> None:
    result = program(*GRID, "hydra.launcher.runs=0", "seed=0,1", cwd=tmp_path)
    assert result.status == 2
    assert "hydra.launcher.runs=0: a whole number of runs, at least 1, is needed in a pack" in result.output
    word = program(*GRID, "hydra.launcher.runs=x", "seed=0,1", cwd=tmp_path)
    assert word.status == 2
    assert "hydra.launcher.runs=x: a whole number" in word.output
    single = program("hydra/launcher=packed", "rounds=1", cwd=tmp_path)
    assert single.status == 0
    assert "note: hydra/launcher=packed packs the points of a sweep" in single.output
    split = program(*GRID, "hydra.launcher.runs=2", "seed=0,1,2", cwd=tmp_path)
    assert split.status == 0
    assert split.output.count("2 runs together:") == 1
