"""Images on the device: kept as uint8; cropped, flipped and normalised a batch at a time, each image with its own draw."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.randomness import hash_uniform, key
from fl_hydra.training.samples import Samples


def augmentation_stream(seed: int, client: int) -> int:
    """The 32-bit number that identifies a client's crops and flips."""
    return key(seed, "augmentation", client) & 0xFFFFFFFF


class Images(Samples):
    """A set of labelled images that lives on a device.

    Args:
        images: uint8 [N, height, width, channels].
        labels: int64 [N].
        mean, standard_deviation: per channel, on the scale 0..1.
        crop: padding in pixels on each side for random crops; 0 for none.
        flip: whether to flip horizontally at random.
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
        count, self.height, self.width, self.channels = images.shape
        self._crop, self._flip, self._dtype = crop, flip, dtype
        self._padded_height, self._padded_width = self.height + 2 * crop, self.width + 2 * crop
        # Mirrored images follow the originals, so that a flip is just another index.
        pixels = torch.zeros((1 + flip) * count, self._padded_height, self._padded_width, self.channels, dtype=torch.uint8)
        inner = pixels[:, crop : crop + self.height, crop : crop + self.width]
        inner[:count] = torch.from_numpy(np.ascontiguousarray(images))
        if flip:
            inner[count:] = inner[:count].flip(2)
        self._mirrored = count
        # Every run of pixels as long as an image row, from any start; the runs overlap in memory.
        runs = max(0, len(pixels) * self._padded_height * self._padded_width - self.width + 1)
        row = self.width * self.channels
        self._runs = pixels.to(device).view(-1).as_strided((runs, row), (self.channels, 1))
        self.targets = torch.from_numpy(labels).to(device)
        self.eval_subset_size = count
        # As wide as an image row: factors for three channels would be applied three numbers at a time.
        self._scale = torch.tensor(1 / (255 * standard_deviation), dtype=self._working_dtype, device=device).repeat(self.width)
        self._shift = torch.tensor(-mean / standard_deviation, dtype=self._working_dtype, device=device).repeat(self.width)
        self._rows = torch.arange(self.height, device=device)

    @property
    def _working_dtype(self) -> torch.dtype:
        return torch.float64 if self._dtype == torch.float64 else torch.float32

    def drawn(self, indices: Tensor, streams: Tensor, positions: Tensor) -> Tensor:
        """Training images with their random crops and flips: [n, channels, height, width] in the channels_last memory format."""
        if not self._crop and not self._flip:
            return self._gather(indices, torch.zeros_like(indices), torch.zeros_like(indices))
        draw = hash_uniform(streams, positions)  # 15 bits for the top, 15 for the left, 1 for the flip
        places = 2 * self._crop + 1
        top, left = (draw & 0x7FFF) * places >> 15, (draw >> 15 & 0x7FFF) * places >> 15
        if self._flip:
            flipped = draw >> 31
            left = torch.where(flipped > 0, 2 * self._crop - left, left)
            indices = indices + flipped * self._mirrored
        return self._gather(indices, top, left)

    def plain(self, indices: Tensor) -> Tensor:
        """Images without augmentation, normalised: [n, channels, height, width], channels_last."""
        corner = torch.full_like(indices, self._crop)
        return self._gather(indices, corner, corner)

    def _gather(self, indices: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """One gather of whole rows, then normalisation. All arguments int64 [n]; top and left: the crop's corner in the padded image."""
        first = (indices * self._padded_height + top)[:, None] + self._rows
        values = self._runs.index_select(0, (first * self._padded_width + left[:, None]).view(-1)).to(self._working_dtype)
        values = values.mul_(self._scale).add_(self._shift).to(self._dtype)
        return values.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)
