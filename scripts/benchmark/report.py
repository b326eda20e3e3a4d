"""Measurements as tables and as JSON, beside their limits.

  python -m scripts.benchmark.report [--json=FILE] [--into=docs/performance.md]

Prints what `python -m scripts.benchmark --json=FILE` wrote as Markdown, or puts
it between the markers of a document. It measures nothing: the same file gives
the same tables.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.paths import local_path
from scripts import markdown
from scripts.benchmark.measure import ROOT, Limit, Measure

RESULTS = ROOT / 'experiments/results/benchmark.json'
_COLUMNS = ('median', 'least', 'greatest')


def table(title: str, measures: Sequence[Measure]) -> Table:
  """A line a number: median, least, greatest, and how it meets its limit."""
  shown = Table(box=box.SIMPLE_HEAD)
  shown.add_column(title)
  for column in _COLUMNS:
    shown.add_column(column, justify='right')
  for column in ('unit', 'limit', 'median stands'):
    shown.add_column(column)
  for measure in measures:
    shown.add_row(
      measure.name,
      *(f'{number:,.3g}' for number in _numbers(measure)),
      measure.unit,
      *_standing(measure),
    )
  return shown


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Reads a file: `machine`, `full`, `values` and `limits`, by part.

  Values are lists by name and unit, such as 'to write (s)'. Limits are pairs of
  '≤' or '≥' and a number, for those values that have one.

  Raises:
    ValueError: if this command did not write the file; the message says so.
  """
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    assert all('values' in part for part in found.values())
  except (AssertionError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path} was not written by `python -m scripts.benchmark --json`; name '
      'another file, or remove it'
    ) from error
  return found


def add(
  path: pathlib.Path,
  part: str,
  measures: Sequence[Measure],
  full: bool,
  cut: bool,
  machine: dict[str, Any],
) -> None:
  """Writes a part into a file, in place of the file's old one.

  Args:
    path: a file that `read` reads, or one that does not exist yet.
    part: its name.
    measures: all of the part.
    full: whether shapes were full.
    cut: whether the time ended before it did.
    machine: what the numbers depend on.
  """
  found = read(path) if path.exists() else {}
  keys = {f'{one.name} ({one.unit})': one for one in measures}
  found[part] = {
    'machine': machine,
    'full': full,
    **({'cut': True} if cut else {}),
    'values': {key: one.values for key, one in keys.items()},
    'limits': {key: one.limit for key, one in keys.items() if one.limit},
  }
  text = json.dumps(dict(sorted(found.items())), indent=2)
  path.write_text(text + '\n', encoding='utf-8')


def tables(path: pathlib.Path) -> dict[str, str]:
  """A table in Markdown for each part, by the name of its marker."""
  return {
    f'benchmark-{name}': _markdown(part) for name, part in read(path).items()
  }


def _markdown(part: dict[str, Any]) -> str:
  header = [
    ('full shapes' if part['full'] else 'small shapes')
    + (', cut short' if part.get('cut') else ''),
    *_COLUMNS,
    'limit',
    'median stands',
    'unit',
  ]
  lines = []
  for key, values in part['values'].items():
    name, _, unit = key.removesuffix(')').rpartition(' (')
    limit = part['limits'].get(key)
    measure = Measure(name, unit, values, limit and Limit(*limit))
    numbers = (markdown.number(number) for number in _numbers(measure))
    lines.append([name, *numbers, *_standing(measure), unit])
  return f'{markdown.table(header, lines)}\n{_origin(part["machine"])}\n'


def _origin(machine: dict[str, Any]) -> str:
  """The machine and the code that numbers come from."""
  commit = f'commit {(machine["commit"] or "unknown")[:7]}'
  if machine['dirty']:
    commit += ' with changes'
  torch = f', PyTorch {machine["torch"]}' if 'torch' in machine else ''
  return (
    f'{machine["device"]}, {machine["cores"]} cores of {machine["cpu"]}; '
    f'{commit}, Python {machine["python"]}, JAX {machine["jax"]}{torch}.'
  )


def _numbers(measure: Measure) -> tuple[float, float, float]:
  values = measure.values
  return statistics.median(values), min(values), max(values)


def _standing(measure: Measure) -> tuple[str, str]:
  """A limit, and how the median meets it; empty strings without one."""
  limit = measure.limit
  if limit is None:
    return '', ''
  median = statistics.median(measure.values)
  stands = 'met'
  if not limit.is_met(median):
    where = 'above' if limit.sign == '≤' else 'below'
    apart = 100 * abs(median / limit.value - 1)
    stands = f'{markdown.number(apart)} % {where}'
  return f'{limit.sign} {markdown.number(limit.value)}', stands


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.benchmark.report',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--json', type=local_path, metavar='FILE', default=RESULTS
  )
  parser.add_argument(
    '--into',
    type=local_path,
    nargs='+',
    action='extend',
    metavar='FILE',
    default=[],
  )
  arguments = parser.parse_args(argv)
  try:
    markdown.show(tables(arguments.json), arguments.into)
  except (OSError, ValueError) as error:
    print(f'scripts.benchmark.report: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
