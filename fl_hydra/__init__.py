"""fl_hydra: distributed and federated learning experiments, composed with Hydra and trained with PyTorch.

From a notebook or a script: :func:`run` trains, or finds, and :func:`load` opens what was trained (`docs/python.md`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_hydra.api import Run, RunFailed, load, run
    from fl_hydra.errors import UserError

__all__ = ["Run", "RunFailed", "UserError", "load", "run"]


def __getattr__(name: str) -> Any:
    """Hydra and the rest are imported on first use."""
    if name in __all__:
        from fl_hydra import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
