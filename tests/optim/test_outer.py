"""Outer optimizers against torch.optim on the pseudo-gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.seams.clients import Clients
from tests.support.exact import assert_exact
from tests.support.make import PROJECT
from tests.support.small import HETEROGENEOUS, on_quadratics


@dataclass
class Watched(LocalSGD):
    """LocalSGD that remembers its last pseudo-gradient, old minus new: [1, P]."""

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        self.pseudo_gradient = state.model - mean
        super().outer(state, clients, mean)


TORCH_OUTER: list[tuple[str, Any, dict[str, Any]]] = [
    ("server=sgd", torch.optim.SGD, {"lr": 1.0}),
    ("server=sgd server.lr=0.6 server.momentum=0.5 server.weight_decay=0.1", torch.optim.SGD, {"lr": 0.6, "momentum": 0.5}),
    ("server=lookahead", torch.optim.SGD, {"lr": 0.5}),
    ("server=fedavgm", torch.optim.SGD, {"lr": 1.0, "momentum": 0.9}),
    ("server=nesterov", torch.optim.SGD, {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
    ("server=adam", torch.optim.Adam, {}),
    ("server=adam server.weight_decay=0.1 server.beta1=0.7", torch.optim.Adam, {"betas": (0.7, 0.999)}),
    ("server=adamw", torch.optim.AdamW, {}),
    ("server=adamw server.weight_decay=0.1", torch.optim.AdamW, {}),
    ("server=nadam", torch.optim.NAdam, {}),
    ("server=radam", torch.optim.RAdam, {}),
    ("server=adamax", torch.optim.Adamax, {}),
    ("server=adagrad", torch.optim.Adagrad, {}),
    ("server=rmsprop", torch.optim.RMSprop, {}),
    ("server=adadelta", torch.optim.Adadelta, {}),
]

OTHERS = {"slowmo", "fedadagrad", "fedadam", "fedyogi"}
"""Those that torch.optim does not have; test_slowmo.py and test_fedopt.py are about them."""


@pytest.mark.parametrize(("settings", "torch_class", "keywords"), TORCH_OUTER, ids=[settings for settings, _, _ in TORCH_OUTER])
def test_outer_optimizer_is_torchs_on_the_pseudo_gradient(settings: str, torch_class: Any, keywords: dict[str, Any]) -> None:
    algorithm = Watched()
    run, _ = on_quadratics(*settings.split(), "algorithm=localsgd", "K=2", "J=3", "rounds=8", a=HETEROGENEOUS, algorithm=algorithm)
    reference = run.state.model[0].clone().requires_grad_()
    decay = {"weight_decay": 0.1} if "weight_decay" in settings else {}
    torch.set_default_dtype(torch.float64)  # of scalars that torch.optim keeps, such as NAdam's product
    try:
        optimizer = torch_class([reference], **keywords, **decay)
        while not run.finished:
            run.run_round()
            reference.grad = algorithm.pseudo_gradient[0].clone()
            optimizer.step()
            assert_exact(run.state.model[0], reference.detach())
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_outer_optimizer_is_compared() -> None:
    shipped = {file.stem for file in (PROJECT / "conf" / "server").glob("*.yaml")}
    assert {settings.split()[0].removeprefix("server=") for settings, _, _ in TORCH_OUTER} == shipped - OTHERS


def test_outer_clipping_bounds_the_pseudo_gradient() -> None:
    algorithm = Watched()
    run, _ = on_quadratics("algorithm=localsgd", "K=2", "J=3", "rounds=2", "server.clip=0.01", a=HETEROGENEOUS, algorithm=algorithm)
    run.run_round()
    assert algorithm.pseudo_gradient.norm() > 0.01
    assert float(run.state.model.norm()) == pytest.approx(0.01, rel=1e-3)
