"""Random orders of many examples, without a table in memory."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Integer, UInt64

_ROUNDS = 4


def permute(
  places: Integer[np.ndarray, ' places'], size: int, *purpose: str | int
) -> UInt64[np.ndarray, ' places']:
  """Returns the examples at some places of a random order of all examples.

  The order is a keyed bijection of the numbers with as many bits as `size`,
  repeated until the result is below `size` (Black & Rogaway 2002, "cycle
  walking"). Memory and time depend on the number of places, not on `size`.
  Grain's `index_shuffle` does the same for one index at a time and takes 3 µs.

  Args:
    places: in [0, size).
    size: number of examples, at least 1.
    *purpose: names and numbers that the order depends on.

  Returns:
    Examples, in [0, size); each is at exactly one place.
  """
  bits = max(2, (size - 1).bit_length())
  mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
  name = '/'.join(map(str, purpose))
  words = np.frombuffer(
    hashlib.blake2b(name.encode(), digest_size=16 * _ROUNDS).digest(), '<u8'
  ).reshape(_ROUNDS, 2)

  def scramble(numbers):
    # Each step can be undone: an odd factor and an addend modulo 2^bits, and a
    # shift by at least half of the bits.
    for factor, addend in words:
      numbers = (numbers * (factor | np.uint64(1)) + addend) & mask
      numbers ^= numbers >> half
    return numbers

  examples = scramble(places.astype(np.uint64))
  while True:
    beyond = np.flatnonzero(examples >= size)
    if not len(beyond):
      return examples
    examples[beyond] = scramble(examples[beyond])
