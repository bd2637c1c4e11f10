"""As few methods as have everything that any of them has."""

from __future__ import annotations

from fl_hydra.algorithms.base import Algorithm
from tests.support.make import PROJECT, config

SHIPPED = sorted(path.stem for path in (PROJECT / "conf" / "algorithm").glob("*.yaml"))
NAMES = {
    *("name", "option", "label", "variants", "K", "C", "check", "check_steps"),
    *("communicates", "hyper", "form", "identity", "gradients_per_batch"),
}
"""What says nothing about how a method trains or what it keeps."""


def declared(name: str) -> set[str]:
    """What a method declares or overrides, unlike FedAvg: what its runs could keep, and lose."""
    method = config(f"algorithm={name}").algorithm
    own = {seam for seam in dir(Algorithm) if seam[0] != "_" and getattr(type(method), seam) is not getattr(Algorithm, seam)}
    return {f"{seam}={getattr(method, seam)}" if isinstance(getattr(method, seam), bool) else seam for seam in own - NAMES}


def kinds() -> list[str]:
    """As few methods as it takes to have everything that any of them declares; a new kind of method is among them by itself."""
    traits = {name: declared(name) for name in SHIPPED}
    chosen: list[str] = []
    while left := set[str]().union(*traits.values()) - set[str]().union(*(traits[name] for name in chosen)):
        chosen.append(max(SHIPPED, key=lambda name: len(traits[name] & left)))
    return chosen
