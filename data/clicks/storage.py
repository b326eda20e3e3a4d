"""Rows of a click log as 40 words of 32 bits, and the files that store them.

The words have the order of the log's fields: the label, 13 integers unchanged,
and 26 hashes of categories, each keyed by its field. A row can be hashed
without knowledge of other rows. Rare categories are found by counting, and
replaced when the rows are written in their final form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt32

from data.clicks import log, synthetic
from data.clicks.log import (
  NUM_CATEGORIES,
  NUM_FIELDS,
  NUM_INTEGERS,
  BadLine,
  Rows,
)
from data.preparing import resumable

# Special values in place of a category's hash.
MISSING_CATEGORY, RARE_CATEGORY = 0, 1
FIRST_HASH = 2
FIRST_CATEGORY = 1 + NUM_INTEGERS

FORMAT = 'codistill-clicks/1'
ROWS = 'rows.bin'
ROW_BYTES = 4 * NUM_FIELDS
# Intermediate files, removed once the rows are complete.
CHUNKS, KEPT = 'chunks', 'kept'
# Rows that are written and hashed at once.
BLOCK_ROWS = 1 << 18
# Rows of a field that are counted at once.
_COUNTED_ROWS = 1 << 22


def hash_categories(
  values: UInt32[np.ndarray, '26 rows'], there: Bool[np.ndarray, '26 rows']
) -> UInt32[np.ndarray, '26 rows']:
  """Hashes the categories of each field, the same on every machine.

  Args:
    values: numbers of 32 bits.
    there: False where a value is missing.

  Returns:
    Hashes of at least FIRST_HASH, evenly distributed, and MISSING_CATEGORY for
    missing values. Different values of a field have different hashes, except
    for the two that are raised to FIRST_HASH and FIRST_HASH + 1.
  """
  # The finalizer of MurmurHash3 (Appleby 2011), a bijection.
  hashes = values ^ _FIELD_KEYS[:, None]
  hashes ^= hashes >> np.uint32(16)
  hashes *= np.uint32(0x85EBCA6B)
  hashes ^= hashes >> np.uint32(13)
  hashes *= np.uint32(0xC2B2AE35)
  hashes ^= hashes >> np.uint32(16)
  hashes[hashes < FIRST_HASH] += np.uint32(FIRST_HASH)
  hashes[~there] = MISSING_CATEGORY
  return hashes


_FIELD_KEYS = np.array(
  [
    int.from_bytes(
      hashlib.blake2b(f'category {field}'.encode(), digest_size=4).digest(),
      'little',
    )
    for field in range(1, NUM_CATEGORIES + 1)
  ],
  np.uint32,
)


def pack(rows: Rows) -> Int32[np.ndarray, '40 rows']:
  """Rows as words of 32 bits: labels, integers, hashes."""
  words = np.empty((NUM_FIELDS, len(rows.labels)), np.int32)
  words[0] = rows.labels
  words[1 : 1 + NUM_INTEGERS] = rows.integers
  words[1 + NUM_INTEGERS :] = hash_categories(rows.categories, rows.there).view(
    np.int32
  )
  return words


@dataclasses.dataclass(frozen=True)
class Words:
  """Chunks of words in files, each file field by field.

  Attributes:
    folder: the unfinished folder.
    rows: number of rows of each chunk.
  """

  folder: pathlib.Path
  rows: tuple[int, ...]

  def read(self, fields: slice, first: int, last: int) -> np.ndarray:
    """Reads the rows from `first` to before `last`: [fields, rows]."""
    names = range(*fields.indices(NUM_FIELDS))
    out = np.empty((len(names), last - first), np.int32)
    ends = np.cumsum(self.rows, dtype=np.int64)
    chunk = int(np.searchsorted(ends, first, 'right'))
    done = first
    while done < last:
      begin = int(ends[chunk]) - self.rows[chunk]
      end = min(last, int(ends[chunk]))
      if end > done:
        path = self.folder / CHUNKS / _chunk_name(chunk)
        shape = (NUM_FIELDS, self.rows[chunk])
        words = np.memmap(path, '<i4', 'r', shape=shape)
        out[:, done - first : end - first] = words[
          fields, done - begin : end - begin
        ]
        done = end
      chunk += 1
    return out


def _chunk_name(number: int) -> str:
  return f'{number:06d}.bin'


def read_chunk(
  chunk: log.Chunk, folder: pathlib.Path, before: int
) -> tuple[int, list[BadLine]]:
  """Writes a chunk's words; returns its number of rows, and its bad lines."""
  if chunk.input.path == 'synthetic':
    first = chunk.first_line - 1
    rows, bad = synthetic.make_rows(first, chunk.position)[0], []
  else:
    rows, bad = log.parse(chunk.data, chunk.first_line)
  words = pack(rows)
  path = folder / _chunk_name(before + chunk.number)
  resumable.write(path, words.astype('<i4').tobytes())
  return words.shape[1], bad


