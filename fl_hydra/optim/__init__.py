"""Local optimizers as rules over rows, and learning-rate schedules. `LARS` and `LAMB` are optimizers for any PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_hydra.optim.torch_optim.layerwise import LAMB, LARS

__all__ = ["LAMB", "LARS"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only on first use."""
    if name in __all__:
        from fl_hydra.optim.torch_optim import layerwise

        return getattr(layerwise, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
