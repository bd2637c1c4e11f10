"""What clients are judged on: shares of the validation and test sets, their own samples of a text, or what is withheld of their shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.resolving import notes, resolve
from fl_hydra.runs.identity import describe, revisions_of, run_hash
from fl_hydra.training.personal_evaluation import PersonalScores
from fl_hydra.training.trainer import Trainer
from tests.support.make import config, experiment, trainer, write_shakespeare
from tests.support.personal import FIGURES

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3", "evaluation.points=2")
BASE = ("algorithm=fedavg", *SMALL, "model.filters=2", "model.hidden=8")


def trained(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def test_of_a_global_model_weighted_figures_are_its_own() -> None:
    """Every test sample is dealt to one client, and all clients have the same model: so the weighted mean is that over all samples."""
    plain, run = trained(trainer(*BASE)), trained(trainer(*BASE, "evaluation.personal=dealt"))
    before, figures = plain.evaluate()[0], run.evaluate()[0]
    assert {name: figures[name] for name in before} == before, "training and the global figures are as without"
    for name, samples in (("val", run.split.validation), ("test", run.split.test)):
        assert sum(figures[f"personal/{name}/sizes"]) == len(samples)
        assert figures[f"personal/{name}/acc_weighted"] == pytest.approx(figures[f"{name}/acc"], abs=1e-12)
        accuracies, sizes = np.array(figures[f"personal/{name}/accs"]), np.array(figures[f"personal/{name}/sizes"])
        assert figures[f"personal/{name}/acc"] == pytest.approx(accuracies.mean(), abs=1e-12)
        assert float((accuracies * sizes).sum() / sizes.sum()) == pytest.approx(figures[f"{name}/acc"], abs=1e-12)


def test_what_is_evaluated_of_averaged_models_is_what_clients_are_judged_with() -> None:
    run = trainer(*BASE, "evaluation.personal=dealt", "swa.start=0.2", "swa.cycle=1")
    for _ in range(3):
        run.run_round()
    figures = run.evaluate()[0]
    assert run.sole_run.averaged is not None
    assert figures["personal/test/acc_weighted"] == pytest.approx(figures["test/acc"], abs=1e-12)


def test_lists_are_in_the_last_line_only() -> None:
    run = trainer("algorithm=fedper", *SMALL)
    run.run_round()
    assert not any(isinstance(value, list) for value in run.evaluate()[0].values())
    figures = trained(run).evaluate()[0]
    assert {name for name, value in figures.items() if isinstance(value, list)} == {
        f"personal/{name}/{list_}" for name in ("val", "test") for list_ in ("accs", "sizes")
    }


def test_figures_by_hand() -> None:
    """Of five clients the third has no samples and the last is held out."""
    scores = PersonalScores(
        np.array([1.0, 2.0, np.nan, 3.0, 9.0]), np.array([0.9, 0.5, np.nan, 0.1, 0.25]), np.array([2, 1, 0, 1, 4]), np.array([4])
    )
    assert scores.figures("p") == pytest.approx({**FIGURES, "p/acc_held_out": 0.25, "p/clients_held_out": 1})
    assert scores.by_client("p") == {"p/accs": [0.9, 0.5, None, 0.1, 0.25], "p/sizes": [2, 1, 0, 1, 4]}
    nobody = PersonalScores(np.full(2, np.nan), np.full(2, np.nan), np.zeros(2, np.int64)).figures("p")
    assert nobody["p/acc"] is None and nobody["p/clients"] == 0


def test_clients_without_samples_are_counted_out() -> None:
    run = trainer(*BASE, "K=100", "C=0.05", "sharding=iid", "evaluation.personal=dealt", "rounds=1")
    figures = trained(run).evaluate()[0]
    sizes, accuracies = figures["personal/val/sizes"], figures["personal/val/accs"]
    assert len(sizes) == 100 and sum(sizes) == len(run.split.validation) and 0 in sizes
    assert figures["personal/val/clients"] == sum(size > 0 for size in sizes) < 100
    assert [accuracy is None for accuracy in accuracies] == [size == 0 for size in sizes]


def test_withheld_samples_are_never_trained_with_and_are_judged_on() -> None:
    plain, run = trainer(*BASE), trainer(*BASE, "evaluation.personal=shards", "evaluation.shard_part=0.4")
    packed = run.sole_run
    withheld = {name: part for name, part in packed.withheld.items() if part is not None}
    held = {int(index) for part in withheld.values() for index in part.indices}
    assert held | set(packed.shards.indices.tolist()) == set(plain.sole_run.shards.indices.tolist())
    drawn = {int(index) for client in range(6) for index in packed.sampler.indices(client, 0, 500)}
    assert held and not drawn & held
    assert packed.facts.sizes.tolist() == packed.shards.sizes.tolist() == packed.facts.label_counts.sum(1).tolist()  # type: ignore[union-attr]
    figures = trained(run).evaluate()[0]
    assert figures["personal/test/sizes"] == withheld["test"].sizes.tolist()
    model = run.group.whole(run.state.model.clone(), run.state)
    for name, part in withheld.items():
        _, right, count = run.group.engine.evaluate(model, run.split.train, torch.from_numpy(np.sort(part.indices)))[0].tolist()
        assert figures[f"personal/{name}/acc_weighted"] == pytest.approx(right / count, abs=1e-12)
    _, right, count = run.group.engine.evaluate(model, run.split.test, torch.arange(len(run.split.test)))[0].tolist()
    assert figures["test/acc"] == pytest.approx(right / count, abs=1e-12), "the global figures are of the whole sets"


def test_held_out_clients_join_and_are_judged_apart() -> None:
    """Ditto's train a model of their own, from the server's; FedAvg's take what they are given."""
    held_out = ("evaluation.personal=dealt", "participation.held_out=4-5")
    runs = {
        (steps, method): trained(trainer(*BASE, *held_out, f"algorithm={method}", f"evaluation.joining_steps={steps}")).evaluate()[0]
        for steps, method in ((0, "ditto"), (5, "ditto"), (5, "fedavg"))
    }
    still, joined, given = runs.values()
    assert given["personal/test/accs"][4:] == still["personal/test/accs"][4:]
    assert still["personal/test/clients"] == 4 and still["personal/test/clients_held_out"] == 2
    for figures in runs.values():
        accuracies = figures["personal/test/accs"]
        assert figures["personal/test/acc"] == pytest.approx(np.mean(accuracies[:4]), abs=1e-12)
        assert figures["personal/test/acc_held_out"] == pytest.approx(np.mean(accuracies[4:]), abs=1e-12)
    sizes = np.array(given["personal/test/sizes"])
    assert float((np.array(given["personal/test/accs"]) * sizes).sum() / sizes.sum()) == pytest.approx(given["test/acc"], abs=1e-12)
    assert joined["personal/test/accs"][:4] == still["personal/test/accs"][:4], "others are judged as they are"
    assert joined["personal/test/acc_held_out"] > still["personal/test/acc_held_out"]


