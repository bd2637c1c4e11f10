"""What an uplink is: a pure row rule through which everything that a client sends passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.optim.base import SlotWidth
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Uplink(Component):
    """What each client's change of the model, and every other vector that it sends, passes through on its way to the server.

    A change is what a client's round has added to what it began with; so what the server averages is the start plus the decoded change.
    """

    bypassed: ClassVar[bool] = False
    """Whether everything arrives as it was sent."""

    at_server: ClassVar[bool] = False
    """Whether :meth:`arrive` does something."""

    @property
    def slots(self) -> dict[str, SlotWidth]:
        """Names of the state that each client keeps for each vector that it sends: as many numbers ("row") or one ("scalar"), zero
        at first."""
        return {}

    def check(self, size: int) -> None:
        """Refuse models, of `size` numbers, that it cannot encode.

        Raises:
            UserError: naming what works.
        """

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        """Replace vectors [rows, width] by what the server makes of what they are encoded as; in place, each row by itself.

        Args:
            slots: state of each row's client, by name, changed in place.
            streams: int64 [rows], 32-bit numbers that name each row's draws in this round (:func:`fl_hydra.randomness.hash_uniform`).
        """

    def arrive(self, total: Tensor, stream: int) -> None:
        """Where `at_server`: change the weighted sum [1, width] of what has arrived, in place. stream: names the server's draws."""

    def size(self, width: int, each: int) -> int:
        """Bytes that a vector of `width` numbers of `each` bytes takes on the wire."""
        return width * each


uplinks: Registry[Uplink] = Registry("uplink", "fl_hydra.uplinks")
