r"""Prepares a click log once: from text to rows that training maps into memory.

  python -m scripts.prepare_criteo --input train.txt --output criteo

The format is the Display Advertising Challenge's: label, 13 integers, 26
hexadecimal categories, separated by tabs, compressed or not, files in the order
of time. A run that was interrupted goes on when the same command is given
again. docs/criteo.md describes the treatment of values, and the contents of
the folder.

Without that log, the command prepares a synthetic one with a known truth, or
writes it as text:

  python -m scripts.prepare_criteo --synthetic-rows 2000000 --output DIR
  python -m scripts.prepare_criteo --synthetic-rows 2000000 --write FILE.gz
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from fractions import Fraction

from rich import box
from rich.console import Console
from rich.table import Table

from data.clicks import log, preparation, synthetic
from data.clicks.dataset import (
  HELD_OUT_FRACTION,
  MIN_COUNT,
  ClicksError,
  open_clicks,
)
from data.preparing import workers
from experiments.paths import local_path
from scripts import preparing


# It is long because it is a table of options and their meanings.
def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.prepare_criteo',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    '--input',
    nargs='+',
    action='extend',
    metavar='FILE',
    help='the log, in the order of time; a quoted pattern sorts by name',
  )
  source.add_argument(
    '--synthetic-rows',
    type=int,
    metavar='N',
    help='use N rows of the synthetic log instead',
  )
  target = parser.add_mutually_exclusive_group(required=True)
  target.add_argument(
    '--output', metavar='DIR', type=local_path, help='folder to make'
  )
  target.add_argument(
    '--write',
    metavar='FILE',
    type=local_path,
    help='write the synthetic log as text instead; compressed if FILE ends '
    'in .gz',
  )
  parser.add_argument(
    '--min-count',
    type=int,
    default=MIN_COUNT,
    metavar='N',
    help='merge the categories of a field that are rarer than this in the part '
    'to train on (default: %(default)s)',
  )
  parser.add_argument(
    '--held-out-fraction',
    type=_fraction,
    default=HELD_OUT_FRACTION,
    metavar='F',
    help='share of the rows to evaluate on, taken from the end (default: '
    '%(default)s)',
  )
  parser.add_argument(
    '--max-bad-lines',
    type=int,
    default=100,
    metavar='N',
    help='leave out malformed lines, and refuse a log with more of them '
    '(default: %(default)s)',
  )
  parser.add_argument(
    '--workers',
    type=int,
    metavar='N',
    help='processes; they do not change the result (default: one a core)',
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help=f'{preparing.OVERWRITE}; or replace FILE of --write',
  )
  flags = parser.parse_args(arguments)
  least = {
    '--synthetic-rows': (flags.synthetic_rows, 2),
    '--min-count': (flags.min_count, 1),
    '--max-bad-lines': (flags.max_bad_lines, 0),
    '--workers': (flags.workers, 1),
  }
  for name, (value, minimum) in least.items():
    if value is not None and value < minimum:
      parser.error(f'{name} is {value}; it must be at least {minimum}')
  if not 0 < flags.held_out_fraction < 1:
    parser.error(
      f'--held-out-fraction is {flags.held_out_fraction}; it must be between '
      '0 and 1'
    )
  if flags.write and flags.synthetic_rows is None:
    parser.error('--write is for the synthetic log; add --synthetic-rows')
  if flags.write and flags.write.is_dir():
    parser.error(f'--write is {flags.write}, a folder; name a file')
  if flags.write and flags.write.exists() and not flags.overwrite:
    parser.error(f'{flags.write} exists; name another file, or --overwrite it')
  written = not flags.write, 'with --write'
  if problem := preparing.unread(
    parser,
    flags,
    {
      '--max-bad-lines': (flags.input, 'for a synthetic log'),
      **dict.fromkeys(('--min-count', '--workers'), written),
    },
  ):
    parser.error(problem)
  return flags


def _fraction(text: str) -> Fraction:
  try:
    return Fraction(text)
  except (ValueError, ZeroDivisionError) as error:
    raise argparse.ArgumentTypeError(
      f'{text} is neither a number nor a fraction such as 1/7'
    ) from error


def show(display: preparing.Display, progress: preparation.Progress) -> None:
  """Shows the progress of a run."""
  notes = []
  if progress.phase == 'reading' and progress.unit == 'bytes':
    notes.append(f'{progress.rows:,} rows')
  if progress.bad:
    notes.append(f'{progress.bad:,} malformed')
  display.show(
    progress.phase,
    progress.done,
    progress.total,
    unit='MB' if progress.unit == 'bytes' else progress.unit,
    notes=notes,
  )


def summary(manifest: dict) -> list[Table]:
  """Tables of what a prepared log contains, by split and by field."""
  kind = 'synthetic' if 'synthetic' in manifest else 'prepared'
  splits = Table(
    box=box.SIMPLE_HEAD, title=f'A {kind} click log', title_style=''
  )
  for column in ('', 'rows', 'clicks'):
    splits.add_column(column, justify='right' if column else 'left')
  for split, facts in manifest['splits'].items():
    share = facts['clicks'] / facts['rows']
    splits.add_row(split, f'{facts["rows"]:,}', f'{share:.2%}')
  for reason, count in manifest['bad_lines_by_kind'].items():
    splits.add_row(f'left out: malformed {reason}', f'{count:,}', '')
  # Folders that an older version prepared do not say this.
  for name in manifest.get('files_with_bytes_behind_their_end', ()):
    splits.add_row(f'note: {name} has bytes behind its end', '', '')
  fields = Table(box=box.SIMPLE_HEAD)
  for column in ('field', 'categories', 'kept', 'rows: missing', 'rare'):
    fields.add_column(column, justify='right')
  num_train = manifest['splits']['train']['rows']
  for number, facts in enumerate(manifest['fields'], start=1):
    fields.add_row(
      str(number),
      f'{facts["categories"]:,}',
      f'{facts["kept"]:,}',
      f'{facts["missing_rows"] / num_train:.1%}',
      f'{facts["rare_rows"] / num_train:.1%}',
    )
  return [splits, fields]


def optimum(facts: dict) -> str:
  """Says which score no model can beat on the synthetic log."""
  return (
    'The log is synthetic. The best log loss that can be reached on its rows '
    f'to evaluate on is {facts["best_log_loss"]:.5f} nats in expectation; the '
    f'truth itself scores {facts["log_loss_of_truth"]:.5f}.'
  )


def write_synthetic(
  num_rows: int, held_out_fraction: Fraction, path: pathlib.Path
) -> dict[str, float]:
  """Writes the synthetic log as text; returns the scores of its truth.

  Raises:
    OSError: if that cannot be done.
    PreparationError: if the rows cannot be split.
  """
  # To another name first, because half a log looks like a whole one.
  new = path.with_name(f'{path.name}.new')
  settings = preparation.Settings(
    min_count=1, held_out_fraction=held_out_fraction
  )
  first = settings.num_train(num_rows)
  sums = [0.0, 0.0]
  # Without a name or a time in it, so that the same content is the same file.
  try:
    with open(new, 'wb') as raw, contextlib.ExitStack() as stack:
      file = raw
      if path.suffix == '.gz':
        file = stack.enter_context(
          gzip.GzipFile('', 'wb', compresslevel=1, fileobj=raw, mtime=0)
        )
      step = synthetic.CHUNK_ROWS
      for start in range(0, num_rows, step):
        end = min(start + step, num_rows)
        rows, _ = synthetic.make_rows(start, end)
        file.write(log.format_rows(rows))
        if end > first:
          parts = preparation.score_truth(start, first, num_rows)
          sums = [total + part for total, part in zip(sums, parts, strict=True)]
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)
  expected, scored = (one / (num_rows - first) for one in sums)
  return {'best_log_loss': expected, 'log_loss_of_truth': scored}


def main(arguments: Sequence[str] | None = None) -> str | int | None:
  """Runs the command line; returns what `sys.exit` takes."""
  flags = parse(arguments)
  if flags.write:
    return preparing.outcome(
      lambda: _write(flags), flags.write, then='begins anew'
    )
  return preparing.outcome(lambda: _prepare(flags), flags.output, ClicksError)


def _write(flags: argparse.Namespace) -> None:
  facts = write_synthetic(
    flags.synthetic_rows, flags.held_out_fraction, flags.write
  )
  Console().print(optimum(facts), soft_wrap=True, highlight=False)


def _prepare(flags: argparse.Namespace) -> None:
  console = Console()
  inputs = (
    log.find_inputs(flags.input, preparing.find_files)
    if flags.input
    else [preparation.synthetic_input(flags.synthetic_rows)]
  )
  with preparing.Display(console) as display:
    manifest = preparation.prepare(
      preparation.Settings(
        min_count=flags.min_count,
        held_out_fraction=flags.held_out_fraction,
      ),
      inputs,
      flags.output,
      max_bad_lines=flags.max_bad_lines,
      pool=workers.processes(flags.workers or preparing.num_cores()),
      overwrite=flags.overwrite,
      report=functools.partial(show, display),
    )
  open_clicks(flags.output)  # Refuses a folder that has been damaged since.
  for table in summary(manifest):
    console.print(table)
  if 'synthetic' in manifest:
    console.print(
      optimum(manifest['synthetic']), soft_wrap=True, highlight=False
    )
  console.print(
    f'{flags.output} is prepared; train on it with --config=criteo_dnn '
    f'--config.data.path={shlex.quote(str(flags.output))}',
    highlight=False,
    soft_wrap=True,
  )


if __name__ == '__main__':
  sys.exit(main())
