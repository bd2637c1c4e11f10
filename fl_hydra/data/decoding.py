"""Pictures in files (PNG, JPEG and what else Pillow reads) as uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fl_hydra.errors import UserError, require

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
"""Names of pictures end with one of these, in small or capital letters."""

_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
"""Pillow's modes that convert to 8 bits a channel without loss of range."""


def decode(content: bytes, name: str, side: int | None = None, grey: bool = False) -> NDArray[np.uint8]:
    """A picture as uint8 [height, width, channels]: three channels, or one if `grey`. Transparency is left out.

    Args:
        content: of its file. name: in messages. side: height and width to which it is resized (bilinear, with antialiasing); None: it
            is not. grey: whether colours are converted to grey (ITU-R 601-2 luma).

    Raises:
        UserError: it cannot be read, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            mode = opened.mode
            if mode in _EIGHT_BITS:
                # Through RGBA, as Pillow warns of palettes with transparency otherwise.
                picture: Image.Image = opened.convert("RGBA") if "transparency" in opened.info else opened
                picture = picture.convert("L" if grey else "RGB")
                if side is not None and picture.size != (side, side):
                    picture = picture.resize((side, side), Image.Resampling.BILINEAR)
                pixels = np.asarray(picture, np.uint8)
                return pixels[..., None] if grey else pixels
    except Exception as error:  # Pillow raises errors of many kinds for what is not a picture, or is cut off
        what = " ".join(str(error).split()).partition(" <")[0] or type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({what}); replace or delete it") from error
    raise UserError(f"{name} has more than 8 bits a channel (mode {mode}); convert it to 8 bits, which images are kept in")


def decode_all(
    count: int,
    name: Callable[[int], str],
    read: Callable[[int], bytes],
    side: int | None = None,
    grey: bool = False,
    resize: str = "choose a size that all are resized to, as dataset.side=32",
) -> NDArray[np.uint8]:
    """Pictures of one size, uint8 [N, height, width, channels].

    Args:
        count: of pictures, at least one. name: of picture i, in messages. read: the content of picture i. side, grey: as for
            :func:`decode`. resize: what to do about pictures of several sizes, or too large ones.

    Raises:
        UserError: one cannot be read, their sizes differ, or they do not fit into memory.
    """
    first = decode(read(0), name(0), side, grey)
    try:
        pictures = np.empty((count, *first.shape), np.uint8)
    except MemoryError as error:
        raise UserError(
            f"{count:,} images of {first.shape[0]}x{first.shape[1]} pixels take {count * first.size / 1e9:.3g} GB; {resize}"
        ) from error
    pictures[0] = first
    for at in range(1, count):
        picture = decode(read(at), name(at), side, grey)
        require(
            picture.shape == first.shape,
            f"{name(at)} has {picture.shape[0]}x{picture.shape[1]} pixels, and {name(0)} has {first.shape[0]}x{first.shape[1]}: all "
            f"images need one size; {resize}",
        )
        pictures[at] = picture
    return pictures
