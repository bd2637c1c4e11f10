"""The model with which a client is judged, as a module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fl_hydra.seams.rows import Outputs
from fl_hydra.training.engines import features_of
from fl_hydra.training.precision import Precision


class JudgedModel(nn.Module):
    """The logits with which a client predicts, in evaluation.

    Args:
        model: the client's, with its weights. precision: of the run. head: name of its last linear layer.
        predict: turns outputs [1, n, ...] into logits [choices, n, ...]; None: they are the model's. choice: which of them is used.
    """

    def __init__(
        self, model: nn.Module, precision: Precision, head: str | None, predict: Callable[[Outputs], Tensor] | None, choice: int
    ) -> None:
        super().__init__()
        self.model = model
        self._precision, self._head, self._predict, self._choice = precision, head, predict, choice
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [n, ...] for inputs [n, ...], normalised as in the run."""
        precision = self._precision
        if inputs.is_floating_point() and precision.compute is None:
            inputs = inputs.to(precision.master)
        with precision.active(inputs.device), features_of(self.model, self._head) as features:
            logits: Tensor = self.model(inputs)
        logits = logits.to(precision.master)
        if self._predict is None:
            return logits
        kept = features[-1].to(precision.master) if features else logits[..., :0]
        return self._predict(Outputs(logits[None], kept[None]))[self._choice]
