"""The base of uplinks: a pure rule for each row that encodes everything a client sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.optim.base import SlotWidth
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Uplink(Component):
    """Encodes each client's change of the model, and every other vector that it sends, on the way to the server.

    A change is a row's end minus its start, so the server averages the starts plus the decoded changes.
    """

    bypassed: ClassVar[bool] = False
    """Whether everything arrives as it was sent."""

    at_server: ClassVar[bool] = False
    """Whether :meth:`arrive` does something."""

    private: ClassVar[bool] = False
    """Whether models must not tell what one client holds: then clients have equal weights, and whatever would learn of them past the
    uplink is refused (:mod:`fl_hydra.compatibility`)."""

    @property
    def slots(self) -> dict[str, SlotWidth]:
        """Names of the state that each client keeps for each vector that it sends: as many numbers as the vector ("row") or one
        ("scalar"), initially 0."""
        return {}

    def check(self, statistics: int) -> None:
        """Refuse models that it cannot encode. statistics: numbers of BatchNorm's running statistics that are sent with them.

        Raises:
            UserError: naming what works.
        """

    def note(self, K: int, m: int, rounds: int | None) -> str:
        """If `private`: what is told before training. K: clients. m: of a round. rounds: of the run; None if their number is not known."""
        return ""

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        """Replace vectors [rows, width] by what the server decodes, in place, each row independently.

        Args:
            slots: state of each row's client, by name, changed in place.
            streams: int64 [rows], 32-bit numbers that identify each row's draws for this vector (:func:`fl_hydra.randomness.hash_uniform`).
        """

    def arrive(self, change: Tensor, clients: int, stream: int) -> None:
        """If `at_server`: change the weighted mean [1, width] of the changes that arrived, in place, once a round.

        Args:
            clients: their number.
            stream: identifies the server's draws in this round.
        """

    def size(self, width: int, each: int) -> int:
        """Bytes that a vector of `width` numbers of `each` bytes takes on the wire."""
        return width * each


uplinks: Registry[Uplink] = Registry("uplink", "fl_hydra.uplinks")
