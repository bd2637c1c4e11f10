"""Our use of the real W&B client, against a server on the loopback; how the service itself behaves is not tested here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.errors import UserError
from fl_hydra.tracking.follower import close
from fl_hydra.tracking.trackers.base import Followed, Held
from fl_hydra.tracking.trackers.wandb import Wandb
from tests.support.make import PROJECT, config
from tests.support.tracked import RUN, TRACKED, assert_sent, digests, finish, rows_of, start
from tests.support.wandb_server import Server, serving

pytest.importorskip("wandb")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def train(server: Server, folder: Path, *words: str, **environment: str) -> list[str]:
    """Train here, followed by a process of its own; what was said."""
    from fl_hydra.runs.execution import execute_together
    from fl_hydra.runs.progress import ConsoleReporter

    class Reporter(ConsoleReporter):
        def _line(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    (folder / "home").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment(str(folder / "home")), **environment}.items():
            patch.setenv(name, value)
        seeds = [word for word in words if word.startswith("seed=")] or ["seed=0"]
        common = [word for word in words if word not in seeds]
        outcomes = execute_together([config(*common, seed, f"outputs={folder / 'outputs'}") for seed in seeds], Reporter(live=False))
        close(10 if server.behaves == "well" else 4)
    assert [outcome.status for outcome in outcomes] == ["finished"] * len(seeds)
    return said


def test_a_run_continued_on_an_empty_machine_ends_as_an_undisturbed_one(server: Server, tmp_path: Path) -> None:
    """The first is killed while it uploads; the second finds the checkpoint by the run's hash; a third one brings the finished run."""
    undisturbed, first, second, third = (tmp_path / name for name in ("0", "1", "2", "3"))
    train(server, undisturbed, *RUN)
    assert server.calls == []
    killed = start(server, first, *RUN, *TRACKED, "outputs=outputs", slowly=True)
    until = time.monotonic() + 60
    while not (server.runs and server.versions(f"checkpoint-{next(iter(server.runs))}")) and time.monotonic() < until:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (id,) = server.runs
    assert not list(first.glob("outputs/digits/*/*/summary.json"))
    output = finish(start(server, second, *RUN, *TRACKED, "outputs=outputs", "resume=wandb"))
    assert "downloaded from W&B" in output
    assert "resumed at round" in output
    assert digests(second) == digests(undisturbed)
    assert_sent(server, id, rows_of(undisturbed))
    assert set(server.runs) == {id}
    (last,) = server.versions(f"checkpoint-{id}")
    assert set(last["names"]) == {"latest", "final", "round-24"}
    assert server.runs[id]["state"] == "finished"
    opened = len(server.history(id))
    assert "finished" in finish(start(server, third, *RUN, *TRACKED, "outputs=outputs", "resume=wandb"))
    assert digests(third) == digests(undisturbed)
    assert len(server.history(id)) == opened
    assert not [path for folder in (first, second, third) for path in (folder / "home").iterdir()]


def test_a_pack_is_sent_side_by_side_and_sync_has_nothing_to_add(server: Server, tmp_path: Path) -> None:
    train(server, tmp_path, *RUN, *TRACKED, "section=s", "seed=0", "seed=1")
    assert len(server.runs) == 2
    for path in tmp_path.glob("outputs/digits/*/*/metrics.jsonl"):
        assert_sent(server, path.parent.name[-10:], [json.loads(line) for line in path.read_text().splitlines()])
    assert {run["groupName"] for run in server.runs.values()} == {"s"}
    first = finish(start(server, tmp_path, "-m-tracking", "sync", "--outputs", "outputs"))
    assert "0 rows and 0 checkpoints of 0 runs were uploaded, 2 runs were there already; 1 section summaries are new" in first
    assert any("/acc mean" in key for key in server.runs["report-s"]["summary"])
    opened = {id: run["opened"] for id, run in server.runs.items()}
    assert "0 section summaries are new" in finish(start(server, tmp_path, "-m-tracking", "sync", "--outputs", "outputs"))
    assert {id: run["opened"] for id, run in server.runs.items()} == opened


@pytest.mark.parametrize("behaves", ["hangs", "errors", "dies", "no key"])
def test_a_server_that_fails_costs_a_line_and_sync_uploads_the_rest(server: Server, tmp_path: Path, behaves: str) -> None:
    if behaves == "dies":
        server.die_at = "file_stream"
    elif behaves != "no key":
        server.behaves = behaves
    before = time.monotonic()
    said = train(server, tmp_path, *RUN, *TRACKED, **({"WANDB_API_KEY": ""} if behaves == "no key" else {}))
    assert time.monotonic() - before < 60
    assert sum("make sync uploads what is missing" in line for line in said) == 1
    server.behaves = "well"
    assert "4 rows" in finish(start(server, tmp_path, "-m-tracking", "sync", "--outputs", "outputs"))
    (id,) = server.runs
    assert_sent(server, id, rows_of(tmp_path))


