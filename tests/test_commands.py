"""What is typed, where it goes, who listens and what stops it: a command does what it says, or says in one line what it cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from fl_hydra.arguments import as_text, groups, prepare, texts
from fl_hydra.config import LARGEST, MOST, REGISTRIES, Config
from fl_hydra.errors import UserError
from fl_hydra.make import asked_for, typed_variables
from fl_hydra.paths import CONF, DATA, OUTPUTS
from fl_hydra.registry import Registry
from fl_hydra.resolving import cohort, notes
from fl_hydra.runs import progress
from fl_hydra.runs.identity import run_hash
from fl_hydra.schema import register_schema
from fl_hydra.sweeping.compose import Composer
from tests.conftest import Program
from tests.support.make import PROJECT, config, experiment, trainer

SMALL = ("model.filters=1", "model.hidden=1", "batch_size=50", "evaluation.points=2")

# fmt: off
TYPED = [
    "2024_01_02", "1e3", "0x10", "1_000", "007", "1e999", "nan", "inf", "true", "off", "12:30:00", "a=b", "a=b=c", "(x)", "f(a,b)", "[a]",
    "{a:1}", "a,b", "#1", "a #b", " lead", "trail ", "two words", "é漢", "it's", 'say "x"', "back\\slash", "end\\", "\\'", "a:b", "~x",
    "$HOME", "*?", "%s", "&;|<>!", "@home",
]
# fmt: on


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("value", TYPED)
def test_a_path_is_taken_as_it_was_typed(value: str, many: bool) -> None:
    """Whatever it looks like to a grammar with numbers, lists and functions."""
    for key in ("outputs", "data", "dataset.path", "dataset.text"):
        parsed = OverridesParser.create().parse_override(as_text(f"{key}={value}", many))
        assert not parsed.is_sweep_override()
        assert parsed.value() == value
        quoted = as_text(f"{key}={value}", many)
        assert as_text(quoted, many) == quoted, "what is quoted already stays right"


@pytest.mark.parametrize("value", ["2024_01_02", "1e3", "0x10", "007", "nan", "true", "1_0"])
def test_text_is_no_number(value: str) -> None:
    for key in texts() - {"dataset.path", "dataset.text"}:
        for override in (as_text(f"{key}={value}"), as_text(f"{key}='{value}'"), as_text(f'{key}="{value}"')):
            assert OverridesParser.create().parse_override(override).value() == value
    listed = OverridesParser.create().parse_override(as_text(f"section={value},b,null", many=True))
    assert [getattr(each, "text", each) for each in listed.sweep_iterator()] == [value, "b", None]
    assert as_text("section=null") == "section=null"
    assert as_text(f"K={value}") == f"K={value}"


def test_text_keys_follow_the_schema() -> None:
    assert {"data", "outputs", "section", "device", "dataset.text", "algorithm.topology", "scheduler.scale_batch"} <= texts()
    assert not texts() & {"K", "optimizer.lr", "seed", "noise_scale", "algorithm.name.x"}


def test_odd_folders_and_sections_and_the_command_to_go_on_with(program: Program, tmp_path: Path) -> None:
    """The command that is printed after a signal works when it is given to a shell."""
    outputs = "ö (1)=#,'q' \"d\" $x b"
    command = ("rounds=6", "algorithm=fedavg", "K=5", "C=0.4", *SMALL, f"outputs={outputs}", "section=2024_01_02")
    stopped = program(*command, cwd=tmp_path, asks=[signal.SIGTERM, 2])
    assert stopped.status == 128 + signal.SIGTERM
    printed = shlex.split(stopped.output.splitlines()[-1])
    assert printed[1] == "train.py"
    again = program(*printed[2:], cwd=tmp_path)
    assert again.status == 0, again.output
    assert "resumed at round" in again.output
    assert [path.name for path in tmp_path.iterdir()] == [outputs]
    assert [path.name for path in (tmp_path / outputs / "sections").glob("*.txt")] == ["2024_01_02.txt"]


def test_folders_are_the_projects_wherever_one_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    default = config()
    assert (default.data, default.outputs) == (str(DATA), str(OUTPUTS)) == (str(PROJECT / "data"), str(PROJECT / "outputs"))
    assert config("outputs=here").outputs == "here", "what is typed is relative to where one stands"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config("outputs='~/x'").outputs == str(tmp_path / "x")
    (tmp_path / "file").touch()
    for wrong in ("data=nowhere", "data=file", "outputs=file/x", "outputs=''", "data='~nobody-of-this-name/x'"):
        with pytest.raises(UserError, match=f"^{wrong[:4]}"):
            config(wrong)


def test_the_report_reads_where_it_is_told(program: Program, tmp_path: Path) -> None:
    assert program("epochs=1", *SMALL, "section=mine", "outputs=there", cwd=tmp_path).status == 0
    for arguments in (["mine", "--outputs", "there"], ["section=mine", "outputs=there"]):
        done = run_module("report", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "there" / "report" / "mine.csv").exists()
        shutil.rmtree(tmp_path / "there" / "report")
    done = run_module("report", "mine", "outputs=nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: outputs=nowhere: there is no such folder\n")


def run_module(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"fl_hydra.{name}", *arguments]
    variables = {"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=variables, check=False)


MISTAKES = [
    ("optimizer=AdamW", "optimizer=AdamW: no such option; did you mean optimizer=adamw? There are adadelta, adagrad,"),
    ("model=LeNet", "did you mean model=lenet?"),
    ("algorithm=Local-SGD", "did you mean algorithm=localsgd?"),
    ("algorithm=fedavg participation=PowerOfChoice", "did you mean participation=power_of_choice?"),
    ("algorithm=adamw", "did you mean optimizer=adamw or server=adamw?"),
    ("lr=0.1", "lr=0.1: no such key; did you mean optimizer.lr=0.1 or server.lr=0.1?"),
    ("learning_rate=0.1", "did you mean optimizer.lr=0.1 or server.lr=0.1?"),
    ("optimizer.LR=0.1", "did you mean optimizer.lr=0.1?"),
    ("optimiser.lr=0.1", "did you mean optimizer.lr=0.1"),
    ("warmup=0.1", "did you mean scheduler.warmup=0.1"),
    ("k=4", "did you mean K=4?"),
    ("n_c=4", "did you mean N_c=4?"),
    ("num_clients=4", "did you mean K=4?"),
    ("batchsize=4", "did you mean batch_size=4?"),
    ("K=2, 4", "K=2, 4: a list has no spaces: K=2,4"),
    ("K=2 ,4", "a list has no spaces: K=2,4"),
    ("K = 2", "K = 2: there is no space around =: K=2"),
    ("K= 2", "there is no space around =: K=2"),
    ("K=2,4", "K=2,4: several values are a sweep of many runs, which takes -m: "),
    ("-m K=2,4,", "a list ends without a comma"),
    ("algorithm=localsgd,fedavg", "which takes -m: "),
    ("seed=range(0,3)", "which takes -m: "),
    ("K=[2", "'K=[2': cannot be read"),
    ("fedavg", "fedavg: not of the form KEY=VALUE, as K=4 or optimizer.lr=0.1; did you mean algorithm=fedavg"),
    ("nonsense", "nonsense: not of the form KEY=VALUE"),
    ("--algorithm fedavg", "--algorithm fedavg: keys have no dashes; did you mean algorithm=fedavg?"),
    ("--batch-size=8", "did you mean batch_size=8?"),
    ("--lr 0.1", "did you mean optimizer.lr=0.1 or server.lr=0.1?"),
    ("-K 4", "did you mean K=4?"),
    ("--epochs", "did you mean epochs=...?"),
    ("-c 0.1", "keys are given as KEY=VALUE, without dashes"),
    ("+sweep=localsgd", "did you mean -m +sweep/track_a=localsgd?"),
    ("+sweep=everything", "+sweep/track_a= has asynchronous, centralized,"),
    ("-m +sweep/track_b=localsgd", "did you mean -m +sweep/track_a=localsgd?"),
    ("-m sweep/track_a=localsgd", "did you mean -m +sweep/track_a=localsgd?"),
    ("-m +sweep/track_a=locallsgd", "did you mean -m +sweep/track_a=localsgd?"),
    ("+sweep/localsgd", "did you mean -m +sweep/track_a=localsgd?"),
    ("-m track_b=fedavg", "did you mean -m +sweep/track_b=fedavg?"),
    ("-m +sweep/track_a=localsgd,slowmo", "2 sections in one command; a command trains one"),
    ("-m +sweep/track_a=localsgd +sweep/track_b=fedavg", "2 sections in one command"),
    ("+sweep/track_a=localsgd", "a section is a sweep of many runs, which takes -m: "),
    ("J=1000000000000", "J=1000000000000: at most 1,000,000,000 is allowed"),
    ("optimizer.lr=1e308", "optimizer.lr=1e+308: at most 1e+30 is allowed"),
    ("seed=99999999999999999999", "must be 0 or more and below 2^63"),
    ("threads=1000000000", "1 to 1,024 are possible"),
    ("evaluation.final=0", "a fraction above 0 and at most 1"),
    (f"outputs={'x' * 300}", "outputs: the name xxxxxxxxxxxxxxxxxxxx... has 300 bytes and a file system takes 255"),
    (f"dataset=shakespeare dataset.text=a/{'x' * 300}/b", "dataset.text: the name xxxxxxxxxxxxxxxxxxxx... has 300 bytes"),
    (f"section={'x' * 300}", "at most 100 letters, digits, _ and - are allowed"),
    ("outputs=", "outputs=: a folder is needed"),
    ("data=missing", "data=missing: there is no such folder; make it first"),
]


@pytest.mark.parametrize(("command", "says"), MISTAKES)
def test_a_mistake_is_one_line_that_says_what_was_meant(command: str, says: str, program: Program, tmp_path: Path) -> None:
    arguments = command.split()
    result = program(*arguments, *([] if "--" in command else SMALL[:0]), cwd=tmp_path)
    errors = [line for line in result.output.splitlines() if "still preparing" not in line]
    assert result.status == 2, result.output
    assert len(errors) == 1, result.output
    assert errors[0].startswith("error: ")
    assert says in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_another_way_to_write_an_option_is_recognised(registry: Registry[Any]) -> None:
    for option in groups()[registry.group]:
        for other in {option.upper(), option.replace("_", "-"), option.title()} - {option}:
            with pytest.raises(UserError, match=re.escape(f"did you mean {registry.group}={option}?")):
                prepare([f"{registry.group}={other}"])
        assert prepare([f"{registry.group}={option}"]) == [f"{registry.group}={option}"]


def changed(whole: Config, group: str, part: Any, name: str, value: float) -> Config:
    part = dataclasses.replace(part, **{name: value})
    return part if not group else dataclasses.replace(whole, **{group: part})


def test_no_number_is_too_large_to_be_refused() -> None:
    """Every numeric key of every option."""
    whole = config("algorithm=fedavg")
    parts: list[tuple[str, Any]] = [("", whole), ("evaluation", whole.evaluation), ("swa", whole.swa), ("checkpoint", whole.checkpoint)]
    parts += [(registry.group, part()) for registry in REGISTRIES for part in registry.values()]
    tried = 0
    for prefix, part in parts:
        for field in dataclasses.fields(part):
            huge = {"int": MOST + 10**18, "float": LARGEST * 1e10}.get(str(field.type).removesuffix(" | None"))
            if huge is None:
                continue
            tried += 1
            with pytest.raises(UserError, match=re.escape(f"{field.name}=")):
                changed(whole, prefix, part, field.name, 2**63 if "seed" in field.name else huge)
    assert tried > 100


def test_a_cohort_that_is_rounded_is_said_to_be() -> None:
    for C, K, m in ((0.15, 10, 2), (0.25, 10, 2), (0.35, 10, 4), (0.01, 20, 1)):
        (note,) = notes(config("algorithm=fedavg", f"K={K}", f"C={C}"))
        assert f"C={C} of K={K} clients is {C * K:g}: {m} take part" in note
        assert cohort(C, K) == m
    assert not notes(config("algorithm=fedavg", "K=30", "C=0.1"))
    assert not notes(config("algorithm=localsgd", "K=3")) and not notes(config())


def test_headers_name_the_option() -> None:
    for option, shown in (("sgd", "sgd"), ("sgdm", "sgdm"), ("adamw", "adamw")):
        assert f", {shown} lr " in progress.headline(experiment("algorithm=fedavg", f"optimizer={option}"))
    for option in ("ad_psgd", "a2cid2", "staleness_aware", "async_sgd", "localsgd"):
        assert f" {option} " in progress.headline(experiment(f"algorithm={option}"))
    assert "post_local" in progress.headline(experiment("algorithm=post_local"))
    assert "server nesterov lr 0.7" in progress.headline(experiment("algorithm=diloco"))


# Who listens


CLOSED = "import os, sys; os.close({0}); sys.stdout, sys.__stdout__ = (None, None) if {0} == 1 else (sys.stdout, sys.__stdout__)"
SILENT = "import os, sys; os.close(2); sys.stderr = sys.__stderr__ = None"
GONE = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.dup2(w, 2)"
FULL = "import os; full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2)"
ASCII = "import sys; sys.stdout.reconfigure(encoding='ascii'); sys.stderr.reconfigure(encoding='ascii')"
HUNG_UP = """
import os
master, slave = os.openpty()
os.dup2(slave, 1), os.dup2(slave, 2), os.close(slave)
train = Trainer.run_round
def hang_up(self):
    train(self)
    if self.runs[0].round == 2:
        os.close(master)
