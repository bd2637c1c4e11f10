"""What is held out of clients' images."""

from __future__ import annotations

import numpy as np

from fl_hydra.data.held_out import held_of_clients, members_held


def test_each_client_gives_its_part_and_each_class_its_share() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 30, (200, 7))
    cells[:3] = 0
    cells[0, 2], cells[1, 3], cells[2, 4] = 1, 2, 5
    for fraction in (0.0, 0.1, 0.5, 0.9):
        held = held_of_clients(cells, fraction, seed=1)
        sizes = cells.sum(1)
        assert (held.sum(1) == np.minimum(np.rint(fraction * sizes), sizes - 1)).all()
        assert ((held >= 0) & (held <= cells)).all()
        share = held.sum(1, keepdims=True) * cells / sizes[:, None]
        assert (np.abs(held - share) < 1 + 1e-9).all(), "rounded up or down"
    assert (held_of_clients(cells, 0.5, 1) != held_of_clients(cells, 0.5, 2)).any()
    assert (held_of_clients(cells, 0.5, 1) == held_of_clients(cells, 0.5, 1)).all()


def test_over_seeds_classes_are_held_out_in_proportion() -> None:
    cells = np.array([[3, 5, 2]])
    mean = np.mean([held_of_clients(cells, 0.2, seed)[0] for seed in range(2000)], 0)
    np.testing.assert_allclose(mean, [0.6, 1.0, 0.4], atol=0.05)


def test_members_are_of_their_cell_and_distinct() -> None:
    rng = np.random.default_rng(0)
    labels, clients = rng.integers(0, 4, 300), rng.integers(0, 6, 300)
    cells = np.bincount(clients * 4 + labels, minlength=24).reshape(6, 4)
    held = held_of_clients(cells, 0.3, 0)
    chosen = np.concatenate(members_held(labels, clients, held, 0))
    assert len(set(chosen.tolist())) == held.sum()
    assert (np.bincount(clients[chosen] * 4 + labels[chosen], minlength=24).reshape(6, 4) == held).all()
    assert sorted(np.concatenate(members_held(labels, clients, held, 1)).tolist()) != sorted(chosen.tolist())
