"""How fast lanes of tokens are read, without a model.

Training batches of the built-in corpus are read as one of two members reads
them, for a second in each of three sizes: one worker of the paper's (128 lanes
of 32 tokens), all its 128 workers, and a laptop. Rates are by the clock and by
the processor time of this process, including its thread that reads ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from data.text.dataset import make_text
from scripts.benchmark.measure import Limit, Measure, Measures

TITLE = 'lanes of text'
ROUNDS = 'rounds of a second of each size'
# 'builtin', or a folder of prepared text.
NAME = 'builtin'
# Lanes, and tokens of a lane in a batch.
SMALL = FULL = ((128, 32), (16_384, 32), (32, 64))
_AIM = Limit('≥', 10)
_SECONDS = 1.0


def measure(
  rounds: int, shapes: Sequence[tuple[int, int]]
) -> Iterator[list[Measure]]:
  """Reads batches of each size in turn.

  Args:
    rounds: how many; an uncounted one goes first.
    shapes: lanes, and tokens of a lane.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  for number in range(rounds + 1):
    for batch_size, sequence_length in shapes:
      first, tokens, seconds, cpu = _read(batch_size, sequence_length)
      if number:
        size = f'{batch_size:,} × {sequence_length}'
        found.note(f'{size}: first batch', 's', first)
        found.note(f'{size}: rate', 'M tokens/s', tokens / seconds / 1e6)
        rate = tokens / cpu / 1e6
        found.note(f'{size}: rate of CPU', 'M tokens/s a core', rate, _AIM)
    if number:
      yield found.all()


def _read(
  batch_size: int, sequence_length: int
) -> tuple[float, int, float, float]:
  """Seconds to the first batch; then tokens, seconds and CPU seconds."""
  text_set = make_text(
    NAME,
    sequence_length=sequence_length,
    max_document_tokens=None,
    max_train_tokens=None,
    max_test_tokens=None,
    cache_dir=None,
  )
  began = time.perf_counter()
  batches = text_set.train(
    member=0, members=2, partition='disjoint', seed=0, batch_size=batch_size
  )
  next(batches)
  first, cpu = time.perf_counter(), time.process_time()
  count = 0
  while time.perf_counter() - first < _SECONDS:
    next(batches)
    count += 1
  seconds = time.perf_counter() - first
  cpu = time.process_time() - cpu
  batches.close()
  return first - began, count * batch_size * sequence_length, seconds, cpu