Trainer.run_round = hang_up
"""
READERS = {"no stdout": CLOSED.format(1), "no stderr": SILENT, "gone": GONE, "full": FULL, "ascii": ASCII, "hung up": HUNG_UP}
FEDAVG = ("algorithm=fedavg", "K=5", "C=0.4", "rounds=5", *SMALL)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_trained_does_not_depend_on_who_listens(reader: str, program: Program, tmp_path: Path) -> None:
    result = program("-m", *FEDAVG, "seed=0,1", "outputs=ö", cwd=tmp_path, before=READERS[reader])
    assert result.status == 0, result.output
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert [summary["status"] for summary in summaries] == ["finished"] * 2
    for path in tmp_path.rglob("metrics.jsonl"):
        assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [3, 5]
    assert not (tmp_path / "outputs").exists()
    mistake = program("K=0", cwd=tmp_path, before=READERS[reader].split("\ntrain")[0])
    assert mistake.status == 2


# What stops it


def test_a_terminal_that_hangs_up_saves_and_stops_a_sweep(program: Program, tmp_path: Path) -> None:
    stopped = program("-m", *FEDAVG, "seed=0,1", cwd=tmp_path, asks=[signal.SIGHUP, 2])
    assert stopped.status == 128 + signal.SIGHUP, stopped.output
    assert len(list(tmp_path.rglob("config.yaml"))) == 1, "the next point is not begun"
    assert list(tmp_path.rglob("round-*.pt"))
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    nohup = program("-m", *FEDAVG, "seed=0,1", cwd=tmp_path, asks=[signal.SIGHUP, 4], before=ignored)
    assert nohup.status == 0, nohup.output


AT = """
import os, {module}
original = {module}.{name}
def asked(*arguments, **keywords):
    asked.count += 1
    if asked.count == {n}:
        os.kill(os.getpid(), {number})
    return original(*arguments, **keywords)
