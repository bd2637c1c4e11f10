"""What every division keeps to, what is refused, and what runs write of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError
from fl_hydra.randomness import generator
from fl_hydra.report.runs import Run
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.sharding import dirichlet_classes
from fl_hydra.sharding.base import Sharding
from fl_hydra.sharding.classes import Classes
from fl_hydra.sharding.dirichlet import Dirichlet
from fl_hydra.sharding.dirichlet_classes import DirichletClasses
from fl_hydra.sharding.iid import IID
from fl_hydra.sharding.natural import Natural
from fl_hydra.sharding.proportions import in_proportion, log_dirichlet
from fl_hydra.sharding.quantity import Quantity
from tests.conftest import Program
from tests.support.divisions import CIFAR_COUNTS, DIGIT_COUNTS, assert_partition, labels_of
from tests.support.make import experiment


@pytest.mark.parametrize("K", [1, 2, 7, 100, 1295])
def test_iid_shards(K: int) -> None:
    assert_partition(IID().shards(SampleOwners.of_labels(labels_of(DIGIT_COUNTS)), K, None, seed=3), 1295, K)


SHARDINGS = [
    IID(),
    *(Dirichlet(alpha=alpha) for alpha in (0, 1e-9, 0.05, 0.5, 10, 1e9)),
    *(DirichletClasses(alpha=alpha, equal=True) for alpha in (1e-6, 0.05, 0.5, 100)),
    *(DirichletClasses(alpha=alpha) for alpha in (1, 100)),
    *(Quantity(alpha=alpha) for alpha in (1e-6, 0.5, 100)),
]


@pytest.mark.parametrize("sharding", SHARDINGS, ids=str)
@pytest.mark.parametrize("K", [1, 2, 7, 100])
@pytest.mark.parametrize("counts", [DIGIT_COUNTS, [300, 0, 7, 1, 150]], ids=["digits", "uneven"])
def test_every_sample_goes_to_one_client(sharding: Sharding, K: int, counts: Any) -> None:
    """Equal sizes where they are promised, and at least one sample for each client."""
    labels = labels_of(counts)
    equal = not isinstance(sharding, Quantity) and getattr(sharding, "equal", True)
    for seed in range(3):
        try:
            sharding.check(SampleCounts.of_classes(np.array(counts)), K, None, seed)
        except UserError:
            assert isinstance(sharding, DirichletClasses) and K == 100
            continue
        assert_partition(sharding.shards(SampleOwners.of_labels(labels), K, None, seed), len(labels), K, equal)


@pytest.mark.parametrize("sharding", [s for s in SHARDINGS if not isinstance(s, DirichletClasses) or s.equal], ids=str)
def test_a_sample_for_each_client(sharding: Sharding) -> None:
    """As many clients as samples, the most there can be."""
    labels = labels_of([5, 9, 16])
    assert_partition(sharding.shards(SampleOwners.of_labels(labels), 30, None, 0), 30, 30)


@pytest.mark.parametrize("sharding", [IID(), Classes(), Dirichlet(), DirichletClasses(), DirichletClasses(equal=True), Quantity()], ids=str)
def test_shards_are_a_function_of_the_seed(sharding: Sharding) -> None:
    one, same, other = (sharding.shards(SampleOwners.of_labels(labels_of(DIGIT_COUNTS)), 20, 2, seed) for seed in (0, 0, 1))
    assert (one.indices.tolist(), one.offsets.tolist()) == (same.indices.tolist(), same.offsets.tolist())
    assert one.indices.tolist() != other.indices.tolist()


def test_natural_clients_are_the_users() -> None:
    users = np.array([2, 0, 0, 1, 2, 2, 0])
    sample_owners, sample_counts = SampleOwners(7, users=users), SampleCounts(7, users=np.bincount(users))
    Natural().check(sample_counts, 3, None, seed=0)
    shards = Natural().shards(sample_owners, 3, None, seed=0)
    assert [shards[k].tolist() for k in range(3)] == [[1, 2, 6], [3], [0, 4, 5]]


SAMPLE_COUNTS = SampleCounts.of_classes(DIGIT_COUNTS)
USERS = SampleCounts(700, users=np.full(100, 7))
REFUSED: list[tuple[Sharding, SampleCounts, int, str]] = [
    (
        Natural(),
        USERS,
        50,
        "K=50: sharding=natural has a client for each of the 100 users of the dataset; choose K=100, dataset.users=50 or sharding=iid",
    ),
    (Natural(), SAMPLE_COUNTS, 10, "this dataset has no users of its own; choose"),
    (Dirichlet(), USERS, 10, "sharding=dirichlet: divides by label"),
    (DirichletClasses(), USERS, 10, "sharding=dirichlet_classes: divides by label"),
    (Classes(), USERS, 10, "sharding=classes: divides by label"),
    *((sharding, SAMPLE_COUNTS, 1296, "choose K from 1 to 1295") for sharding in (Dirichlet(), DirichletClasses(), Quantity())),
    (DirichletClasses(equal=True), SAMPLE_COUNTS, 1296, "choose K from 1 to 1295"),
    (
        Quantity(min_size=20),
        SAMPLE_COUNTS,
        100,
        "2000 samples would be needed and there are 1295; choose sharding.min_size from 1 to 12, or K from 1 to 64",
    ),
    (DirichletClasses(min_size=20), SAMPLE_COUNTS, 100, "choose sharding.min_size from 1 to 12"),
    (Quantity(min_size=2000), SAMPLE_COUNTS, 10, "choose sharding.min_size from 1 to 129"),
    (DirichletClasses(alpha=0.01), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
    (DirichletClasses(alpha=0.5, min_size=10), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
    (DirichletClasses(alpha=1, min_size=12), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
]


@pytest.mark.parametrize(("sharding", "sample_counts", "K", "says"), REFUSED)
def test_what_cannot_be_met_is_refused_in_one_line(sharding: Sharding, sample_counts: SampleCounts, K: int, says: str) -> None:
    with pytest.raises(UserError) as refused:
        sharding.check(sample_counts, K, 2, seed=0)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("alpha", "min_size"), [(0.01, 1), (0.5, 10), (1, 12)])
def test_what_is_offered_for_a_smallest_size_works(alpha: float, min_size: int) -> None:
    sharding = DirichletClasses(alpha=alpha, min_size=min_size)
    with pytest.raises(UserError) as refused:
        sharding.check(SAMPLE_COUNTS, 100, None, seed=0)
    *options, last = str(refused.value).split("choose ")[1].replace(" or ", ", ").split(", ")
    assert last == "sharding.equal=true"
    assert options
    for option in options:
        key, value = option.removeprefix("sharding.").split("=")
        number = float(value)
        better = DirichletClasses(
            alpha=number if key == "alpha" else alpha,
            min_size=int(number) if key == "min_size" else min_size,
        )
        better.check(SAMPLE_COUNTS, int(number) if key == "K" else 100, None, seed=0)


@pytest.mark.parametrize(("min_size", "seed", "draws"), [(5, 0, 1), (6, 2, 6), (6, 0, 10), (7, 1, 49)])
def test_draws_go_on_until_every_client_has_enough(min_size: int, seed: int, draws: int) -> None:
    """However unlikely that has become: these are the first of a hundred draws that suffice, and those before them do not."""
    counts, concentration = DIGIT_COUNTS, np.full((10, 100), 1.0)
    smallest = []
    for draw in range(draws):
        rng = generator(seed, "shards-dirichlet-classes", draw)
        taken = in_proportion(rng, np.exp(log_dirichlet(rng, concentration)), counts)
        smallest.append(taken.sum(0).min())
    assert max(smallest[:-1], default=0) < min_size <= smallest[-1]
    found = DirichletClasses(alpha=1, min_size=min_size).divide(counts, 100, seed)
    assert np.array_equal(found.taken, taken.T)
    assert found.draws == draws


@pytest.mark.parametrize(("alpha", "min_size", "K"), [(0.01, 1, 3000), (0.5, 5, 5000), (100, 15, 3000), (0.1, 40, 1000)])
def test_what_cannot_be_met_is_refused_after_few_draws(alpha: float, min_size: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred of each of twenty settings took minutes. Counted in numbers, not in seconds, as a search depends on no clock."""
    drawn: list[int] = []

    def counted(rng: np.random.Generator, concentration: Any) -> Any:
        drawn.append(concentration.size)
        return log_dirichlet(rng, concentration)

    monkeypatch.setattr(dirichlet_classes, "log_dirichlet", counted)
    with pytest.raises(UserError, match="clients or more had fewer samples; choose"):
        DirichletClasses(alpha=alpha, min_size=min_size).check(SampleCounts.of_classes(CIFAR_COUNTS), K, None, seed=0)
    assert sum(drawn) < 25 * 100 * K


