"""Makes Markdown tables, formats their numbers, and puts them into files."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A table with its first and last column left-aligned, the others right."""
  rule = ['---', *['---:'] * (len(header) - 2), '---']
  return ''.join(
    f'| {" | ".join(cells)} |\n' for cells in (header, rule, *lines)
  )


def number(value: float) -> str:
  """Formats a number with three digits, without an exponent."""
  digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
  return f'{value:,.{digits}f}'


def insert(text: str, tables: Mapping[str, str]) -> str:
  """Puts tables between `<!-- table NAME -->` and `<!-- end -->`.

  Args:
    text: of a Markdown file.
    tables: by name; those without a marker are left out.

  Raises:
    ValueError: for a marker without its end.
  """
  begin, end = r'<!-- table ([\w-]+) -->\n', '<!-- end -->'
  before, *parts = re.split(begin, text)
  pieces = [before]
  for name, part in zip(parts[::2], parts[1::2], strict=True):
    old, found, after = part.partition(end)
    if not found:
      raise ValueError(f'the marker of table {name} has no {end}')
    pieces += [f'<!-- table {name} -->\n', tables.get(name, old), end, after]
  return ''.join(pieces)


def insert_into(path: pathlib.Path, tables: Mapping[str, str]) -> None:
  """`insert`, for a file.

  Raises:
    OSError: if it cannot be read or written.
    ValueError: as `insert`.
  """
  text = path.read_text(encoding='utf-8')
  path.write_text(insert(text, tables), encoding='utf-8')


def show(tables: Mapping[str, str], into: Sequence[pathlib.Path]) -> None:
  """Prints tables, or puts them into files; same errors as `insert_into`."""
  if not into:
    print('\n'.join(f'{name}\n\n{text}' for name, text in tables.items()))
  for path in into:
    insert_into(path, tables)
