"""Precisions of a run: of master weights, slots and averages, and of the computation of steps.

The configuration checks their names here, so torch is imported only when one is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """How numbers are stored and computed.

    kept_in: the dtype of rows, slots and averages, by name. computed_in: that of layers, by autocast; None: `kept_in`.
    tf32: whether a GPU may round the factors of fp32 products to 10 bits; otherwise fp32 is IEEE fp32.
    loss_scale: a constant power of two that keeps small gradients above the smallest number of `computed_in`.
    """

    kept_in: str = "float32"
    computed_in: str | None = None
    tf32: bool = False
    loss_scale: float = 1.0

    @property
    def master(self) -> torch.dtype:
        """The dtype of rows, slots and averages."""
        return _dtype(self.kept_in)

    @property
    def compute(self) -> torch.dtype | None:
        """The dtype of layers, if it differs from `master`; else None."""
        return None if self.computed_in is None else _dtype(self.computed_in)

    @property
    def images(self) -> torch.dtype:
        """The dtype of normalised images."""
        return self.compute or self.master

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """A context in which layers on the device compute in this precision."""
        import torch

        with torch.autocast(device.type, self.compute or torch.bfloat16, enabled=self.compute is not None, cache_enabled=False):
            yield

    def configure(self, device: torch.device) -> None:
        """Configure the process: TF32, which PyTorch allows in convolutions by default, and kernels with reproducible bits.

        cuDNN's benchmarking of kernels stays off, since it may choose others in the process that resumes a run. Attention is computed by
        products: its fused kernels have no rule for rows in one call, no second derivative, and, on a GPU, bits that differ.
        """
        import torch

        for fused in ("flash", "mem_efficient", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{fused}_sdp")(False)  # on a CPU too

        if device.type == "cuda":
            mode = "tf32" if self.tf32 else "ieee"
            torch.backends.cuda.matmul.fp32_precision = mode
            torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
            torch.backends.cudnn.rnn.fp32_precision = mode  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


PRECISIONS = {
    "fp32": Precision(),
    "tf32": Precision(tf32=True),
    "bf16": Precision(computed_in="bfloat16"),
    "fp16": Precision(computed_in="float16", loss_scale=1024.0),
    "fp64": Precision(kept_in="float64"),
}