@pytest.mark.parametrize("alpha", [-1, -1e-9, float("nan"), float("inf"), 1e10])
@pytest.mark.parametrize("kind", [Dirichlet, DirichletClasses, Quantity])
def test_concentrations_out_of_range_are_refused(kind: Any, alpha: float) -> None:
    with pytest.raises(UserError, match=r"^sharding\.alpha=\S+: the concentration of sharding=\w+ is from"):
        kind(alpha=alpha)


@pytest.mark.parametrize("kind", [DirichletClasses, Quantity])
def test_zero_is_no_concentration_or_size(kind: Any) -> None:
    with pytest.raises(UserError, match=r"is from 1e-100"):
        kind(alpha=0)
    with pytest.raises(UserError, match=r"sharding\.min_size=0: every client needs at least 1 sample"):
        kind(min_size=0)


NAMES = {
    "": ("K100-C0.1-J4-B64", "FedAvg K=100 C=0.1 J=4, iid"),
    "sharding=classes N_c=2": ("K100-C0.1-J4-Nc2-B64", "FedAvg K=100 C=0.1 J=4, N_c=2"),
    "sharding=dirichlet sharding.alpha=0": ("K100-C0.1-J4-alpha0-B64", "FedAvg K=100 C=0.1 J=4, alpha=0"),
    "sharding=dirichlet sharding.alpha=1000": ("K100-C0.1-J4-alpha1000-B64", "FedAvg K=100 C=0.1 J=4, alpha=1000"),
    "sharding=dirichlet_classes sharding.alpha=10": ("K100-C0.1-J4-classalpha10-B64", "FedAvg K=100 C=0.1 J=4, per-class alpha=10"),
    "sharding=dirichlet_classes sharding.equal=true": (
        "K100-C0.1-J4-classalpha0.5eq-B64",
        "FedAvg K=100 C=0.1 J=4, per-class alpha=0.5 equal",
    ),
    "sharding=quantity": ("K100-C0.1-J4-quantity0.5-B64", "FedAvg K=100 C=0.1 J=4, quantity alpha=0.5"),
}


