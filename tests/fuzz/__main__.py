r"""Gives the readers input that nobody would write, and looks for faults.

  pip install atheris==3.0.0
  python -m tests.fuzz READER [--minutes=60]
  python -m tests.fuzz READER INPUT

READER is text, parquet, clicks, run, publication or checkpoint. Atheris changes
files that are read well, and prefers changes that reach new code. A reader must
accept a file or refuse it with one sentence, count every record that it takes
or leaves out, and find the same if it reads in smaller blocks.

Minutes are of CPU. A search continues from the inputs in .cache/fuzz/READER. It
ends at the first fault, and says where the input is; with this INPUT the fault
can be seen again. The exit status is 0 if there was none.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence

from absl import logging as absl_logging

try:
  import atheris
except ImportError:
  sys.exit('tests.fuzz: it needs atheris: pip install atheris==3.0.0')

with atheris.instrument_imports(include=['codistill', 'data', 'experiments']):
  from tests.fuzz import files, folders

CORPORA = pathlib.Path(__file__).parents[2] / '.cache/fuzz'
READERS = {
  'text': files.Text,
  'parquet': files.Parquet,
  'clicks': files.Clicks,
  'run': files.Run,
  'publication': folders.Publication,
  'checkpoint': folders.Checkpoint,
}


def main(argv: Sequence[str] | None = None) -> None:
  """Searches until the time is over or a fault is found; does not return."""
  parser = argparse.ArgumentParser(
    prog='tests.fuzz',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('reader', metavar='READER', choices=READERS)
  parser.add_argument('input', metavar='INPUT', nargs='?')
  parser.add_argument('--minutes', type=float, default=60.0)
  arguments = parser.parse_args(argv)
  corpus = CORPORA / arguments.reader
  corpus.mkdir(parents=True, exist_ok=True)
  options = [
    f'-artifact_prefix={corpus}-',
    '-timeout=60',  # Seconds of one input.
    '-rss_limit_mb=16000',  # TensorStore never gives back some of it.
    arguments.input or str(corpus),
  ]
  # As in a run: what Orbax tells and raises besides is not shown.
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  warnings.simplefilter('ignore')
  with tempfile.TemporaryDirectory() as folder:
    reader = READERS[arguments.reader](pathlib.Path(folder))
    for number, (seed, taken) in enumerate(reader.seeds()):
      found = reader.try_one(seed)
      if taken not in (None, found):
        raise AssertionError(f'{found} taken of seed {number}, not {taken}')
      (corpus / f'seed-{number}').write_bytes(seed)
    tried, begin = 0, time.process_time()

    def try_one(data: bytes) -> None:
      nonlocal tried
      reader.try_one(data)
      tried += 1
      minutes = (time.process_time() - begin) / 60
      if not arguments.input and minutes >= arguments.minutes:
        text = f'{tried:,} inputs, {minutes:.0f} minutes of CPU, no fault'
        print(f'{arguments.reader}: {text}', flush=True)
        shutil.rmtree(folder)
        os._exit(0)  # Atheris's own limit is of the time on the wall.

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
      found = reader.mutate(data, seed)
      if found is None or len(found) > max_size:
        return atheris.Mutate(data, max_size)
      return found

    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=mutate)
    atheris.Fuzz()


main()
