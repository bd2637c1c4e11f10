"""Precisions of a run: what master weights, slots and averages are kept in, and what steps are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """How numbers are kept and computed with.

    master: the dtype of rows, slots and averages. compute: that of layers, by autocast; the master's where None.
    tf32: whether a GPU may round the factors of fp32 products to 10 bits. Elsewhere fp32 is computed as it is.
    loss_scale: a constant power of two that keeps small gradients above the smallest number of `compute`.
    """

    master: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    tf32: bool = False
    loss_scale: float = 1.0

    @property
    def images(self) -> torch.dtype:
        """The dtype of normalised images."""
        return self.compute or self.master

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Within it, layers compute as the precision says, on the device."""
        with torch.autocast(device.type, self.compute or torch.bfloat16, enabled=self.compute is not None, cache_enabled=False):
            yield

    def configure(self, device: torch.device) -> None:
        """Settings of the process: TF32, which PyTorch allows in convolutions by default, and kernels that give equal bits each time.

        cuDNN's own measuring of kernels stays off: it may choose differently in the process that resumes a run.
        """
        if device.type == "cuda":
            mode = "tf32" if self.tf32 else "ieee"
            torch.backends.cuda.matmul.fp32_precision = mode
            torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
            torch.backends.cudnn.rnn.fp32_precision = mode  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True


PRECISIONS = {
    "fp32": Precision(),
    "tf32": Precision(tf32=True),
    "bf16": Precision(compute=torch.bfloat16),
    "fp16": Precision(compute=torch.float16, loss_scale=1024.0),
    "fp64": Precision(master=torch.float64),
}
