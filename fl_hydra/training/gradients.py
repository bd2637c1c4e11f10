"""The gradients that a method's local step computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fl_hydra.seams.rows import Batch, Loss, Outputs
from fl_hydra.training.engines import Engine
from fl_hydra.training.losses import Objective


class RowGradient:
    """:class:`fl_hydra.seams.rows.Gradient`, computed by an engine.

    Args:
        engine: computes. watch: called with the first metered gradient [rows, P]; or None.
    """

    def __init__(self, engine: Engine, watch: Callable[[Tensor], None] | None = None) -> None:
        self._engine, self._watch = engine, watch

    def __call__(
        self,
        parameters: Tensor,
        batch: Batch,
        loss: Loss | None = None,
        *,
        whole: bool = False,
        metered: bool = True,
        samples: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        if loss is None and metered:
            gradient = self._engine.gradient(parameters, batch)
        else:
            gradient = self._engine.gradient(parameters, batch, _objective(loss, whole, samples, inputs), metered=metered)
        if metered and self._watch is not None:
            self._watch(gradient)
            self._watch = None
        return gradient

    def outputs(self, parameters: Tensor, batch: Batch) -> Outputs:
        return self._engine.outputs(parameters, batch)

    def product(
        self,
        parameters: Tensor,
        vectors: Tensor,
        batch: Batch,
        loss: Loss | None = None,
        *,
        whole: bool = False,
        samples: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        return self._engine.product(parameters, vectors, batch, _objective(loss, whole, samples, inputs))


def _objective(loss: Loss | None, whole: bool, samples: Mapping[str, Tensor] | None, inputs: dict[str, Tensor]) -> Objective | None:
    return None if loss is None else Objective(loss, whole, inputs, dict(samples or {}))
