"""What a participation scheme is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from fl_hydra.data.population import Indices
from fl_hydra.registry import Component, Registry


@dataclass
class Participation(Component):
    """A rule that draws the cohort of a round."""

    @abstractmethod
    def cohort(self, sizes: Indices, m: int, seed: int, round: int) -> Indices:
        """The clients of a round, a function of (seed, round).

        Args:
            sizes: int64 [K], images of each client; clients without images are never drawn.
            m: how many take part.

        Returns:
            int64 [m], distinct and ascending.
        """


participations: Registry[Participation] = Registry("participation", "fl_hydra.participation")