@pytest.mark.parametrize("overrides", NAMES)
def test_folders_and_labels_tell_divisions_apart(overrides: str) -> None:
    e = experiment("algorithm=fedavg", *overrides.split())
    folder, label = NAMES[overrides]
    assert run_folder(e, Path("outputs")).name.startswith(f"{folder}-s0-")
    assert Run(Path("nowhere"), describe(e), [{}], "finished").label == label


def test_a_smallest_size_is_in_the_name_only_where_it_has_an_effect() -> None:
    def names(*overrides: str) -> set[str]:
        return {run_hash(experiment("algorithm=fedavg", "K=4", *overrides, f"sharding.min_size={size}")) for size in (1, 2)}

    assert len(names("sharding=dirichlet_classes")) == len(names("sharding=quantity")) == 2
    assert len(names("sharding=dirichlet_classes", "sharding.equal=true")) == 1
    DirichletClasses(min_size=10**6, equal=True).check(SAMPLE_COUNTS, 10, None, seed=0)


@pytest.mark.parametrize("sharding", ["dirichlet sharding.alpha=0.3", "dirichlet_classes sharding.equal=true", "quantity"])
def test_a_run_on_unequal_clients(sharding: str, program: Program, tmp_path: Path) -> None:
    result = program("algorithm=fedavg", *f"sharding={sharding}".split(), "K=10", "rounds=3", "evaluation.points=1", cwd=tmp_path)
    assert result.status == 0, result.output
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["metrics"]["round"] == 3


def test_a_run_writes_what_its_clients_hold(program: Program, tmp_path: Path) -> None:
    words = ("algorithm=fedavg", "K=20", "C=0.2", "rounds=2", "sharding=classes", "N_c=2", "participation=skewed", "gamma=0.5")
    assert program(*words, cwd=tmp_path).status == 0
    (path,) = tmp_path.glob("outputs/digits/fedavg/*/clients.json")
    held = json.loads(path.read_text())
    counts = np.array(held["counts"])
    assert held["kind"] == "classes" and counts.shape == (20, len(held["names"]))
    assert ((counts > 0).sum(1) == 2).all()
    assert counts.sum(1).tolist() == held["sizes"]
    assert sum(held["probabilities"]) == pytest.approx(1.0) and len(set(held["probabilities"])) == 20
