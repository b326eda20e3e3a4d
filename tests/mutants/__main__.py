r"""Breaks one line at a time and sees whether the tests notice.

  python -m tests.mutants [WORD …] [--jobs=2]

The tables beside this file list the mutants: a header `== FILE | TESTS` and,
below it, pairs of lines: `-` a text in FILE, `+` its replacement. TESTS are
arguments of pytest without `tests/`; the text occurs once in FILE. Every mutant
is made in a copy of the project and must make TESTS fail. With words, only
mutants with one of them in the name of their file or table are tried.

The exit status is 0 if every mutant is caught, 1 if one survives or TESTS fail
without any.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import queue
import shutil
import signal
import sys
import tempfile

# Imported before each mutant gets a process of its own: it takes a second.
import absl.testing.flagsaver
import flax.linen
import jax
import optax
import orbax.checkpoint
import pytest

from tests.mutants.table import ROOT, Mutant, read_mutants

# A mutant that hangs counts as caught; the longest test takes less.
_TIMEOUT_S = 300
_PYTEST = ('-x', '-q', '-pno:cacheprovider', '-pno:xdist')
_IMPORTED = (absl.testing.flagsaver, flax.linen, jax, optax, orbax.checkpoint)


def is_caught(mutant: Mutant) -> bool:
  """Whether the tests fail; call it in a process of its own."""
  copy = _copies.get()
  path = copy / mutant.file
  text = path.read_text(encoding='utf-8')
  path.write_text(text.replace(mutant.before, mutant.after), encoding='utf-8')
  # Tests signal process groups, and import the copy.
  os.setsid()
  os.chdir(copy)
  sys.path[:] = [str(copy), *(one for one in sys.path if one != str(ROOT))]
  for name in [name for name in sys.modules if name.startswith('tests')]:
    del sys.modules[name]
  signal.signal(signal.SIGALRM, _give_up)
  signal.alarm(_TIMEOUT_S)
  try:
    with _silence(copy / 'output.txt'):
      tests = (f'tests/{test}' for test in mutant.tests)
      status = pytest.main([*_PYTEST, *tests])
    output = (copy / 'output.txt').read_text(errors='replace')
  finally:
    signal.alarm(0)
    path.write_text(text, encoding='utf-8')
    _copies.put(copy)
  # 1: some tests failed. Code that cannot be imported fails the collection.
  caught = status == 1 or (status in (2, 4) and 'Error' in output)
  if status and not caught:
    raise RuntimeError(f'pytest ended with {status}: {output[-2_000:]}')
  return caught


def _give_up(*_):
  raise TimeoutError(f'a test took more than {_TIMEOUT_S} seconds')


@contextlib.contextmanager
def _silence(path: pathlib.Path):
  """Sends the output of this process and its children to a file."""
  kept = os.dup(1), os.dup(2)
  with path.open('w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      sys.stdout.flush()
      os.dup2(kept[0], 1)
      os.dup2(kept[1], 2)


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
  global _copies
  context = multiprocessing.get_context('fork')
  _copies, survivors = context.Queue(), []
  with tempfile.TemporaryDirectory() as folder:
    for number in range(options.jobs):
      copy = pathlib.Path(folder) / str(number)
      ignored = shutil.ignore_patterns('.*', 'runs', '__pycache__')
      shutil.copytree(ROOT, copy, ignore=ignored)
      # Some tests ask for the commit.
      shutil.copytree(ROOT / '.git', copy / '.git')
      # Compiled programs and the built-in corpus are the project's own.
      (copy / '.cache').symlink_to(ROOT / '.cache')
      _copies.put(copy)

    def try_one(mutant: Mutant) -> bool:
      # Unlike those of multiprocessing.Pool, it may have children of its own.
      executor = concurrent.futures.ProcessPoolExecutor(1, context)
      with executor as process:
        return process.submit(is_caught, mutant).result()

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      # Tests that fail anyway would catch everything.
      same = {one.tests: one._replace(after=one.before) for one in chosen}
      failed = zip(same, pool.map(try_one, same.values()), strict=True)
      for number, (tests, fail) in enumerate(failed, start=1):
        if fail:
          sys.exit(f'tests.mutants: {" ".join(tests)}: fails without a mutant')
        print(f'{number}/{len(same)} pass: {" ".join(tests)}', flush=True)
      found = zip(chosen, pool.map(try_one, chosen), strict=True)
      for number, (mutant, caught) in enumerate(found, start=1):
        word = 'caught' if caught else 'SURVIVED'
        print(f'{number}/{len(chosen)} {word}: {mutant}', flush=True)
        if not caught:
          survivors.append(mutant)
  print(f'{len(chosen) - len(survivors)} of {len(chosen)} mutants are caught.')
  return 1 if survivors else 0


_copies: queue.Queue[pathlib.Path]

if __name__ == '__main__':
  sys.exit(main())
