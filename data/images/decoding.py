"""Decodes stored images, at a lower resolution where that is enough.

OpenCV finds the format from the content, not the name, and decodes grey-scale,
CMYK, and the one PNG among ImageNet's JPEGs.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np

# JPEG's own downscaling to a half, a quarter or an eighth is cheaper to decode.
_REDUCTIONS = (8, 4, 2)
_REDUCED = {
  2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Threads and processes read batches already.
cv2.setNumThreads(0)


class CorruptImageError(ValueError):
  """An image cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Encoded:
  """An image in its stored form.

  Attributes:
    data: content of the file.
    channels: channels of the decoded image, 1 or 3 (RGB).
  """

  data: bytes = dataclasses.field(repr=False)
  channels: int

  @functools.cached_property
  def size(self) -> tuple[int, int]:
    """Height and width; from the header of a JPEG, otherwise decoded.

    Raises:
      CorruptImageError: if it cannot be decoded and has no such header.
    """
    return self._jpeg_size or self.whole.shape[:2]

  @functools.cached_property
  def whole(self) -> np.ndarray:
    """The whole image, uint8 [height, width, channels].

    Raises:
      CorruptImageError: if it cannot be decoded.
    """
    return self._decode(1)

  def part(
    self, top: int, left: int, rows: int, columns: int, at_least: int
  ) -> np.ndarray:
    """Decodes a part, perhaps at a half, a quarter or an eighth of its size.

    Args:
      top: first row in the full image.
      left: first column in the full image.
      rows: number of rows in the full image.
      columns: number of columns in the full image.
      at_least: least rows and columns of the result, unless the part has fewer.

    Returns:
      uint8 [rows/r, columns/r, channels], rounded up, with r in 1, 2, 4, 8.

    Raises:
      CorruptImageError: if it cannot be decoded.
    """
    reduction = 1
    if self._jpeg_size:
      enough = min(rows, columns) / max(at_least, 1)
      reduction = next((r for r in _REDUCTIONS if r <= enough), 1)
    image = self.whole if reduction == 1 else self._decode(reduction)
    bottom, right = top + rows, left + columns
    return image[
      top // reduction : math.ceil(bottom / reduction),
      left // reduction : math.ceil(right / reduction),
    ]

  @functools.cached_property
  def _jpeg_size(self) -> tuple[int, int] | None:
    return jpeg_size(self.data)

  def _decode(self, reduction: int) -> np.ndarray:
    color = 0 if self.channels == 1 else cv2.IMREAD_COLOR_RGB
    # TensorFlow ignores the camera's orientation flag, so the authors did too.
    flags = color | _REDUCED.get(reduction, 0) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
      image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
    except cv2.error as error:  # Empty, or too large for OpenCV.
      raise CorruptImageError(str(error)) from error
    if image is None:
      raise CorruptImageError('neither a JPEG nor a PNG, or damaged')
    size = self._jpeg_size
    if size and image.shape[:2] != tuple(
      -(-side // reduction) for side in size
    ):
      raise CorruptImageError(f'its header says {size}, it is {image.shape}')
    return image.reshape(*image.shape[:2], self.channels)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
  """Height and width by a JPEG's header; None without one."""
  if data[:2] != b'\xff\xd8':
    return None
  at = 2
  # A segment: 0xff, a marker, a length that counts itself, the content.
  while at + 9 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker == 0xFF:  # Padding.
      at += 1
      continue
    # Any kind of frame start: a precision, then the size.
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height = int.from_bytes(data[at + 5 : at + 7])
      width = int.from_bytes(data[at + 7 : at + 9])
      return (height, width) if height and width else None
    at += 2 + int.from_bytes(data[at + 2 : at + 4])
  return None
