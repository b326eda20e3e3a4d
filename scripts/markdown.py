"""Tables in Markdown, numbers in them, and files that they are put into."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A table: first and last column to the left, numbers to the right."""
  rule = ['---', *['---:'] * (len(header) - 2), '---']
  return ''.join(
    f'| {" | ".join(cells)} |\n' for cells in (header, rule, *lines)
  )


def number(value: float) -> str:
  """Three digits, without an exponent."""
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