asked.count = 0
{module}.{name} = asked
"""
MOMENTS = {
    "arguments": ("fl_hydra.arguments", "prepare", 1),
    "composing a run": ("fl_hydra.schema", "typed", 1),
    "composing points": ("fl_hydra.schema", "typed", 2),
    "checking": ("fl_hydra.resolving", "resolve", 1),
    "between points": ("fl_hydra.app", "train_point", 2),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_outside_of_training_is_one_line_and_its_status(moment: str, number: int, program: Program, tmp_path: Path) -> None:
    module, name, n = MOMENTS[moment]
    many = [] if moment == "composing a run" else ["-m"]
    before = AT.format(module=module, name=name, n=n, number=int(number))
    stopped = program(*many, "epochs=1", *SMALL, f"seed={'0,1' if many else 0}", cwd=tmp_path, before=before)
    assert stopped.status == 128 + number, stopped.output
    told = [line for line in stopped.output.splitlines() if line.startswith("stopped by ")]
    assert len(told) == 1 and told[0].startswith(f"stopped by {signal.Signals(number).name};")
    assert "Traceback" not in stopped.output
    assert "train.py" in stopped.output.splitlines()[-1]
    assert len(list(tmp_path.rglob("summary.json"))) == (moment == "between points")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_starts(number: int, tmp_path: Path) -> None:
    """At the moment when Hydra is imported."""
    script = f"""
