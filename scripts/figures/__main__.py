"""Redraws the paper's figures beside ours, and their numbers as tables.

  python -m scripts.figures [NAME … | all] [--variant=NAME]
    [--results=DIR] [--out=DIR] [--into=FILE …]

Draws what the paper shows, read off its figures, and what our committed rows
show. Writes <name>-<variant>.svg, .png and .md in docs/figures, or in --out,
byte for byte the same each time; --into also puts the tables between a file's
markers. A figure that is named and has no rows says what makes them. Needs
neither jax nor the data.
"""

from __future__ import annotations

import argparse
import difflib
import pathlib
import sys
import warnings
from collections.abc import Sequence

from experiments import results
from experiments.paths import local_path
from scripts import markdown
from scripts.figures import draw
from scripts.figures.catalog import FIGURES
from scripts.figures.figure import hours_table

OUT = pathlib.Path(__file__).parent.parent.parent / 'docs/figures'


def _check(names: Sequence[str]) -> None:
  for name in names:
    if name not in FIGURES:
      near = difflib.get_close_matches(name, FIGURES)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise ValueError(
        f'there is no figure {name!r}{hint} There are {", ".join(FIGURES)}, all'
      )


def _variants(folder: pathlib.Path, variant: str | None) -> list[str]:
  """The one that is asked for, or all that have rows."""
  there = results.variants(folder)
  if variant is None and there:
    return there
  if variant in there:
    return [variant]
  known = ', '.join(f':{name}' if name else '‘’' for name in there) or 'none'
  label = f'NAME:{variant}' if variant else 'NAME'
  raise ValueError(
    f'{folder} has no rows of {f":{variant}" if variant else "this scale"}, '
    f'of variants there are {known}; make some with python -m '
    f'experiments.sweep --config={label} && python -m scripts.collect '
    'runs/sweeps'
  )


def _make(arguments: argparse.Namespace) -> None:
  names = [name for name in arguments.names if name != 'all']
  _check(names)
  variants = _variants(arguments.results, arguments.variant)
  arguments.out.mkdir(parents=True, exist_ok=True)
  tables, drawn = {}, set()
  for variant in variants:
    rows = results.read_folder(arguments.results, variant)
    for name in names or FIGURES:
      figure = FIGURES[name]
      if not (grid := figure.panels(rows)):
        continue
      drawn.add(name)
      stem = arguments.out / results.stem(name, variant)
      tables[stem.name] = figure.table(rows, variant)
      stem.with_suffix('.md').write_text(tables[stem.name], encoding='utf-8')
      files = {kind: stem.with_suffix(f'.{kind}') for kind in ('svg', 'png')}
      draw.picture(figure.title, grid, variant, files)
      print(f'{stem}.svg, .png, .md')
    stem = arguments.out / results.stem('hours', variant)
    tables[stem.name] = hours_table(rows, variant)
    stem.with_suffix('.md').write_text(tables[stem.name], encoding='utf-8')
  for path in arguments.into:
    markdown.insert_into(path, tables)
  if lacking := [name for name in names if name not in drawn]:
    variant = variants[0] if len(variants) == 1 else 'reduced'
    raise ValueError(
      '; '.join(f'{name} {FIGURES[name].how(variant)}' for name in lacking)
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.figures',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  text = 'default: all that have rows'
  add('names', nargs='*', metavar='NAME', help=text)
  text = 'whose rows (default: of all variants)'
  add('--variant', metavar='NAME', help=text)
  folder = {'type': local_path, 'metavar': 'DIR'}
  text = 'where rows lie (default: experiments/results)'
  add('--results', default=results.FOLDER, **folder, help=text)
  text = 'where figures and tables go (default: docs/figures)'
  add('--out', default=OUT, **folder, help=text)
  text = 'a Markdown file with <!-- table NAME --> … <!-- end -->; repeatable'
  file = {'type': local_path, 'metavar': 'FILE', 'default': []}
  add('--into', action='append', **file, help=text)
  arguments = parser.parse_args(argv)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      _make(arguments)
    except (OSError, ValueError) as error:
      print(f'scripts.figures: {error}', file=sys.stderr)
      return 2
  for warning in caught:
    print(f'scripts.figures: {warning.message}', file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(main())
