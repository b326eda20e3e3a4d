"""Reads files; their content, not their name, says if they are compressed."""

from __future__ import annotations

import bz2
import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_HEAD_BYTES = 1 << 16
# Compressed bytes to read at once, and the most to decompress at once.
_PART_BYTES = 1 << 16
# Errors of decompressing damaged data.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)


class InputError(ValueError):
  """The input is not as described; the message is for the user."""


class Gap(NamedTuple):
  """A part of a file is missing here, for `reason`."""

  reason: str


class Behind(NamedTuple):
  """A file has bytes behind the end of its data."""


@dataclasses.dataclass(frozen=True)
class Input:
  """A file, or a split of a set.

  Attributes:
    name: name of the file without its folder; or of the set and split.
    path: path of the file; for a set its full name, with version and split.
    size: bytes of a file, documents of a set.
    key: a hash of the size and of the first and last bytes.
  """

  name: str
  path: str
  size: int
  key: str


def file_input(path: str) -> Input:
  """Makes an input of a file; its size, first and last bytes identify it."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(f'{size}:'.encode(), digest_size=16)
  with open(path, 'rb') as file:
    digest.update(file.read(_HEAD_BYTES))
    file.seek(max(0, size - _HEAD_BYTES))
    digest.update(file.read())
  return Input(os.path.basename(path), path, size, digest.hexdigest())


def read_blocks(
  raw: io.BufferedReader, size: int
) -> Iterator[bytes | Gap | Behind]:
  """Reads a file, and decompresses it if its first bytes say so.

  It decompresses as much as it can: everything before damage, and everything
  from the next undamaged stream on. (Files of Common Crawl have a stream a
  page, and tools that compress in parallel write one for each part.)

  Args:
    raw: the file, at its start.
    size: bytes of a block.

  Yields:
    Blocks in order; `Gap` where bytes are missing; and finally `Behind` if
    other bytes follow a verified stream. Those are left out, as in gunzip.

  Raises:
    InputError: for an unsupported compression.
  """
  kept = bytearray()
  for part in _read_parts(raw):
    if isinstance(part, bytes):
      kept += part
      while len(kept) >= size:
        yield bytes(kept[:size])
        del kept[:size]
    else:
      if kept:
        yield bytes(kept)
        kept.clear()
      yield part
  if kept:
    yield bytes(kept)


def _read_parts(raw):
  head = raw.read(6)
  if head.startswith(b'\x28\xb5\x2f\xfd'):
    raise InputError(
      f'{raw.name} is compressed with zstd, which is not supported: compress '
      'it with gzip, or not at all.'
    )
  for pattern, make in _KINDS.items():
    if re.match(pattern, head):
      yield from _read_streams(raw, pattern, make)
      return
  raw.seek(0)
  try:
    yield from iter(functools.partial(raw.read, _PART_BYTES), b'')
  except OSError as error:
    yield Gap(str(error))


def _read_streams(raw, pattern, make):
  position = 0
  while position is not None:
    known = 0
    stream = _Stream(raw, position, make)
    try:
      for block in stream.read():
        known += len(block)
        yield block
    except _DAMAGE as error:
      # The failed call did not return its last bytes.
      yield from stream.read_to_damage(known)
      yield Gap(str(error))
      position = _find_whole(raw, position + 1, pattern, make)
      continue
    position = _after_zeros(raw, stream.end)
    raw.seek(position)
    behind = raw.read(6)
    if not re.match(pattern, behind):
      if behind:
        yield Behind()
      return


def _after_zeros(raw, position):
  """Where the zeros from here on end: tapes pad with them."""
  raw.seek(position)
  size = 1  # Most streams are followed by another one.
  while window := raw.read(size):
    rest = window.lstrip(b'\0')
    if rest:
      return raw.tell() - len(rest)
    size = _PART_BYTES
  return raw.tell()


class _Stream:
  """A compressed stream, from its header to its checksum.

  Attributes:
    end: its end in the file, after reading.
  """

  end: int

  def __init__(self, raw, position, make):
    self._raw, self._position, self._make = raw, position, make
    self._last_part = position

  def read(self, known: int | None = None) -> Iterator[bytes]:
    """Yields its blocks.

    Args:
      known: after so many bytes single ones are yielded; and the part of the
        file that was the last one before is read byte by byte.
    """
    slowly_from, position = self._last_part, self._position
    self._raw.seek(position)
    decompressor, block, seen = self._make(), b'', 0
    while not decompressor.eof:
      data = b''
      # That of bz2 says so even if it has more to return.
      if decompressor.needs_input and not block:
        self._last_part = position
        slowly = known is not None and position >= slowly_from
        data = self._raw.read(1 if slowly else _PART_BYTES)
        if not data:
          raise EOFError('it ends too early')
        position += len(data)
      most = _PART_BYTES if known is None else max(1, known - seen)
      block = decompressor.decompress(data, min(most, _PART_BYTES))
      seen += len(block)
      if block:
        yield block
    self.end = position - len(decompressor.unused_data)

  def read_to_damage(self, known: int) -> Iterator[bytes]:
    """After `read` failed: bytes between the first `known` and the damage."""
    seen, found = 0, bytearray()
    with contextlib.suppress(*_DAMAGE):
      for block in self.read(known):
        seen += len(block)
        if seen > known:
          found += block
    yield bytes(found)


def _find_whole(raw, position, pattern, make):
  """Finds the next undamaged stream; None if there is none."""
  while True:
    raw.seek(position)
    window = raw.read(_PART_BYTES)
    found = re.search(pattern, window)
    if found:
      position += found.start()
      try:
        collections.deque(_Stream(raw, position, make).read(), maxlen=0)
        return position
      except _DAMAGE:
        position += 1
    elif len(window) < _PART_BYTES:
      return None
    else:
      # A header may be cut in two.
      position += len(window) - 16


class _Gzip:
  """zlib's decompressor, with the interface of those of bz2 and lzma."""

  def __init__(self):
    self._inner, self.needs_input = zlib.decompressobj(wbits=31), True

  @property
  def eof(self):
    return self._inner.eof

  @property
  def unused_data(self):
    return self._inner.unused_data

  def decompress(self, data, max_length):
    data = self._inner.unconsumed_tail + data
    block = self._inner.decompress(data, max_length)
    self.needs_input = len(block) < max_length
    return block


# By the first bytes of a stream.
_KINDS = {
  rb'\x1f\x8b': _Gzip,
  rb'BZh[1-9]': bz2.BZ2Decompressor,
  rb'\xfd7zXZ\0': functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ),
}
