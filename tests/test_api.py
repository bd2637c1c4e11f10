"""`fl_hydra.run` and `fl_hydra.load`: the runs of the command line, and their models outside of the program."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import fl_hydra
from fl_hydra.errors import UserError
from fl_hydra.interruption import Interrupted
from fl_hydra.paths import CONF
from fl_hydra.training.trainer import Trainer
from tests.conftest import Program
from tests.support.kinds import kinds
from tests.support.make import config, suited, write_shakespeare

TINY = ("model.filters=2", "model.hidden=8", "batch_size=16", "evaluation.points=2", "engine=loop", "threads=1")
WORDS = ("algorithm=fedavg", "K=8", "C=0.5", "J=2", "rounds=6", *TINY)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(outputs: Path) -> fl_hydra.Run:
    return fl_hydra.run(*WORDS, f"outputs={outputs}", quiet=True)


def test_importing_it_imports_little() -> None:
    code = "import sys, fl_hydra; fl_hydra.run; sys.exit(any(name in sys.modules for name in ('torch', 'wandb', 'optuna', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_the_run_of_the_command_line(trained: fl_hydra.Run, outputs: Path, program: Program, tmp_path: Path) -> None:
    result = program(*WORDS, f"outputs={outputs}", cwd=tmp_path)
    assert result.status == 0 and "finished before" in result.output
    assert trained.status == "finished" and trained.config["K"] == 8 and trained.metrics["round"] == [3, 6]
    assert trained.metrics["val/acc"][-1] == trained.summary["metrics"]["val/acc"]
    assert len(trained.metrics["test/acc"]) == len(trained.metrics.rows) and dict(trained.metrics).keys() == set(trained.metrics)


def test_a_run_is_found_by_its_folder_name_and_hash(trained: fl_hydra.Run, outputs: Path) -> None:
    digits = trained.summary["run"]
    for name in (trained.folder, str(trained.folder), trained.folder.name, digits, digits[:6]):
        assert fl_hydra.load(name, outputs).summary == trained.summary
    with pytest.raises(UserError, match="no run of this name"):
        fl_hydra.load("0123456789", outputs)


def test_predictions_are_those_that_the_run_was_judged_by(trained: fl_hydra.Run, outputs: Path) -> None:
    e = fl_hydra.load(trained.folder.name, outputs).experiment
    arrays = e.dataset.load(e.data)  # type: ignore[attr-defined]
    probabilities = trained.predict(arrays.test_images)
    assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)))
    assert float((probabilities.argmax(1).numpy() == arrays.test_labels).mean()) == trained.metrics["test/acc"][-1]
    assert torch.equal(trained.predict(arrays.test_images[..., 0]), probabilities)  # one channel may be left out
    assert torch.equal(trained.predict(torch.from_numpy(arrays.test_images[:3])), trained.predict(arrays.test_images[:3]))
    with pytest.raises(UserError, match="uint8 is needed"):
        trained.predict(arrays.test_images / 255)
    with pytest.raises(UserError, match=r"images \[n, 16, 16, 1\] are needed"):
        trained.predict(np.zeros((2, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("algorithm", ["fedavg", "localsgd", *kinds()])
def test_every_kind_of_method_ends_with_a_module(algorithm: str, outputs: Path) -> None:
    method = config(f"algorithm={algorithm}").algorithm
    size = ["K=8", "C=0.5"] if method.federated else ["K=4"] if method.K is not None else []
    size += [] if method.J is None else ["J=2"]
    run = fl_hydra.run(f"algorithm={algorithm}", *size, "samples=500", *suited(algorithm, *TINY), outputs=outputs, quiet=True)
    module = run.module
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    from fl_hydra.seams.layout import Layout

    vector = Layout.of(module).flat(module.parameters())
    parts = run.summary.get("weights_parts", {"model": run.summary["weights_sha256"]})
    assert hashlib.sha256(vector.contiguous().numpy().tobytes()).hexdigest() == parts["model"]
    e = run.experiment
    arrays = e.dataset.load(e.data)  # type: ignore[attr-defined]
    if e.algorithm.global_model:
        right = run.predict(arrays.test_images).argmax(1).numpy() == arrays.test_labels
        assert float(right.mean()) == run.metrics["test/acc"][-1], "it is the model that was evaluated"
    else:
        assert run.metrics["test/acc"][-1] is None and run.metrics["personal/test/acc"][-1] > 0
        with pytest.raises(UserError, match="trains no model for everyone"):
            run.predict(arrays.test_images)
    if run.clients and not e.personalised:
        vectors = torch.stack([Layout.of(module).flat(run.client(k).parameters()) for k in range(run.clients)])
        assert vectors.shape == (4, len(vector)) and not torch.equal(vectors[0], vectors[1])
    elif not e.personalised:
        with pytest.raises(UserError, match="there is one model after a round"):
            run.client(0)
    else:
        shown = [run.predict(arrays.test_images[:50], client=k) for k in range(run.clients)]
        assert len(shown) == 8 and not torch.equal(shown[0], shown[1])


def test_text_is_predicted_from_its_codes(outputs: Path, tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    words = ("dataset=shakespeare", "dataset.users=null", "dataset.min_samples=2", "model.hidden=4", "model.embedding=2", "rounds=1", "J=1")
    run = fl_hydra.run("algorithm=fedavg", *words, f"data={tmp_path}", f"outputs={outputs}", "engine=loop", "threads=1", quiet=True)
    assert run.predict(np.zeros((3, 80), np.uint8)).shape == (3, 80)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("algorithm=localsdg",), "did you mean algorithm=localsgd"),
        (("algorithm=localsgd", "K=0"), "must be at least 1"),
        (("foo=1",), "Key 'foo' not in 'Config'"),
        (("optimizer.lr=fast",), "could not be converted to Float"),
        (("algorithm=localsgd", "K=2,4"), "several values"),
        (("-m",), "of the form KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], line: str, outputs: Path) -> None:
    with pytest.raises(UserError, match=line) as raised:
        fl_hydra.run(*words, f"outputs={outputs}")
    assert "\n" not in str(raised.value)


def test_it_works_within_a_program_of_somebody_else(trained: fl_hydra.Run, outputs: Path) -> None:
    with initialize_config_dir(str(CONF / "hydra")):
        assert fl_hydra.run(*WORDS, f"outputs={outputs}", quiet=True).summary == trained.summary
        assert compose(overrides=["+mine=1"]).mine == 1  # what Hydra was initialised with


def test_a_run_that_was_stopped_goes_on(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WORDS, "seed=7", "checkpoint.seconds=0", f"outputs={outputs}")
    whole, rounds = Trainer.run_round, []

    def stopped(trainer: Trainer) -> None:
        rounds.append(1)
        if len(rounds) == 4:
            raise Interrupted(2)
        whole(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_round", stopped)
        with pytest.raises(fl_hydra.RunFailed, match="interrupted: stopped by SIGINT"):
            fl_hydra.run(*words, quiet=True)
    begun = fl_hydra.load(next(iter(outputs.glob("digits/fedavg/*-s7-*"))))
    assert begun.status == "unfinished" and begun.metrics["round"] == [3] and begun.module is not None
    assert fl_hydra.run(*words, quiet=True).metrics["round"] == [3, 6]


def test_a_model_that_is_not_the_one_of_the_summary_is_refused(outputs: Path, tmp_path: Path) -> None:
    one = fl_hydra.run(*WORDS, "seed=1", f"outputs={tmp_path}", quiet=True)
    for path in (one.folder / "checkpoints").glob("round-*.pt"):
        path.unlink()
    with pytest.raises(UserError, match="there are no weights to load"):
        _ = fl_hydra.load(one.folder).module