def count_field(
  field: int, words: Words, num_train: int, min_count: int
) -> dict[str, int]:
  """Writes the hashes of a field to keep; returns counts."""
  column = FIRST_CATEGORY + field
  sums = _Sums()
  for first in range(0, num_train, _COUNTED_ROWS):
    last = min(num_train, first + _COUNTED_ROWS)
    [found] = words.read(slice(column, column + 1), first, last)
    sums.add(found.view(np.uint32))
  values, counts = sums.total()
  present = values >= FIRST_HASH
  missing = int(counts[~present].sum())
  values, counts = values[present], counts[present]
  kept = counts >= min_count
  path = words.folder / KEPT / f'{field:02d}.npy'
  resumable.write(path, values[kept].astype('<u4').tobytes())
  return {
    'categories': len(values),
    'kept': int(kept.sum()),
    'missing_rows': missing,
    'rare_rows': int(counts[~kept].sum()),
  }


class _Sums:
  """Counts values in memory proportional to the number of different ones."""

  def __init__(self):
    self._values = [np.empty(0, np.uint32)]
    self._counts = [np.empty(0, np.int64)]
    self._limit = 2 * _COUNTED_ROWS

  def add(self, values: UInt32[np.ndarray, ' rows']) -> None:
    values, counts = np.unique(values, return_counts=True)
    self._values.append(values)
    self._counts.append(counts)
    if sum(map(len, self._values)) > self._limit:
      found, _ = self.total()
      # Keeps the number of times that each value is sorted small.
      self._limit = 2 * (len(found) + _COUNTED_ROWS)

  def total(
    self,
  ) -> tuple[UInt32[np.ndarray, ' found'], Int64[np.ndarray, ' found']]:
    values = np.concatenate(self._values)
    counts = np.concatenate(self._counts)
    # A stable sort merges the parts, which are sorted already.
    order = np.argsort(values, kind='stable')
    values, counts = values[order], counts[order]
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    values = values[starts]
    counts = np.add.reduceat(counts, starts) if len(starts) else counts
    self._values, self._counts = [values], [counts]
    return values, counts


def write_block(
  start: int, words: Words, num_train: int
) -> tuple[str, int, int]:
  """Writes final rows; returns their hash, and the clicks of both splits."""
  import pyarrow
  from pyarrow import compute

  last = min(start + BLOCK_ROWS, sum(words.rows))
  block = words.read(slice(None), start, last)
  hashes = block[FIRST_CATEGORY:].view(np.uint32)
  for field, column in enumerate(hashes):
    kept = np.fromfile(words.folder / KEPT / f'{field:02d}.npy', '<u4')
    is_kept = compute.is_in(
      pyarrow.array(column), value_set=pyarrow.array(kept)
    )
    rare = ~is_kept.to_numpy(zero_copy_only=False)
    column[rare & (column >= FIRST_HASH)] = RARE_CATEGORY
  content = np.ascontiguousarray(block.T, '<i4').tobytes()
  with open(words.folder / ROWS, 'r+b') as file:
    file.seek(start * ROW_BYTES)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  clicks = block[0, : max(0, num_train - start)].sum()
  return (
    hashlib.sha256(content).hexdigest(),
    int(clicks),
    int(block[0].sum() - clicks),
  )
