"""Files to read, compressed or not, whatever they are called."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import io
import lzma
import os
import zlib

_HEAD_BYTES = 1 << 16
# What reading a damaged file raises.
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)


class InputError(ValueError):
  """The input is not what it is said to be; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Input:
  """A file, or a split of a set.

  Attributes:
    name: of the file, without its folder; or of the set and split.
    path: where it is; the same as `name` for a set.
    size: bytes of a file, documents of a set.
    key: a hash of its size and of its first and last bytes.
  """

  name: str
  path: str
  size: int
  key: str


def file_input(path: str) -> Input:
  """A file as an input, known by its size, its first and its last bytes."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(f'{size}:'.encode(), digest_size=16)
  with open(path, 'rb') as file:
    digest.update(file.read(_HEAD_BYTES))
    file.seek(max(0, size - _HEAD_BYTES))
    digest.update(file.read())
  return Input(os.path.basename(path), path, size, digest.hexdigest())


def decompress(raw: io.BufferedReader) -> io.BufferedIOBase:
  """A file to be read decompressed, whatever its name ends in.

  Raises:
    InputError: for a compression that is not read here.
  """
  magic = raw.read(6)
  raw.seek(0)
  if magic.startswith(b'\x1f\x8b'):
    return gzip.GzipFile(fileobj=raw)
  if magic.startswith(b'BZh'):
    return bz2.BZ2File(raw)
  if magic.startswith(b'\xfd7zXZ\x00'):
    return lzma.LZMAFile(raw)
  if magic.startswith(b'\x28\xb5\x2f\xfd'):
    raise InputError(
      f'{raw.name} is compressed with zstd, which is not read here: compress '
      'it with gzip, or not at all.'
    )
  return raw
