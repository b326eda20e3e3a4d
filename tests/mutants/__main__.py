r"""Breaks one line at a time and sees whether the tests notice.

  python -m tests.mutants [WORD …] [--jobs=2]

The tables beside this file list the mutants: a header `== FILE | TESTS` and,
below it, pairs of lines: `-` the text that stands there, `+` what it becomes.
TESTS are arguments of pytest without `tests/`; the text occurs once in FILE.
Every mutant is made in a copy of the project and has to make TESTS fail. With
words only mutants with one of them in their file's or table's name are tried.

Exit status: 0 if every mutant is caught, 1 if one survives.
"""

from __future__ import annotations

import argparse
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.table import ROOT, Mutant, read_mutants

# Longer than any test that catches one: what hangs has been noticed, too.
_TIMEOUT_S = 600
_PYTEST = ('-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider')


def is_caught(mutant: Mutant, copy: pathlib.Path) -> bool | None:
  """Whether the tests fail; None if they could not be run at all."""
  path = copy / mutant.file
  text = path.read_text(encoding='utf-8')
  path.write_text(text.replace(mutant.before, mutant.after), encoding='utf-8')
  try:
    done = subprocess.run(
      [sys.executable, *_PYTEST, *(f'tests/{test}' for test in mutant.tests)],
      cwd=copy,
      capture_output=True,
      timeout=_TIMEOUT_S,
    )
  except subprocess.TimeoutExpired:
    return True
  finally:
    path.write_text(text, encoding='utf-8')
  # 0: all passed; 1: some failed; 2 and up: pytest was used in a wrong way.
  # Code that cannot be imported stops it with 2 or 4, and says so.
  if done.returncode in (0, 1):
    return done.returncode == 1
  return True if b'Error' in done.stdout + done.stderr else None


def main() -> int:
  """Tries the mutants that were asked for."""
  parser = argparse.ArgumentParser(prog='python -m tests.mutants')
  parser.add_argument('words', nargs='*', help='of files or tables; all')
  parser.add_argument('--jobs', type=int, default=2, help='copies at work')
  options = parser.parse_args()
  chosen = [
    mutant
    for mutant in read_mutants()
    if not options.words
    or any(word in f'{mutant.table} {mutant.file}' for word in options.words)
  ]
  survivors = []
  with tempfile.TemporaryDirectory() as folder:
    copies: queue.Queue[pathlib.Path] = queue.Queue()
    for number in range(options.jobs):
      copy = pathlib.Path(folder) / str(number)
      ignored = shutil.ignore_patterns('.*', 'runs', '__pycache__')
      shutil.copytree(ROOT, copy, ignore=ignored)
      copies.put(copy)

    def try_(mutant: Mutant) -> bool | None:
      copy = copies.get()
      try:
        return is_caught(mutant, copy)
      finally:
        copies.put(copy)

    with ThreadPoolExecutor(options.jobs) as pool:
      found = zip(chosen, pool.map(try_, chosen), strict=True)
      for number, (mutant, caught) in enumerate(found, start=1):
        words = {True: 'caught', False: 'SURVIVED', None: 'NOT TRIED'}[caught]
        print(f'{number}/{len(chosen)} {words}: {mutant}', flush=True)
        if not caught:
          survivors.append(mutant)
  print(f'{len(chosen) - len(survivors)} of {len(chosen)} mutants are caught.')
  return 1 if survivors else 0


if __name__ == '__main__':
  sys.exit(main())