import os, runpy, signal, sys
class Hook:
    def find_spec(self, name, *rest):
        if name == "hydra":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Hook())
sys.argv = ["train.py", "epochs=1"]
runpy.run_path({str(PROJECT / "train.py")!r}, run_name="__main__")
"""
    environment = {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.startswith(f"stopped by {signal.Signals(number).name};") and len(done.stderr.splitlines()) == 2


# Make


def test_variables_that_were_typed_to_make_are_told_as_they_were_typed() -> None:
    flags = r"rR -j2 --jobserver-auth=3,4 -- K=2 outputs=a\ b\\c=$$d ARGS=seed=1\ J=2 optimizer.lr=0.1 PYTHON=python3 K=4"
    assert typed_variables(flags) == ["K=4", "outputs=a b\\c=$d", "optimizer.lr=0.1"]
    assert typed_variables("") == typed_variables("s") == typed_variables(" -- ARGS=x") == []
    assert asked_for({"MAKEFLAGS": " -- K=2", "SIZE": "short"}) == ["K=2", "size=short"]
    assert asked_for({"MAKEFLAGS": " -- SIZE=smoke", "SIZE": "short"}) == asked_for({"MAKEFLAGS": " -- SIZE=smoke"}) == ["size=smoke"]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_trains_what_was_typed_and_reports_from_where_it_was_trained(tmp_path: Path) -> None:
    """As variables and as ARGS; `-o setup` leaves the environment alone."""
    small = ["dataset=digits", "epochs=1", "seed=1", "threads=1", *SMALL[:2]]
    outputs = tmp_path / "a (ö) b"
    make = ["make", "-s", "-o", "setup", "-C", str(PROJECT), f"RUN={sys.executable}", "localsgd"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    typed = [*make, *small, "J=64", f"ARGS=K=2 'outputs={outputs}'"]
    done = subprocess.run(typed, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (summary,) = outputs.rglob("summary.json")
    described = json.loads(summary.read_text())["config"]
    assert (described["K"], described["J"], described["budget"], described["dataset"]["name"]) == (2, 64, 1295, "digits")
    assert (outputs / "report" / "localsgd.csv").exists()
    wrong = subprocess.run([*make, "k=2"], capture_output=True, text=True, env=environment, check=False)
    assert wrong.returncode == 2 and "error: k=2: no such key; did you mean K=2?" in wrong.stderr


# Many points, long silences, the last evaluation


@pytest.mark.parametrize(
    "points",
    [
        [["algorithm=fedavg", "K=20", "C=0.2", f"J={J}", f"optimizer.lr={lr}"] for J in (2, 4) for lr in (0.1, 0.2)],
        [["optimizer=adamw", "optimizer.lr=0.5"], ["optimizer=sgd", "optimizer.lr=0.5"], ["optimizer.lr=0.5"], ["optimizer=adamw"]],
        [["scheduler=step", "scheduler.milestones=[0.1,0.2]"], ["+optimizer.clip=1.0", "section='1e3'"], ["scheduler.warmup=0.1"]],
        [["optimizer.lr=0.5", "algorithm=localsgd", "K=2"], ["algorithm=localsgd", "K=null"], ["epochs=3", "epochs=4"]],
    ],
)
def test_points_are_composed_as_hydra_composes_them(points: list[list[str]]) -> None:
    register_schema()
    with initialize_config_dir(str(CONF)):
        whole = compose("config", return_hydra_config=True)
        whole.hydra.job.config_name = "config"
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        composer = Composer(SimpleNamespace(config_loader=hydra.config_loader), whole)  # type: ignore[arg-type]
        composed = [composer(point) for point in points]
    assert composed == [config(*point) for point in points]


def test_long_silences_are_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(progress, "AGAIN", 60)
    with progress.patience(lambda: "counting sheep"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "note: counting sheep\n"
    monkeypatch.setattr(progress, "PATIENCE", 60)
    with progress.patience(lambda: "never said"):
        pass
    assert not capsys.readouterr().err


def test_a_fraction_of_the_last_evaluation() -> None:
    """It stands for all classes, changes nothing else, and has a name of its own only where it is a fraction."""
    common = ("algorithm=localsgd", "K=2", "J=4", "epochs=1", *SMALL)
    whole, half = trainer(*common), trainer(*common, "evaluation.final=0.5")
    for run in (whole, half):
        while not run.runs[0].finished:
            run.run_round()
    assert whole.weights().equal(half.weights())
    figures, fewer = whole.evaluate()[0], half.evaluate()[0]
    assert figures["test/acc"] == pytest.approx(fewer["test/acc"], abs=0.15) and figures["test/loss"] != fewer["test/loss"]
    looked_at = half.split.test.fair(180)
    assert len(set(looked_at.tolist())) == 180 and (looked_at.diff() > 0).all()
    counts = half.split.test.targets[looked_at].bincount(minlength=10)
    assert counts.min() >= 8, "the canonical order is by class; the first half of it would have five of them"
    assert run_hash(experiment(*common)) == run_hash(experiment(*common, "evaluation.final=1"))
    assert run_hash(experiment(*common)) != run_hash(experiment(*common, "evaluation.final=0.5"))


# Parts that are written wrongly


BASE = "from dataclasses import dataclass\nfrom fl_hydra.registry import Component, Registry\n"
WRONG = {
    "@registry.register\nclass Mine(Part):\n    name: str = 'mine'\n": "line 4: TypeError: class Mine needs @dataclass below @register",
    "@registry.register\n@dataclass\nclass Mine(Part):\n    mu: float = 0.1\n": "TypeError: class Mine needs a name of its own",
    "@registry.register\n@dataclass\nclass Mine(Part):\n    name: str = 'first'\n": "are both registered as group=first",
    "def step(:\n": "line 4: SyntaxError: ",
    "import no_such_module\n": "line 4: ModuleNotFoundError: No module named 'no_such_module'",
    "mu = undefined\n": "line 4: NameError: name 'undefined' is not defined",
}


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_part_is_named_with_its_file(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / f"parts_{list(WRONG).index(code)}"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"{BASE}registry = Registry('group', {package.name!r})\n\n@dataclass\nclass Part(Component):\n    mu: float = 0.0\n"
        "@registry.register\n@dataclass\nclass First(Part):\n    name: str = 'first'\n"
    )
    (package / "mine.py").write_text(f"from dataclasses import dataclass\nfrom {package.name} import Part, registry\n\n{code}")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = __import__(package.name).registry
    with pytest.raises(UserError) as told:
        list(registry)
    assert f"{package.name}/mine.py, line " in str(told.value) and WRONG[code] in str(told.value)
    assert "\n" not in str(told.value)
