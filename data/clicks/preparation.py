"""Turns click logs into rows that training maps into memory, resumably.

It uses all cores in three phases: it turns lines into words of 32 bits, chunk
by chunk; counts the categories of the training rows, field by field; and
replaces rare ones and writes the rows in their final form, block by block. The
result depends on the input and the settings alone, byte for byte.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any

import numpy as np

from data.clicks import log, storage, synthetic
from data.clicks.log import NUM_CATEGORIES
from data.preparing import resumable, workers
from data.preparing.compressed import Input
from data.preparing.resumable import PreparationError

_PACKAGES = ('numpy', 'pyarrow')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """All settings that the result depends on.

  Attributes:
    min_count: categories that occur less often among their field's training
      rows are merged into one.
    held_out_fraction: share of the rows that are held out, the last ones.
  """

  min_count: int
  held_out_fraction: Fraction

  def num_train(self, num_rows: int) -> int:
    """Returns how many of `num_rows` rows are for training.

    Raises:
      PreparationError: if that is none or all.
    """
    held_out = num_rows * self.held_out_fraction
    num_train = num_rows - round(held_out)
    if not 0 < num_train < num_rows:
      raise PreparationError(
        f'{num_rows} rows cannot be split into training and held-out rows: '
        'give more rows, or another --held-out-fraction.'
      )
    return num_train


@dataclasses.dataclass(frozen=True)
class Progress:
  """The progress of a run.

  Attributes:
    phase: 'reading', 'counting' or 'writing'.
    done: part of `total` that is done.
    total: bytes of input or rows of a synthetic log; then fields; then rows.
    unit: 'bytes', 'rows' or 'fields'.
    rows: rows read so far, earlier runs included.
    bad: lines left out so far.
  """

  phase: str
  done: int
  total: int
  unit: str
  rows: int
  bad: int


def synthetic_input(num_rows: int) -> Input:
  """The first rows of the synthetic log, as an input."""
  key = f'version {synthetic.VERSION}'
  return Input('synthetic', 'synthetic', num_rows, key)


def prepare(
  settings: Settings,
  inputs: Sequence[Input],
  output: pathlib.Path,
  *,
  max_bad_lines: int,
  pool: AbstractContextManager[workers.Pool],
  overwrite: bool,
  report: Callable[[Progress], None],
) -> dict[str, Any]:
  """Prepares click logs, or continues an interrupted preparation.

  Args:
    settings: the settings that the result depends on.
    inputs: files in the order of time; or `synthetic_input`, alone.
    output: the folder to make; it has another name until it is complete.
    max_bad_lines: the input is refused if it has more malformed lines.
    pool: does the work; entered here.
    overwrite: replaces an existing folder once the new one is complete, and
      drops what was begun from something else.
    report: called now and then.

  Returns:
    The manifest.

  Raises:
    PreparationError: if the preparation fails.
    InputError: if an input cannot be read.
  """
  plan, output = _plan(settings, inputs), resumable.real(output)
  leave_out = (storage.CHUNKS, storage.KEPT, *resumable.LEFT_OUT)
  manifest = resumable.finished(output, plan, leave_out, overwrite)
  if manifest is not None:
    _check_bad(manifest, max_bad_lines)
    return manifest
  partial = resumable.partial_of(output)
  with resumable.locked(partial, output):
    state = resumable.begin(partial, output, plan, overwrite) or {
      'input': 0,
      'chunk': 0,
      'position': 0,
      'rows': [],
      'bad': [],
      'fields': [],
      'blocks': [],
    }
    with pool as opened:
      run = _Run(settings, inputs, partial, opened, report, state)
      run.read(max_bad_lines)
      run.count()
      run.write()
      manifest = {**run.facts(), **plan}
    if overwrite:
      resumable.set_aside(output, partial)
    resumable.finish(partial, output, manifest, leave_out)
  return manifest


def _plan(settings: Settings, inputs: Sequence[Input]) -> dict[str, Any]:
  """Facts that must not change between runs; the manifest has them too."""
  return {
    'settings': {
      'min_count': settings.min_count,
      'held_out_fraction': str(settings.held_out_fraction),
    },
    'inputs': [
      {'name': one.name, 'size': one.size, 'key': one.key} for one in inputs
    ],
    'packages': {
      package: importlib.metadata.version(package) for package in _PACKAGES
    },
  }


class _Run:
  """One run of `prepare`, with the state that its phases share."""

  def __init__(self, settings, inputs, partial, pool, report, state):
    self._settings = settings
    self._inputs = inputs
    self._partial = partial
    self._pool = pool
    self._report = report
    self._state = state

  def read(self, max_bad_lines: int) -> None:
    """Turns input into chunks of words, from where `state` says on."""
    state = self._state
    (self._partial / storage.CHUNKS).mkdir(exist_ok=True)
    sizes = [one.size for one in self._inputs]
    unit = 'rows' if self._is_synthetic else 'bytes'
    before = sum(sizes[: state['input']])
    _check_bad(self._bad_lines(), max_bad_lines)
    for number in range(state['input'], len(self._inputs)):
      one = self._inputs[number]
      first = state['chunk'] if number == state['input'] else 0
      # The number of earlier chunks keeps names of different inputs apart.
      for chunk, (rows, bad) in workers.map_in_order(
        self._pool,
        storage.read_chunk,
        self._chunks(one, first),
        self._partial / storage.CHUNKS,
        len(state['rows']) - first,
        strip=lambda chunk: dataclasses.replace(chunk, data=b''),
      ):
        state['rows'].append(rows)
        if chunk.behind:
          # The state of an older version lacks this key.
          state.setdefault('behind', []).append(one.name)
        state['bad'] += [
          (f'line {line:,} of {one.name}: {reason}', kind)
          for line, kind, reason in bad
        ]
        _check_bad(self._bad_lines(), max_bad_lines)
        state |= {
          'input': number,
          'chunk': chunk.number + 1,
          'position': chunk.position,
        }
        resumable.write_state(self._partial, state)
        self._tell('reading', before + chunk.position, sum(sizes), unit)
      before += one.size
    self._num_rows = sum(state['rows'])
    self._num_train = self._settings.num_train(self._num_rows)

  def count(self) -> None:
    """Finds the categories of each field to keep."""
    (self._partial / storage.KEPT).mkdir(exist_ok=True)
    found = self._state['fields']
    self._tell('counting', len(found), NUM_CATEGORIES, 'fields')
    for field, facts in workers.map_in_order(
      self._pool,
      storage.count_field,
      range(len(found), NUM_CATEGORIES),
      self._source,
      self._num_train,
      self._settings.min_count,
    ):
      found.append(facts)
      resumable.write_state(self._partial, self._state)
      self._tell('counting', field + 1, NUM_CATEGORIES, 'fields')

  def write(self) -> None:
    """Turns chunks of words into rows."""
    blocks = self._state['blocks']
    path = self._partial / storage.ROWS
    with open(path, 'ab') as file:
      file.truncate(self._num_rows * storage.ROW_BYTES)
    begin = len(blocks) * storage.BLOCK_ROWS
    starts = range(begin, self._num_rows, storage.BLOCK_ROWS)
    for start, block in workers.map_in_order(
      self._pool, storage.write_block, starts, self._source, self._num_train
    ):
      blocks.append(block)
      resumable.write_state(self._partial, self._state)
      done = min(start + storage.BLOCK_ROWS, self._num_rows)
      self._tell('writing', done, self._num_rows, 'rows')

  def facts(self) -> dict[str, Any]:
    """Returns the manifest's facts about the rows."""
    state, splits = self._state, self._splits()
    blocks = state['blocks']
    return {
      'format': storage.FORMAT,
      'fingerprint': _hash_json([splits, self._settings.min_count, blocks]),
      'splits': splits,
      **self._optimum(),
      'fields': state['fields'],
      **self._bad_lines(),
      'files_with_bytes_behind_their_end': state.get('behind', []),
      'sha256_of_blocks': [digest for digest, _, _ in blocks],
    }

  def _bad_lines(self) -> dict[str, Any]:
    """Lists the lines left out, and counts them."""
    bad = self._state['bad']
    kinds = collections.Counter(kind for _, kind in bad)
    return {
      'bad_lines': [where for where, _ in bad],
      'bad_lines_by_kind': dict(sorted(kinds.items())),
    }

  def _splits(self) -> dict[str, dict[str, int]]:
    """Counts rows and clicks."""
    _, train, test = zip(*self._state['blocks'], strict=True)
    return {
      'train': {'rows': self._num_train, 'clicks': sum(train)},
      'test': {'rows': self._num_rows - self._num_train, 'clicks': sum(test)},
    }

  def _optimum(self) -> dict[str, dict[str, Any]]:
    """Scores a synthetic log's true probabilities on the held-out rows."""
    if not self._is_synthetic:
      return {}
    step = synthetic.CHUNK_ROWS
    starts = range(self._num_train // step * step, self._num_rows, step)
    parts = workers.map_in_order(
      self._pool, score_truth, starts, self._num_train, self._num_rows
    )
    sums = zip(*(part for _, part in parts), strict=True)
    count = self._num_rows - self._num_train
    # Further digits differ between machines.
    expected, scored = (round(sum(one) / count, 9) for one in sums)
    return {
      'synthetic': {
        'version': synthetic.VERSION,
        'best_log_loss': expected,
        'log_loss_of_truth': scored,
      }
    }

  @property
  def _is_synthetic(self) -> bool:
    return self._inputs[0].path == 'synthetic'

  @property
  def _source(self) -> storage.Words:
    return storage.Words(self._partial, tuple(self._state['rows']))

  def _chunks(self, one: Input, first: int) -> Iterator[log.Chunk]:
    if not self._is_synthetic:
      yield from log.read_chunks(one, first)
      return
    step = synthetic.CHUNK_ROWS
    for number in range(first, -(-one.size // step)):
      end = min((number + 1) * step, one.size)
      yield log.Chunk(one, number, b'', number * step + 1, end)

  def _tell(self, phase, done, total, unit):
    rows, bad = sum(self._state['rows']), len(self._state['bad'])
    self._report(Progress(phase, done, total, unit, rows, bad))


def _check_bad(facts: dict[str, Any], limit: int) -> None:
  """Refuses more malformed lines than a limit."""
  bad = facts['bad_lines']
  if len(bad) <= limit:
    return
  kinds = collections.Counter(facts['bad_lines_by_kind']).most_common()
  counts = ', '.join(f'{kind}: {count}' for kind, count in kinds)
  raise PreparationError(
    f'More than {limit} lines are malformed, at least {len(bad)} ({counts}). '
    f'The first is {bad[0]}. If this is a log of {log.NUM_FIELDS} fields '
    'separated by tabs, allow for more with --max-bad-lines, and the '
    'preparation continues from here.'
  )


# Runs in the pool's processes.


def score_truth(start: int, first: int, last: int) -> tuple[float, float]:
  """Sums of log losses over a chunk's rows from `first` to before `last`."""
  begin = max(start, first)
  end = min(start + synthetic.CHUNK_ROWS, last)
  rows, p = synthetic.make_rows(begin, end)
  scored = -np.log(np.where(rows.labels == 1, p, 1 - p))
  return float(synthetic.entropy(p).sum()), float(scored.sum())


def _hash_json(content: Any) -> str:
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode()
  ).hexdigest()
