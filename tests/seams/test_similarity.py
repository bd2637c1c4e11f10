"""Similarities of representations, and groups of similar ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.randomness import generator
from fl_hydra.seams.similarity import agreement, cka, gram, k_means


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "test").standard_normal(shape))


def test_cka_is_1_of_itself_and_blind_to_rotation_and_scale() -> None:
    x, y = drawn(30, 7), drawn(30, 4, seed=1)
    rotation, _ = torch.linalg.qr(drawn(7, 7, seed=2))
    assert float(cka(x, x)) == pytest.approx(1, abs=1e-14)
    assert float(cka(x, x @ rotation)) == pytest.approx(1, abs=1e-14)
    assert float(cka(3 * x @ rotation + 5, y)) == pytest.approx(float(cka(x, y)), abs=1e-14)
    assert 0 < float(cka(x, y)) < 0.5
    stretched = x * torch.arange(1, 8)
    assert float(cka(x, stretched)) < 0.99, "an invertible map changes it, unlike CCA"
    assert float(cka(x, torch.ones(30, 3))) == 0, "constant features are like nothing"
    images = drawn(30, 2, 3, 3)
    assert float(cka(images, images.flatten(1))) == pytest.approx(1, abs=1e-14)


def test_cka_is_that_of_kornblith_et_al() -> None:
    """Equation 5 of section 3: with centred features |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms."""
    x, y = drawn(20, 5), drawn(20, 6, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    assert float(cka(x, y)) == pytest.approx(float((y.mT @ x).norm() ** 2 / ((x.mT @ x).norm() * (y.mT @ y).norm())), abs=1e-14)
    assert float((gram(x) - gram(y)).square().sum()) == pytest.approx(2 - 2 * float(cka(x, y)), abs=1e-13)


def test_k_means_finds_what_is_apart_whatever_it_begins_with() -> None:
    points = torch.cat([drawn(6, 3) * 0.1, drawn(5, 3, seed=1) * 0.1 + 4])
    for seed in range(5):
        found = k_means(points, 2, np.random.default_rng(seed))
        assert len(set(found[:6].tolist())) == len(set(found[6:].tolist())) == 1 and found[0] != found[-1]
    assert k_means(points, 20, np.random.default_rng(0)).tolist() != [], "more clusters than points"
    again = [k_means(drawn(12, 3), 3, np.random.default_rng(1)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_agreement_is_the_mean_cosine() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    other = torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    assert float(agreement(one, other)) == 0.5
