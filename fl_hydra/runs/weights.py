"""What the digest of a run's weights covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.training.trainer import Trainer


def parts_of(trainer: Trainer, run: int) -> dict[str, str]:
    """SHA-256 of what a run has learnt: of its `model`; and where clients have models, of what all `clients` keep, and of what the method
    has `carried` at the server, from both of which their models may be made. `others`: of what it carries for further architectures."""
    packed, state = trainer.runs[run], trainer.state.of_runs(slice(run, run + 1))
    parts = {"model": hashlib.sha256(trainer.weights(run).contiguous().numpy().tobytes()).hexdigest()}
    e = packed.experiment
    if not (e.algorithm.personalised or not e.global_model):
        return parts
    if packed.clients.named:
        parts["clients"] = packed.clients_digest()
    if state.carried:
        parts["carried"] = _digest(state.carried)
    for group in trainer.groups[1:]:
        named = group.state_of(run).tensors()
        parts["others"] = hashlib.sha256((parts.get("others", "") + _digest(named)).encode()).hexdigest()
    return parts


def _digest(named: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(named):
        digest.update(name.encode())
        digest.update(named[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_sha256(parts: Mapping[str, str]) -> str:
    """One digest of all parts: that of the model, if it is alone."""
    if parts.keys() == {"model"}:
        return parts["model"]
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()
