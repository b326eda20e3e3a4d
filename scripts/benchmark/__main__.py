r"""What training costs, measured on this machine.

  python -m scripts.benchmark WHAT [--rounds=5] [--json=FILE]

clicks: how fast a click log is prepared, and read in shuffled batches;
exchange: weights through a folder: stall of the loop, bytes, seconds;
images: read, decoded, augmented, batched: images a second a core;
loss: φ and ψ over a vocabulary, plain and in chunks: memory, time;
lstm: the gradient of a layer's recurrence, its own and JAX's;
publication: its bytes, files and seconds, at 1, 25 and 100 million numbers;
step: tokens a second of both updates, and their share of what can be had;
teacher: an update's time and memory by precision of the teacher;
text: how fast lanes of tokens are read.

Whatever is compared is measured in turn, so that what else this machine does
meets all alike. Prints medians, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import logging
from rich.console import Console

from scripts.benchmark import (
  clicks,
  exchange,
  images,
  loss,
  lstm,
  publication,
  step,
  teacher,
  text,
)
from scripts.benchmark.measure import Measure, machine, table

PARTS = {
  'clicks': clicks,
  'exchange': exchange,
  'images': images,
  'loss': loss,
  'lstm': lstm,
  'publication': publication,
  'step': step,
  'teacher': teacher,
  'text': text,
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog='scripts.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('what', choices=PARTS)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--json', type=pathlib.Path, metavar='FILE')
  arguments = parser.parse_args(argv)
  if arguments.rounds < 1:
    parser.error('--rounds must be at least 1')
  part = PARTS[arguments.what]
  logging.set_verbosity(logging.FATAL)
  console = Console()
  console.print('compiling, and a round to warm up …')
  measures: list[Measure] = []
  for number, so_far in enumerate(part.measure(arguments.rounds), start=1):
    measures = so_far
    if number <= arguments.rounds:
      console.print(f'{number} of {arguments.rounds} {part.ROUNDS}')
  console.print(table(part.TITLE, measures))
  if arguments.json:
    numbers = {f'{name} ({unit})': values for name, unit, values in measures}
    found = {'machine': machine(), arguments.what: numbers}
    arguments.json.write_text(
      json.dumps(found, indent=2) + '\n', encoding='utf-8'
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
