"""Reads the tables of mutants."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent


class Mutant(NamedTuple):
  """A change of a text in a file, and the tests that must notice it."""

  table: str
  file: str
  tests: tuple[str, ...]
  before: str
  after: str

  def __str__(self) -> str:
    return f'{self.file}: {self.before!r} → {self.after!r}'


def read_mutants() -> list[Mutant]:
  """All mutants of all tables beside this file."""
  mutants = []
  for path in sorted(pathlib.Path(__file__).parent.glob('*.txt')):
    file, tests, before = '', '', ''
    for line in path.read_text(encoding='utf-8').splitlines():
      if line.startswith('== '):
        file, tests = line[3:].split(' | ')
      elif line.startswith('-'):
        before = line[1:]
      elif line.startswith('+'):
        mutants.append(
          Mutant(path.stem, file, tuple(tests.split()), before, line[1:])
        )
      elif line:
        raise ValueError(f'{path.name}: no header, - or +: {line!r}')
  return mutants
