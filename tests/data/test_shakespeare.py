"""Shakespeare as a dataset: users, validation, what a trainer reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.data.shakespeare import Shakespeare, ShakespeareSequences, TextDataset
from fl_hydra.data.shakespeare_text import PAD, WINDOW, sequences
from fl_hydra.errors import UserError
from fl_hydra.runs.identity import describe
from fl_hydra.training.planning import plan_round
from fl_hydra.training.text import Text
from fl_hydra.training.trainer import Trainer
from tests.conftest import Program
from tests.support.make import experiment, trainer, write_shakespeare


def small(**fields: object) -> Shakespeare:
    return Shakespeare(**{"users": 4, "min_samples": 900, **fields})  # type: ignore[arg-type]


def test_a_census_counts_what_the_split_holds(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    for dataset in (small(), small(validation=0.0), small(users=None), ShakespeareSequences(users=3)):
        for seed in (0, 1):
            split = dataset.split(tmp_path, seed)
            census = dataset.census(dataset.card(tmp_path), seed)
            assert census.total == len(split.train) == split.population.total
            assert split.population.users is not None and census.users is not None
            assert np.bincount(split.population.users).tolist() == census.users.tolist()
            assert census.classes is None and split.population.labels is None
            assert len(census.users) == len(split.users) == (dataset.users or 6)


def test_users_are_drawn_by_the_split_seed_alone_among_those_with_enough(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    chosen = [small().split(tmp_path, seed).users for seed in range(20)]
    assert small().split(tmp_path, 3).users == chosen[3]
    assert len(set(chosen)) > 5 and set().union(*chosen) == set(small(users=None).split(tmp_path, 0).users)
    counts, tests = [900, 100, 2000, 5, 0], [21, 10, 200, 0, 7]
    assert small(users=None, min_samples=1000).chosen(counts, tests, 0).tolist() == [0, 2]  # 900 + 79 + 21 is enough
    assert small(users=None, min_samples=1001).chosen(counts, tests, 0).tolist() == [2]
    assert small(users=None, min_samples=1).chosen(counts, tests, 0).tolist() == [0, 1, 2, 3]  # who only tests does not train


@pytest.mark.parametrize("validation", [0.0, 0.1, 0.3])
def test_no_target_of_one_set_is_in_an_input_of_another_and_sets_follow_in_time(tmp_path: Path, validation: float) -> None:
    write_shakespeare(tmp_path)
    dataset = small(users=1, validation=validation)
    split = dataset.split(tmp_path, 0)
    train, held, test = (np.sort(starts) for starts in (split.train, split.validation, split.test))
    for earlier, later in ((train, held), (held, test), (train, test)):
        if len(earlier) and len(later):
            # LEAF's gap: the last training target is the first character of the next set, and no more.
            assert earlier[-1] + WINDOW <= later[0]
    official = len(train) + len(held) + (79 if len(held) else 0)
    assert official in dataset.card(tmp_path).train_counts and len(held) == int(validation * official)


def test_the_test_set_is_the_same_however_windows_are_dealt_and_in_any_validation(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    one, other = small().split(tmp_path, 0), small(validation=0.0).split(tmp_path, 0)
    assert one.test.tolist() == other.test.tolist()


def test_windows_and_their_targets_on_the_device(tmp_path: Path) -> None:
    path = write_shakespeare(tmp_path)
    split = small().split(tmp_path, 0)
    text = Text(split.characters, split.train, WINDOW, everywhere=False)
    indices = torch.tensor([0, 7, len(split.train) - 1])
    for row, target, start in zip(text.plain(indices), text.targets[indices], split.train[indices.numpy()], strict=True):
        assert row.tolist() == split.characters[start : start + 80].tolist() and target == split.characters[start + 80]
    tokens = sequences(path).train.tokens
    whole = Text(tokens.ravel(), np.arange(len(tokens)) * 81, WINDOW, everywhere=True)
    inputs, targets = whole.plain(torch.arange(len(tokens))), whole.targets
    assert (inputs.numpy() == tokens[:, :80]).all()
    assert (torch.where(targets < 0, PAD, targets).numpy() == tokens[:, 1:]).all() and (targets[tokens[:, 1:] == PAD] == -100).all()


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (small(users=7), "dataset.users=7: 6 of the 6 users"),
        (small(min_samples=10**6), "0 of the 6 users have dataset.min_samples=1000000"),
    ],
)
def test_more_users_than_there_are(tmp_path: Path, dataset: TextDataset, says: str) -> None:
    write_shakespeare(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        dataset.census(dataset.card(tmp_path))
    assert "\n" not in str(error.value)


def test_bad_settings() -> None:
    for fields in ({"users": 0}, {"min_samples": 0}, {"validation": 1.0}):
        with pytest.raises(UserError):
            small(**fields)


SMALL = ("model.embedding=4", "model.hidden=8", "batch_size=4", "evaluation.points=2")
WINDOWS = ("dataset=shakespeare", "dataset.users=4", "dataset.min_samples=900", *SMALL)
SPEECHES = ("dataset=shakespeare_sequences", *SMALL)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("dataset", [(*WINDOWS, "K=4"), (*SPEECHES, "K=6")])
def test_engines_agree_on_text(tmp_path: Path, dataset: tuple[str, ...], precision: str) -> None:
    write_shakespeare(tmp_path)
    tolerance = {"fp64": 1e-12, "fp32": 2e-5, "bf16": 2e-2}[precision]
    runs = [
        trainer(*dataset, "algorithm=fedavg", "C=0.5", "J=3", "samples=70", f"precision={precision}", f"data={tmp_path}", engine=engine)
        for engine in ("loop", "stacked")
    ]
    for run in runs:
        while not run.finished:
            run.run_round()
    torch.testing.assert_close(runs[0].weights(), runs[1].weights(), rtol=tolerance, atol=tolerance)
    one, other = (run.evaluate()[0] for run in runs)
    for key in ("train/loss", "val/loss", "test/loss"):
        assert one[key] == pytest.approx(other[key], rel=10 * tolerance)


def test_a_loss_over_every_position_is_the_mean_over_what_is_no_padding(tmp_path: Path) -> None:
    """And so where a batch is computed in parts, whose targets differ in number."""
    write_shakespeare(tmp_path)
    given = (*SPEECHES, "K=6", "algorithm=fedavg", "C=1", "J=1", "samples=24", "precision=fp64", f"data={tmp_path}")
    whole, parts = trainer(*given), trainer(*given)
    parts.group.engine.samples_at_once = 3
    initial = whole.state.model[0].clone()
    module = whole.group.architecture.build().double()
    torch.nn.utils.vector_to_parameters(initial, module.parameters())
    plan = plan_round(whole.member)
    gradients = []
    for row in torch.from_numpy(whole.member.draw(plan, 4)):
        logits = module(whole.split.train.plain(row))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.split.train.targets[row].flatten(), ignore_index=-100)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    lr, decay = whole.member.experiment.optimizer.lr, whole.member.experiment.optimizer.weight_decay
    mean = (torch.stack(gradients) * torch.from_numpy(plan.weights)[:, None]).sum(0)
    for run in (whole, parts):
        run.run_round()
        torch.testing.assert_close(run.weights(), initial - lr * (mean + decay * initial), rtol=1e-12, atol=1e-12)


def test_text_resumes_exactly(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    given = (*WINDOWS, "K=4", "algorithm=fedavg", "C=0.5", "J=2", "samples=200", f"data={tmp_path}")
    uninterrupted, first, second = trainer(*given), trainer(*given), trainer(*given)
    while not uninterrupted.finished:
        uninterrupted.run_round()
    for _ in range(5):
        first.run_round()
    second.restore(first.checkpoint())
    while not second.finished:
        second.run_round()
    assert torch.equal(second.weights(), uninterrupted.weights()) and second.evaluate() == uninterrupted.evaluate()


@pytest.mark.parametrize(
    "argv",
    [
        (*WINDOWS, "algorithm=fedavg", "K=4", "C=0.5", "J=2"),
        (*WINDOWS, "algorithm=fedavg", "K=3", "C=1", "J=2", "sharding=iid"),
        (*WINDOWS, "algorithm=centralized"),
        (*SPEECHES, "algorithm=fedavg", "K=6", "C=0.5", "J=2"),
        (*WINDOWS, "algorithm=fedavg", "K=4", "C=0.5", "J=2", "sharding=quantity"),
        (*WINDOWS, "algorithm=localsgd", "K=2", "J=2", "sharding=iid"),
        (*WINDOWS, "algorithm=fedavg", "K=4", "C=0.5", "participation=skewed", "gamma=0.5", "J=2"),
    ],
)
def test_text_from_the_command_line(argv: tuple[str, ...], program: Program, tmp_path: Path) -> None:
    write_shakespeare(tmp_path / "text")
    result = program(*argv, "samples=100", f"data={tmp_path / 'text'}", cwd=tmp_path)
    assert result.status == 0, result.output
    (summary,) = tmp_path.rglob("summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    assert metrics["samples"] == 100 and metrics["val/loss"] < 5 and metrics["flops"] > 0


def test_schedules_are_compared_on_text_in_one_grid(program: Program, tmp_path: Path) -> None:
    write_shakespeare(tmp_path / "text")
    grid = ("-m", *WINDOWS, "algorithm=centralized", "scheduler=constant,cosine,step,linear,exponential")
    result = program(*grid, "samples=60", f"data={tmp_path / 'text'}", cwd=tmp_path)
    assert result.status == 0, result.output
    assert len(list(tmp_path.rglob("summary.json"))) == 5


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("K=5 algorithm=fedavg", "K=5: sharding=natural has a client for each of the 4 users"),
        ("K=4 algorithm=fedavg sharding=classes N_c=2", "sharding=classes: divides by label"),
        ("K=4 algorithm=fedavg sharding=dirichlet", "sharding=dirichlet: divides by label"),
        ("model=lenet", "model=lenet: takes images"),
        ("dataset.users=9 algorithm=fedavg K=9", "dataset.users=9: 6 of the 6 users"),
        ("dataset.text=/nowhere/else.txt", "no such file or folder"),
    ],
)
def test_mistakes_about_text_are_one_line(argv: str, says: str, program: Program, tmp_path: Path) -> None:
    write_shakespeare(tmp_path / "text")
    given = WINDOWS if "model=" not in argv else WINDOWS[:3]
    result = program(*given, *argv.split(), f"data={tmp_path / 'text'}", cwd=tmp_path)
    assert result.status == 2 and says in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "outputs").exists()


def test_of_runs_together_those_that_have_ended_are_looked_at_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_hydra.training.text.GLANCE", 50)
    write_shakespeare(tmp_path)
    given = (*WINDOWS, "K=4", "algorithm=fedavg", "C=0.5", "J=1", "precision=fp64", f"data={tmp_path}", "dataset.validation=0.2")
    short, long = experiment(*given, "samples=8"), experiment(*given, "samples=800")
    together = Trainer(short, long, engine="loop")
    together.run_round()
    assert [member.finished for member in together.members] == [True, False]
    models = together.state.model
    expected = [
        together.group.engine.evaluate(models[:1], together.split.test),
        together.group.engine.evaluate(models[1:], together.split.test, torch.arange(50)),
    ]
    for row, totals in zip(together.evaluate([0, 1]), expected, strict=True):
        assert row["test/loss"] == pytest.approx(float(totals[0, 0] / totals[0, 2]), rel=1e-12)
    assert int(expected[0][0, 2]) > 50


def test_a_clients_loss_is_the_mean_over_its_targets_and_much_asking_is_said(tmp_path: Path) -> None:
    """Sequences have few targets or many: the mean over them is what training minimises."""
    write_shakespeare(tmp_path)
    given = (*SPEECHES, "K=6", "algorithm=fedavg", "C=0.5", "J=1", "batch_size=1", "samples=30", "precision=fp64", f"data={tmp_path}")
    lines: list[str] = []
    run = Trainer(experiment(*given, "participation=power_of_choice", "participation.d=6"), engine="loop", notify=lines.append)
    ids = np.arange(6)
    found = run.questions.answer(run.member, run.state.model[0], ids, None)
    for client, loss in enumerate(found):
        totals = run.group.engine.evaluate(run.state.model, run.split.train, torch.from_numpy(run.member.shards[client]))[0]
        assert loss == pytest.approx(float(totals[0] / totals[2]), rel=1e-12)
    run.questions.answer(run.member, run.state.model[0], ids, None)
    (line,) = lines
    assert f"asks for the losses of {len(run.split.train)} samples before a round that trains 3;" in line


def test_the_loss_of_a_round_is_the_mean_over_the_targets_there_are(tmp_path: Path) -> None:
    """Sequences are padded: what the rule for local steps is told is the training loss of the metrics."""
    write_shakespeare(tmp_path)
    given = (*SPEECHES, "K=6", "algorithm=localsgd", "J=2", "batch_size=2", "samples=120", "precision=fp64", "local_steps=loss")
    run = Trainer(experiment(*given, f"data={tmp_path}"), engine="loop")
    told: list[float] = []
    rule = run.member.experiment.local_steps
    rule.observe = lambda measured, *rest: told.append(measured.loss)  # type: ignore[method-assign]
    run.run_round()
    targets = float(run.group.buffers.meter[:, 2].sum())
    assert 0 < targets < 0.9 * run.member.samples * run.member.experiment.card.targets, "else the test says nothing"
    assert told == [pytest.approx(run.evaluate()[0]["train/loss"], rel=1e-12)]
    assert describe(run.member.experiment)["revisions"]["counted_loss"] == 2


def test_the_last_evaluation_of_a_large_set_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_hydra.training.text.GLANCE", 50)
    write_shakespeare(tmp_path)
    given = (*WINDOWS, "K=4", "algorithm=fedavg", "C=0.5", "J=1", "samples=16", f"data={tmp_path}")
    lines: list[str] = []
    run = Trainer(experiment(*given), engine="loop", notify=lines.append)
    run.run_round()
    run.evaluate()
    assert lines == []
    run.run_round()
    run.evaluate()
    (line,) = lines
    assert f"looks at {len(run.split.validation) + len(run.split.test):,} samples" in line


def test_there_are_as_many_clients_as_users_unless_said_otherwise(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    given = ("algorithm=fedavg", f"data={tmp_path}")
    assert experiment(*WINDOWS, *given).K == 4 and experiment(*SPEECHES, *given).K == 6
    assert experiment(*WINDOWS, *given, "sharding=iid").K == 4, "what is compared has as many clients"
    assert experiment(*given).K == 100 and experiment(*WINDOWS, *given, "sharding=iid", "K=3").K == 3
    assert experiment(*WINDOWS, f"data={tmp_path}", "algorithm=centralized").K == 1


def test_a_budget_on_the_command_line_is_in_place_of_a_sections(program: Program, tmp_path: Path) -> None:
    write_shakespeare(tmp_path / "text")
    grid = ("-m", "+sweep/track_b=shakespeare", "dataset.users=4", "dataset.min_samples=900", *SMALL, "C=0.5", "J=1", "seed=1")
    result = program(*grid, "K=4", "rounds=2", f"data={tmp_path / 'text'}", cwd=tmp_path)
    assert result.status == 0, result.output
    assert [json.loads(path.read_text())["metrics"]["round"] for path in tmp_path.rglob("summary.json")] == [2, 2]
