"""Images on the device: kept as uint8; cropped, flipped and normalised a batch at a time, each image by its own draw."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fl_hydra.data.dataset import Indices
from fl_hydra.randomness import hash_uniform, key


def augmentation_stream(seed: int, client: int) -> int:
    """The 32-bit number that names a client's crops and flips."""
    return key(seed, "augmentation", client) & 0xFFFFFFFF


class Images:
    """A set of labelled images that lives on a device.

    Args:
        images: uint8 [N, height, width, channels].
        labels: int64 [N].
        mean, standard_deviation: per channel, on the scale 0..1.
        crop: padding in pixels on each side for random crops; 0 for none.
        flip: random horizontal flips.
        dtype: of the normalised images.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Indices,
        mean: NDArray[np.float64],
        standard_deviation: NDArray[np.float64],
        *,
        crop: int = 0,
        flip: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        _, self.height, self.width, self.channels = images.shape
        self._crop, self._flip, self._dtype = crop, flip, dtype
        pixels = F.pad(torch.from_numpy(np.ascontiguousarray(images)), (0, 0, crop, crop, crop, crop))
        self._padded_height, self._padded_width = pixels.shape[1:3]
        self._pixels = pixels.reshape(-1, self.channels).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self._scale = torch.tensor(1 / (255 * standard_deviation), dtype=self._working_dtype, device=device)
        self._shift = torch.tensor(-mean / standard_deviation, dtype=self._working_dtype, device=device)
        self._rows = torch.arange(self.height, device=device)
        self._columns = torch.arange(self.width, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def _working_dtype(self) -> torch.dtype:
        return torch.float64 if self._dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def augmented(self, indices: Tensor, streams: Tensor, positions: Tensor) -> Tensor:
        """Training images with their random crops and flips, a function of (stream, position) alone.

        Args:
            indices: int64 [n], which images.
            streams: int64 [n], a 32-bit number for each (seed, client): see :func:`augmentation_stream`.
            positions: int64 [n], how many samples that client had drawn before.

        Returns:
            [n, channels, height, width] in the channels_last memory format.
        """
        if not self._crop and not self._flip:
            return self._gather(indices, self._rows.expand(len(indices), -1), self._columns.expand(len(indices), -1))
        draw = hash_uniform(streams, positions)[:, None]  # 15 bits for the top, 15 for the left, 1 for the flip
        places = 2 * self._crop + 1
        rows = ((draw & 0x7FFF) * places >> 15) + self._rows
        columns = torch.where(draw >= 1 << 31, self.width - 1 - self._columns, self._columns) if self._flip else self._columns
        return self._gather(indices, rows, ((draw >> 15 & 0x7FFF) * places >> 15) + columns)

    def plain(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1 as they are, normalised: [stop - start, channels, height, width], channels_last."""
        indices = torch.arange(start, stop, device=self.device)
        rows = (self._rows + self._crop).expand(len(indices), -1)
        return self._gather(indices, rows, (self._columns + self._crop).expand(len(indices), -1))

    def _gather(self, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """One gather of whole pixels, then normalisation; rows int64 [n, height], columns int64 [n, width]."""
        corner = indices * (self._padded_height * self._padded_width)
        pixels = corner[:, None, None] + rows[:, :, None] * self._padded_width + columns[:, None, :]
        values = self._pixels.index_select(0, pixels.reshape(-1)).to(self._working_dtype)
        values = values.mul_(self._scale).add_(self._shift).to(self._dtype)
        return values.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)