def test_an_artifact_of_another_configuration_is_refused_in_one_line(server: Server, tmp_path: Path) -> None:
    train(server, tmp_path / "1", *RUN, *TRACKED)
    (id,) = server.runs
    (artifact,) = server.versions(f"checkpoint-{id}")
    train(server, tmp_path / "2", *RUN, "seed=1")
    (other,) = (path.name[-10:] for path in tmp_path.glob("2/outputs/digits/*/*"))
    artifact["collection"] = f"checkpoint-{other}"
    server.files |= {path.replace(id, other): content for path, content in server.files.items()}
    output = finish(start(server, tmp_path / "3", *RUN, *TRACKED, "seed=1", "outputs=outputs", "resume=wandb"))
    lines = [line for line in output.splitlines() if line.startswith(("error", "failed"))]
    assert len(lines) == 1
    assert "checkpoint of another configuration" in lines[0] and "seed=0" in lines[0]
    assert not list(tmp_path.glob("3/outputs/digits/*/*/checkpoints/round-*.pt"))


def test_training_from_zero_again_is_a_new_attempt() -> None:
    from fl_hydra.tracking.wandb_run import DIGEST, ROWS, Connection, digest_of

    class Run:
        def __init__(self, lines: list[str]) -> None:
            self.summary = {ROWS: len(lines), DIGEST: digest_of(lines)}
            self._attrs = {"historyLineCount": len(lines)}

    there: dict[str, Run] = {}
    connection = Connection.__new__(Connection)
    connection.find = lambda id: there.get(id)  # type: ignore[method-assign]
    assert connection.attempt("abc", [])[0] == 1
    there["abc"] = Run(["a", "b"])
    assert connection.attempt("abc", [])[0] == 2
    assert connection.attempt("abc", ["a"])[0] == 1
    assert connection.attempt("abc", ["a", "b", "c"])[0] == 1
    assert connection.attempt("abc", ["a", "other"])[0] == 2
    there["abc-2"] = Run(["a", "other"])
    assert connection.attempt("abc", ["a", "other", "more"])[0] == 2


def test_staged_files_outlive_their_deletion_and_a_damaged_checkpoint_is_not_staged(tmp_path: Path) -> None:
    from fl_hydra.files import write_verified
    from fl_hydra.tracking.artifacts import Staged

    (tmp_path / "clients").mkdir()
    checkpoint, client = tmp_path / "round-000000003.pt", tmp_path / "clients" / "3-1-7.rows"
    write_verified(checkpoint, {"round": 3})
    write_verified(client, {"x": 1})
    held = Held([], checkpoint, 3, [client.name])
    staged = Staged(held, tmp_path / "staged")
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    client.unlink()
    assert staged.files[checkpoint.name].read_bytes() == content
    with pytest.raises(FileNotFoundError):
        Staged(held, tmp_path / "late")
    assert not (tmp_path / "late").exists()
    checkpoint.write_bytes(content[:-1])
    write_verified(client, {"x": 1})
    with pytest.raises(ValueError, match="truncated"):
        Staged(held, tmp_path / "torn")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"project": "my project"}, "tracker.project=my-project"),
        ({"entity": "a/b"}, "no spaces"),
        ({"mode": "on"}, "online or offline"),
        ({"artifact_minutes": -1.0}, "0 (every checkpoint) or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        Wandb(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_tracker_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tests.support.make import config\nfrom fl_hydra.runs.execution import execute\n"
        "from fl_hydra.runs.progress import ConsoleReporter\n"
        f"execute(config('rounds=1', 'K=2', 'J=1', 'algorithm=localsgd', 'threads=1', 'outputs={tmp_path}'), ConsoleReporter())\n"
        "assert not {'wandb', 'tensorboard', 'fl_hydra.tracking.wandb_run'} & set(sys.modules)\n"
        "import threading; assert not [t for t in threading.enumerate() if 'followers' in t.name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, capture_output=True)


def test_tensorboard_has_the_rows_of_the_file_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fl_hydra.tracking.tensorboard_run import TensorBoardRun

    folder = tmp_path / "digits" / "fedavg" / "x"
    lines = [json.dumps({"round": n, "val/acc": n / 10, "test/acc": None, "personal/val/accs": [0.5, None]}) for n in range(3)]
    for held in (lines[:2], lines):  # the second process goes on
        run = TensorBoardRun(Followed(folder, "abc", "x", {}, "s", False, tmp_path))
        run.held(Held(held[:1]))
        run.held(Held(held))
        run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "digits" / "fedavg" / "x"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"round", "val/acc"}
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("val/acc")] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_lists_by_client_are_not_sent() -> None:
    from fl_hydra.tracking.wandb_run import history_row

    assert history_row('{"round": 1, "test/acc": null, "personal/test/accs": [0.5, null], "personal/test/acc": 0.5}') == {
        "round": 1,
        "personal/test/acc": 0.5,
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dashboard_has_the_panels_of_its_section() -> None:
    """As far as the package's own specification goes."""
    pytest.importorskip("wandb_workspaces")
    from fl_hydra.uploads.dashboards import AXES, FIGURES, workspace

    view = json.loads(workspace("localsgd", "us", "p", ["heat", "curves"])._to_model().model_dump_json(by_alias=True))
    panels = [panel for section in view["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]
    plots = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {(plot["xAxis"], plot["metrics"][0]) for plot in plots} == {(axis, figure) for axis in AXES for figure in FIGURES}
    coordinates = [panel["config"]["columns"] for panel in panels if panel["viewType"] == "Parallel Coordinates Plot"]
    assert [[column["displayName"] for column in columns[:2]] for columns in coordinates] == [["K", "J"], ["N_c", "J"]]
    assert "localsgd-heat" in json.dumps(panels)
    assert "localsgd" in json.dumps(view["spec"]["section"]["runSets"][0])
