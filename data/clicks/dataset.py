"""Batches from click logs: the Criteo challenge's, and a synthetic one.

The rows that `data.clicks.preparation` writes, 160 bytes each, are mapped into
memory. The order of an epoch is computed, not stored, so a seed and the number
of a batch are enough to resume a stream.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer

from data.clicks import preparation, storage
from data.clicks.log import MISSING, NUM_CATEGORIES, NUM_FIELDS, NUM_INTEGERS
from data.partition import partition_indices
from data.permutation import permute
from data.preparing import cache, resumable, workers

Batch = dict[str, Any]

# Shapes of an example's inputs.
SHAPE = {
  'integers': (NUM_INTEGERS,),
  'missing': (NUM_INTEGERS,),
  'categories': (NUM_CATEGORIES,),
}
# For the synthetic log; the defaults of scripts/prepare_criteo.py.
MIN_COUNT = 10
HELD_OUT_FRACTION = Fraction(1, 7)
# Rows read at once: enough to make a batch cheap, few enough to wait for.
_READ_ROWS = 1 << 16


class ClicksError(ValueError):
  """A folder does not contain a prepared log; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClickSet:
  """Impressions to train on and to evaluate on, as batches for a model.

  Attributes:
    rows: all rows in the order of time, training rows first; int32 words, see
      `data.clicks.storage`.
    manifest: the manifest of the prepared log.
    table_sizes: for each categorical field, the number of rows of its table.
    max_test_rows: evaluation uses the first so many held-out rows; None for
      all.
  """

  rows: Int32[np.ndarray, 'rows 40'] = dataclasses.field(repr=False)
  manifest: dict[str, Any] = dataclasses.field(repr=False)
  table_sizes: tuple[int, ...]
  max_test_rows: int | None

  @property
  def fingerprint(self) -> str:
    """A hash of all rows and of their division into splits, for provenance."""
    return self.manifest['fingerprint']

  @property
  def num_train(self) -> int:
    """Number of training examples, of all members together."""
    return self.manifest['splits']['train']['rows']

  @property
  def best_log_loss(self) -> float | None:
    """The lowest expected log loss on all held-out rows of a synthetic log.

    In nats: the mean entropy of the true probabilities. None for a real log,
    because its true probabilities are unknown.
    """
    return self.manifest.get('synthetic', {}).get('best_log_loss')

  def num_examples(self, split: str) -> int:
    """Number of examples that `eval(split)` counts; same errors."""
    return len(self._range(split))

  def label_distribution(self) -> Float[np.ndarray, ' 2']:
    """The training split's share of no click and of a click, float32."""
    train = self.manifest['splits']['train']
    clicks = train['clicks'] / train['rows']
    return np.array([1 - clicks, clicks], np.float32)

  def train(
    self,
    *,
    member: int,
    members: int,
    partition: str,
    seed: int,
    batch_size: int,
    start: int = 0,
    rows: np.ndarray | None = None,
  ) -> Iterator[Batch]:
    """Endless batches of a member's examples.

    Batch t is a pure function of the arguments and t, and reading may start
    anywhere. Each epoch visits each of the member's examples once in a new
    order; a batch may straddle epochs. Members with the same examples and the
    same seed draw the same batches.

    Args:
      member: 0 ≤ member < members.
      members: number of members that share the examples.
      partition: 'disjoint' or 'shared', see `data.partition`.
      seed: seed of the orders, at least 0.
      batch_size: B, examples a batch.
      start: index of the first batch to yield.
      rows: the rows of each batch to read and return, ascending; None for all.

    Returns:
      Batches {'inputs': {'integers': float32 [rows, 13], sign(x) · ln(1 + |x|)
      and 0 where missing, 'missing': float32 [rows, 13], 1 where missing,
      'categories': int32 [rows, 26], in [0, table_sizes[field])}, 'labels':
      int32 [rows], 1 for a click}. Category 0 stands for a missing value, 1 for
      a rare or unknown one.

    Raises:
      ValueError: for arguments out of range, or an empty shard.
    """
    for name, value in (('start', start), ('seed', seed)):
      if value < 0:
        raise ValueError(f'{name} must not be negative, got {value}.')
    shard = range(self.num_train)[
      partition_indices(self.num_train, member, members, partition)
    ]
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
    return self._batches(shard, seed, batch_size, start, wanted)

  def _batches(self, shard, seed, batch_size, start, wanted):
    num_batches = max(1, _READ_ROWS // max(1, len(wanted)))

    def read(first):
      numbers = np.arange(first, first + num_batches)
      places = (numbers[:, None] * batch_size + wanted).ravel()
      epochs, places = np.divmod(places, len(shard))
      examples = np.empty(len(places), np.int64)
      for epoch in np.unique(epochs).tolist():
        now = epochs == epoch
        order = permute(places[now], len(shard), 'clicks', seed, epoch)
        examples[now] = shard.start + shard.step * order.astype(np.int64)
      return self._read(examples)

    # Reads the next rows while the caller takes batches of the current ones.
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      block = reader.submit(read, start)
      for first in itertools.count(start, num_batches):
        current = block.result()
        block = reader.submit(read, first + num_batches)
        for number in range(num_batches):
          yield _slice(
            current, number * len(wanted), (number + 1) * len(wanted)
          )

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[Batch]:
    """Every example of a split exactly once, in the order of time.

    Args:
      split: 'train' or 'test'.
      batch_size: examples a batch; the last one is filled up with zeros.
      rows: the rows of each batch to read and return, ascending; None for all.

    Returns:
      Batches like those of `train`, with 'mask': float32 [rows], 1 for an
      example and 0 for padding.

    Raises:
      ValueError: for another split.
    """
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
    return self._eval_batches(self._range(split), batch_size, wanted)

  def _eval_batches(self, examples, batch_size, wanted):
    for first in range(0, len(examples), batch_size):
      places = first + wanted
      there = places < len(examples)
      batch = self._read(
        examples.start + np.where(there, places, 0).astype(np.int64)
      )
      batch['mask'] = there.astype(np.float32)
      for array in (batch['labels'], *batch['inputs'].values()):
        array[~there] = 0
      yield batch

  def _range(self, split: str) -> range:
    first = self.num_train
    last = len(self.rows)
    if self.max_test_rows is not None:
      last = min(last, first + self.max_test_rows)
    splits = {'train': range(first), 'test': range(first, last)}
    if split not in splits:
      raise ValueError(
        f'Unknown split {split!r}, expected one of {tuple(splits)}.'
      )
    return splits[split]

  def _read(self, examples: Int64[np.ndarray, ' examples']) -> Batch:
    # A row lies in one place, so it costs one page of the disk, not 40.
    words = self.rows.take(examples, axis=0)
    integers = words[:, 1 : 1 + NUM_INTEGERS]
    missing = integers == MISSING
    integers = np.where(missing, 0, integers).astype(np.float32)
    hashes = words[:, storage.FIRST_CATEGORY :].view(np.uint32)
    return {
      'inputs': {
        'integers': np.copysign(np.log(np.abs(integers) + 1), integers),
        'missing': missing.astype(np.float32),
        'categories': place_in_tables(hashes, self.table_sizes),
      },
      'labels': words[:, 0].copy(),
    }


def place_in_tables(
  hashes: Integer[np.ndarray, 'rows 26'], table_sizes: Sequence[int]
) -> Int32[np.ndarray, 'rows 26']:
  """Maps hashes to rows of the fields' tables; missing and rare have their own.

  Args:
    hashes: uint32 words of `data.clicks.storage`.
    table_sizes: rows of each field's table, at least 3.
  """
  first = storage.FIRST_HASH
  # A multiplication and a shift instead of a remainder (Lemire 2019).
  places = hashes.astype(np.uint64)
  places *= np.array(table_sizes, np.uint64) - np.uint64(first)
  places >>= np.uint64(32)
  places += np.uint64(first)
  return np.where(hashes < first, hashes, places).astype(np.int32)


def _slice(batch: Batch, begin: int, end: int) -> Batch:
  return {
    'inputs': {
      name: array[begin:end] for name, array in batch['inputs'].items()
    },
    'labels': batch['labels'][begin:end],
  }


def open_clicks(
  folder: str | os.PathLike,
) -> tuple[Int32[np.ndarray, 'rows 40'], dict[str, Any]]:
  """Maps the rows of a prepared folder into memory and reads its manifest.

  Raises:
    ClicksError: if the folder is missing, unfinished or incomplete.
  """
  folder = pathlib.Path(folder)
  manifest = resumable.open_manifest(
    folder,
    storage.FORMAT,
    what='prepared click log',
    command='scripts.prepare_criteo --input=FILE',
    error=ClicksError,
  )
  num_rows = sum(split['rows'] for split in manifest['splits'].values())
  path = folder / storage.ROWS
  size = path.stat().st_size if path.exists() else 0
  if size != num_rows * storage.ROW_BYTES:
    raise ClicksError(
      f'{folder} is incomplete ({path.name} has {size} bytes, not '
      f'{num_rows * storage.ROW_BYTES}): copy it again, or prepare it again '
      'with --overwrite.'
    )
  rows = np.memmap(path, '<i4', 'r', shape=(num_rows, NUM_FIELDS))
  # A plain array on the same memory: slicing a memmap costs more.
  return np.asarray(rows), manifest


def make_clicks(
  name: str,
  *,
  synthetic_rows: int,
  table_sizes: Sequence[int],
  max_test_rows: int | None,
  cache_dir: str | os.PathLike | None,
) -> ClickSet:
  """Opens a click log; downloads nothing.

  Args:
    name: 'synthetic' (a log with known click probabilities, made on first use;
      the last seventh is held out) or a folder that `python -m
      scripts.prepare_criteo` made.
    synthetic_rows: number of rows of the synthetic log; other logs ignore it.
    table_sizes: for each of the 26 categorical fields, the number of rows of
      its table, at least 3: one for missing values, one for rare ones, and the
      rest for hashes of all others.
    max_test_rows: evaluation uses the first so many held-out rows; None for
      all.
    cache_dir: folder for the synthetic log; None for the user's cache.

  Raises:
    ValueError: if there is no prepared log of that name, if the synthetic one
      cannot be written, or for arguments out of range.
  """
  sizes = tuple(table_sizes)
  if len(sizes) != NUM_CATEGORIES or min(sizes) <= storage.FIRST_HASH:
    raise ValueError(
      f'table_sizes must be {NUM_CATEGORIES} numbers of at least '
      f'{storage.FIRST_HASH + 1}, got {sizes}.'
    )
  if max_test_rows is not None and max_test_rows < 1:
    raise ValueError(f'max_test_rows must be at least 1, got {max_test_rows}.')
  if name == 'synthetic':
    rows, manifest = _open_synthetic(synthetic_rows, cache_dir)
  else:
    rows, manifest = open_clicks(name)
  return ClickSet(
    rows=rows,
    manifest=manifest,
    table_sizes=sizes,
    max_test_rows=max_test_rows,
  )


def _open_synthetic(num_rows, cache_dir):
  # Of fewer none is held out.
  if num_rows < 4:
    raise ValueError(f'synthetic_rows must be at least 4, got {num_rows}.')
  source = preparation.synthetic_input(num_rows)
  made_of = (storage.FORMAT, source.key, MIN_COUNT, HELD_OUT_FRACTION)
  key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
  name = f'synthetic-clicks-{num_rows}-{key}'
  folder = cache.cache_folder(cache_dir) / name

  def make(new):
    preparation.prepare(
      preparation.Settings(
        min_count=MIN_COUNT, held_out_fraction=HELD_OUT_FRACTION
      ),
      [source],
      new,
      max_bad_lines=0,
      # Most of the work runs outside Python.
      pool=workers.threads(os.cpu_count() or 1),
      overwrite=False,
      report=lambda progress: None,
    )

  try:
    return cache.open_or_make(folder, open_clicks, make)
  except (OSError, resumable.PreparationError) as error:
    raise ClicksError(
      f'The synthetic click log cannot be written to {folder.parent} '
      f'({error}): set XDG_CACHE_HOME to a folder that you can write to.'
    ) from error