def test_names_of_runs() -> None:
    """What has no effect is not in a run's name: `dealt`, where the method has models of clients anyway, and numbers that nobody reads."""
    personal, plain = ("algorithm=fedper", *SMALL), BASE
    same = [run_hash(experiment(*personal, *words)) for words in ((), ("evaluation.personal=dealt",), ("evaluation.joining_steps=3",))]
    assert len(set(same)) == 1
    found = [
        run_hash(experiment(*plain, *words))
        for words in (
            (),
            ("evaluation.personal=dealt",),
            ("evaluation.personal=shards",),
            ("evaluation.personal=shards", "evaluation.shard_part=0.3"),
            ("participation.held_out=5",),
            ("participation.held_out=5", "evaluation.personal=dealt"),
            ("participation.held_out=5", "evaluation.personal=dealt", "evaluation.joining_steps=3"),
        )
    ]
    assert len(set(found)) == 7
    assert not {"personal", "shard_part", "joining_steps"} & describe(experiment(*plain)).keys()
    told = notes(config(*plain, "evaluation.shard_part=0.3", "evaluation.joining_steps=3"))
    assert [line.partition(" has no effect")[0] for line in told[:2]] == ["evaluation.shard_part", "evaluation.joining_steps"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("algorithm=localsgd", "evaluation.personal=dealt"), "algorithm=localsgd has workers; leave it out"),
        (("algorithm=centralized", "evaluation.personal=shards"), "algorithm=centralized has workers; leave it out"),
        (("algorithm=fedavg", "objective=personal/val/acc"), "judge clients with evaluation.personal=dealt"),
        (("algorithm=fedavg", "evaluation.personal=mine"), "choose dealt or shards"),
        (("algorithm=fedavg", "evaluation.shard_part=1"), "above 0 and below 1"),
        (("algorithm=fedavg", "evaluation.joining_steps=-1"), "must be 0 steps or more"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        resolve(config(*words, "rounds=2"))
    assert "\n" not in str(raised.value)
    resolve(config("algorithm=fedavg", "objective=personal/val/acc", "evaluation.personal=dealt", "rounds=2"))


def test_shards_too_small_to_withhold_anything_are_refused() -> None:
    with pytest.raises(UserError, match=r"no client has enough samples to withhold one, at most 3; choose a larger part"):
        trainer(
            "algorithm=fedavg", "K=600", "C=0.01", "rounds=1", "batch_size=8", "evaluation.personal=shards", "evaluation.shard_part=0.1"
        )


def test_runs_that_are_judged_in_other_ways_train_together() -> None:
    """Not one bit of a run depends on those beside it, whose clients are judged in another way or held out."""
    words = ((), ("evaluation.personal=dealt",), ("evaluation.personal=shards",), ("evaluation.personal=dealt", "participation.held_out=0"))
    experiments = [experiment(*BASE, *more) for more in words]
    together = trained(Trainer(*experiments, engine="stacked"))
    found = together.evaluate(range(4))
    for each, figures in zip(experiments, found, strict=True):
        assert trained(Trainer(each, engine="stacked")).evaluate()[0] == figures
    assert [any(name.startswith("personal/") for name in figures) for figures in found] == [False, True, True, True]


def test_users_of_a_text_are_judged_on_their_own_samples(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    text = ("dataset=shakespeare", "dataset.users=null", "dataset.min_samples=2", "model.hidden=4", "model.embedding=2")
    words = (*text, f"data={tmp_path}", "rounds=1", "J=1", "C=0.5", "evaluation.personal=dealt")
    e = experiment("algorithm=fedavg", *words)
    assert revisions_of(e)["own_shares"] == 2
    assert "own_shares" not in revisions_of(experiment("algorithm=fedavg", *words, "sharding=iid", "K=4"))
    run = trained(Trainer(e, engine="loop"))
    corpus, figures = e.dataset.load(e.data), run.evaluate()[0]  # type: ignore[attr-defined]
    assert figures["personal/test/sizes"] == np.bincount(corpus.test_users, minlength=e.K).tolist()
    assert figures["personal/test/acc_weighted"] == pytest.approx(figures["test/acc"], abs=1e-9)
    with pytest.raises(UserError, match="choose sharding=natural"):
        experiment("algorithm=fedavg", *words[:-1], "evaluation.personal=shards", "sharding=iid", "K=4")
    withheld = Trainer(experiment("algorithm=fedavg", *words[:-1], "evaluation.personal=shards"), engine="loop").sole_run
    test = withheld.withheld["test"]
    assert test is not None
    assert all(withheld.shards[client].max() < test[client].min() for client in range(e.K))
