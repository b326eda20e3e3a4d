"""How fast lanes of tokens are read, without a model.

Training batches of the built-in corpus are read as one of two members reads
them, for a second in each of three sizes: one worker of the paper's (128 lanes
of 32 tokens), all its 128 workers, and a laptop. Rates are by the clock and by
the processor time of this process, including its thread that reads ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.text.dataset import make_text
from scripts.benchmark.measure import Limit, Measure, Measures, read

TITLE = 'lanes of text'
ROUNDS = 'rounds of a second of each size'
# 'builtin', or a folder of prepared text.
NAME = 'builtin'
# Lanes, and tokens of a lane in a batch.
SMALL = FULL = ((128, 32), (16_384, 32), (32, 64))
_AIM = Limit('≥', 10)


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
      text_set = make_text(
        NAME,
        sequence_length=sequence_length,
        max_document_tokens=None,
        max_train_tokens=None,
        max_test_tokens=None,
        cache_dir=None,
      )
      done = read(text_set, batch_size)
      if number:
        size = f'{batch_size:,} × {sequence_length}'
        tokens = done.batches * batch_size * sequence_length / 1e6
        found.note(f'{size}: first batch', 's', done.first)
        found.note(f'{size}: rate', 'M tokens/s', tokens / done.seconds)
        rate = tokens / done.cpu
        found.note(f'{size}: rate of CPU', 'M tokens/s a core', rate, _AIM)
    if number:
      yield found.all()
