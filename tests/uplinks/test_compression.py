"""Every uplink: what arrives, what is kept back, what it takes on the wire, and that runs do not depend on how they are trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.errors import UserError
from fl_hydra.files import read_verified, write_verified
from fl_hydra.resolving import resolve
from fl_hydra.runs.packing import shape
from fl_hydra.training.trainer import Trainer
from fl_hydra.uplinks.base import uplinks
from fl_hydra.uplinks.feedback import Feedback
from fl_hydra.uplinks.qsgd import DRAWS, QSGD
from fl_hydra.uplinks.randomk import RandomK
from fl_hydra.uplinks.sign import Sign
from fl_hydra.uplinks.topk import TopK
from tests.support.make import config, experiment, trainer
from tests.support.packs import assert_same, train

SMALL = ("algorithm=fedavg", "K=6", "C=0.5", "J=2", "rounds=4", "batch_size=8", "model.filters=1", "model.hidden=4", "evaluation.points=1")
EXACT = (*SMALL, "precision=fp64")
NAMES = [name for name in uplinks if name != "none"]
FEEDBACK = [TopK(fraction=0.3), RandomK(fraction=0.3), Sign()]


def streams(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def rounds(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize("uplink", FEEDBACK, ids=lambda uplink: uplink.name)
def test_what_is_sent_and_what_is_held_back_add_up(uplink: Feedback) -> None:
    """Whatever is sent, and in whatever draws: the sum of what arrived and the error is the sum of what was to be sent."""
    error, arrived, given = (torch.zeros(2, 20, dtype=torch.float64) for _ in range(3))
    for step in range(5):
        vectors = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        given = given + vectors
        uplink.encode(vectors, {"error": error}, streams(2 * step, 2 * step + 1))
        arrived = arrived + vectors
    assert error.abs().max() > 0.1
    torch.testing.assert_close(arrived + error, given, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["topk", "randomk", "sign"])
def test_errors_of_clients_are_what_the_server_lacks(name: str) -> None:
    """In the real loop, in which one round of SGD with and without the uplink differs by the mean of the clients' errors."""
    settings = (*EXACT, "K=3", "C=1", "rounds=1", "optimizer=sgd")
    plain, compressed = (rounds(trainer(*settings, *more)) for more in ((), (f"uplink={name}",)))
    errors = compressed.sole_run.clients.read(np.arange(3), "uplink..error")
    weights = torch.from_numpy(compressed.sole_run.shard_sizes / compressed.sole_run.shard_sizes.sum())
    torch.testing.assert_close(compressed.state.model + weights @ errors, plain.state.model, rtol=0, atol=1e-14)


@pytest.mark.parametrize("more", [("uplink=topk",), ("uplink=randomk",), ("uplink=randomk", "uplink.error_feedback=false")])
def test_an_uplink_that_keeps_everything_is_none(more: tuple[str, ...]) -> None:
    plain, full = (rounds(trainer(*EXACT, *choice)) for choice in ((), (*more, "uplink.fraction=1")))
    torch.testing.assert_close(plain.state.model, full.state.model, rtol=1e-12, atol=1e-12)
    assert plain.sole_run.traffic == full.sole_run.traffic


def test_random_entries_are_a_uniform_set_that_depends_on_the_client_alone() -> None:
    rows = 4000
    uplink = RandomK(fraction=0.4, error_feedback=False)
    vectors = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64).repeat(rows, 1)
    uplink.encode(vectors, {}, torch.arange(rows))
    sent = vectors != 0
    assert (sent.sum(1) == 2).all()
    assert vectors[sent].unique().tolist() == [2.5, 5, 7.5, 10, 12.5], "width / k = 2.5 times the entry"
    counts = [int((sent[:, a] & sent[:, b]).sum()) for a, b in itertools.combinations(range(5), 2)]
    deviation = (rows * 0.1 * 0.9) ** 0.5
    assert max(abs(count - rows / 10) for count in counts) < 4 * deviation, "each of ten pairs is as likely"
    alone = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64)
    uplink.encode(alone, {}, streams(17))
    assert torch.equal(alone[0], vectors[17])


def test_random_entries_without_feedback_are_unbiased_over_all_sets() -> None:
    """By enumeration: each pair of five entries once, as keys say that order them so."""
    vector, total = torch.tensor([3.0, -1.0, 0.5, 2.0, -4.0], dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    seen: dict[tuple[int, ...], Tensor] = {}
    for stream in range(200):
        sent = vector[None].clone()
        RandomK(fraction=0.4, error_feedback=False).encode(sent, {}, streams(stream))
        seen[tuple(sent[0].nonzero().flatten().tolist())] = sent[0]
    assert sorted(seen) == list(itertools.combinations(range(5), 2))
    for sent in seen.values():
        total += sent
    torch.testing.assert_close(total / len(seen), vector, rtol=0, atol=1e-15)


def test_quantization_is_unbiased_over_all_draws() -> None:
    """By enumeration: a norm of 13 and s = 2 levels, so that entries are 6/13, 8/13 and 24/13 levels; draws are thirteenths."""
    uplink = QSGD(levels=2, bucket=None)
    vector = torch.tensor([[3.0, -4.0, 12.0, 0.0]], dtype=torch.float64)
    draws = ((torch.arange(13, dtype=torch.float64) + 0.5) / 13)[:, None].expand(13, 4)
    sent = uplink.quantized(vector.expand(13, 4), draws)
    assert sent.unique().tolist() == [-6.5, 0, 6.5, 13]
    torch.testing.assert_close(sent.mean(0), vector[0], rtol=0, atol=1e-14)


def test_draws_of_quantization_are_those_of_the_client_and_the_entry() -> None:
    """The mean over many clients with the same vector is the vector; a client's draws do not depend on who is beside it."""
    uplink, rows = QSGD(levels=1, bucket=4), 20_000
    vector = torch.tensor([[3.0, -1.0, 0.5, 2.0, -4.0, 1.0]], dtype=torch.float64)
    vectors = vector.repeat(rows, 1)
    uplink.encode(vectors, {}, torch.arange(rows))
    norms = torch.tensor([vector[0, :4].norm()] * 4 + [vector[0, 4:].norm()] * 2, dtype=torch.float64)
    deviation = ((norms * vector[0].abs() - vector[0] ** 2) / rows).sqrt()
    assert ((vectors.mean(0) - vector[0]).abs() < 4 * deviation).all()
    alone = vector.clone()
    uplink.encode(alone, {}, streams(123))
    assert torch.equal(alone[0], vectors[123])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantization_of_what_lies_on_a_level(dtype: torch.dtype) -> None:
    """Nothing exceeds the norm, a lone entry is exact, and zeros stay zeros."""
    vectors = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]], dtype=dtype)
    for stream in range(50):
        sent = vectors.clone()
        QSGD(levels=5).encode(sent, {}, streams(*[stream] * 3))
        torch.testing.assert_close(sent, vectors, rtol=1e-6, atol=0)
    top = QSGD(levels=3).quantized(torch.tensor([[1e-3]], dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    torch.testing.assert_close(top, torch.tensor([[1e-3]], dtype=dtype))
    assert torch.tensor((DRAWS - 1) / DRAWS, dtype=dtype) < 1


def test_signs_have_the_mean_as_their_scale() -> None:
    vectors = torch.tensor([[1.0, -2.0, 0.0, 5.0]], dtype=torch.float64)
    Sign(error_feedback=False).encode(vectors, {}, streams(0))
    assert vectors.tolist() == [[2, -2, 2, 2]]


SIZES = [
    (TopK(fraction=0.1), 4, 10 * 8),
    (TopK(fraction=0.9), 4, 400),
    (RandomK(fraction=0.1), 4, 10 * 4),
    (RandomK(fraction=0.1), 8, 10 * 8),
    (Sign(), 4, 13 + 4),
    (QSGD(levels=7, bucket=None), 4, 50 + 4),
    (QSGD(levels=7, bucket=32), 4, 50 + 4 * 4),
    (QSGD(levels=1, bucket=512), 8, 25 + 8),
    (QSGD(levels=2, bucket=None), 4, 38 + 4),
    (uplinks["dp"](), 4, 400),
]


@pytest.mark.parametrize(("uplink", "each", "size"), SIZES, ids=lambda value: getattr(value, "name", str(value)))
def test_bytes_of_a_hundred_entries(uplink: TopK, each: int, size: int) -> None:
    assert uplink.size(100, each) == size
    assert uplink.size(0, each) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_charges_what_is_sent_once(name: str) -> None:
    """Of every client that reports, in a run whose last round is cut; the model goes down as it is."""
    run = rounds(trainer(*SMALL, "rounds=null", "samples=100", f"uplink={name}", *([] if name == "dp" else ["participation.dropout=0.6"])))
    size, traffic = run.group.layout.size, run.sole_run.traffic
    reports = traffic.messages - 3 * 3
    assert run.sole_run.round == 3 and (reports == 9) == (name == "dp")
    assert traffic.bytes_down == 9 * size * 4
    assert traffic.bytes_up == reports * run.sole_run.experiment.uplink.size(size, 4)


@pytest.mark.parametrize("name", NAMES)
def test_engines_and_blocks_agree(name: str) -> None:
    """Draws belong to a client, not to its place; of the same numbers but for the last bits the same are sent."""
    e = experiment(*EXACT, "rounds=null", "samples=150", f"uplink={name}")
    loop, stacked, blocks = (
        rounds(Trainer(e, engine=engine, rows_at_once=rows)) for engine, rows in (("loop", None), ("stacked", None), ("stacked", 2))
    )
    torch.testing.assert_close(loop.state.model, stacked.state.model, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(loop.state.model, blocks.state.model, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_packed_runs_are_the_runs_alone(name: str) -> None:
    settings = [
        (*SMALL, "rounds=null", f"uplink={name}", *own) for own in (("samples=150", "seed=1"), ("samples=100", "optimizer.lr=0.03"))
    ]
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine="stacked"))
    for one in [row for s in settings for row in train(trainer(*s, engine="stacked"))]:
        (other,) = [row for row in together if (row["seed"], row["samples"], row["lr"]) == (one["seed"], one["samples"], one["lr"])]
        assert_same(other, one)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_exactly_from_its_files(name: str, tmp_path: Path) -> None:
    e = experiment(*SMALL, f"uplink={name}")
    whole = rounds(Trainer(e, client_folders=[tmp_path / "whole"]))
    begun, resumed = (Trainer(e, client_folders=[tmp_path / "clients"]) for _ in range(2))
    for _ in range(2):
        begun.run_round()
    write_verified(tmp_path / "checkpoint.pt", begun.checkpoint())
    resumed.restore(read_verified(tmp_path / "checkpoint.pt"))
    rounds(resumed)
    assert torch.equal(resumed.state.model, whole.state.model)
    assert resumed.evaluate() == whole.evaluate()


def test_each_vector_that_a_client_sends_has_draws_of_its_own() -> None:
    """SCAFFOLD sends two: the entries that are drawn for them are not the same ones."""
    run = trainer(*EXACT, "algorithm=scaffold", "algorithm.control_option=1", "optimizer=sgd", "uplink=randomk", "uplink.fraction=0.5")
    run.run_round()
    ids = np.flatnonzero(run.sole_run.cursors)
    model, control = (run.sole_run.clients.read(ids, f"uplink.{name}.error") != 0 for name in ("", "control"))
    assert 0.3 < model[control].double().mean() < 0.7, "of what is withheld of one, half is sent of the other"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("randomk", "uplink.fraction=0"), "uplink.fraction=0.0: the fraction of entries that is sent must be above 0 and at most 1"),
        (("qsgd", "uplink.levels=0"), "uplink.levels=0: choose 1"),
        (("qsgd", "uplink.bucket=0"), "uplink.bucket=0: at least 1 entry has a norm; null: all have one norm"),
    ],
)
def test_mistakes(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        resolve(config("algorithm=fedavg", f"uplink={words[0]}", *words[1:]))
