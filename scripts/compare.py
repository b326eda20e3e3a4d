"""Runs side by side: one table, and their learning curves as one picture.

  python -m scripts.compare WORKDIR [WORKDIR …] --out=PICTURE.png

Draws from rows alone, so it needs neither jax nor the data. A run that has not
finished is shown as far as it has come.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from rich.console import Console

from experiments.errors import UserError
from experiments.paths import local_path
from experiments.record import read_rows
from experiments.runs import read_checked
from experiments.summary import results_table

# Okabe & Ito (2008): told apart by colour-blind readers, too.
COLORS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00')
LINES = {'member': '-', 'ensemble': '--'}


def read_workdir(
  workdir: pathlib.Path,
) -> tuple[str, int, list[dict[str, Any]]]:
  """A run's name, its burn-in in steps, and its rows.

  Raises:
    FileNotFoundError: if the folder holds no run.
    UserError: if its provenance is damaged.
    ValueError: if its rows are.
  """
  files = sorted(workdir.glob('run*.json'))
  if not files:
    raise FileNotFoundError(
      f'{workdir} holds no run; make one with python -m experiments.run '
      f'--config=NAME --workdir={workdir}'
    )
  rows = []
  for file in files:
    run = read_checked(file)
    path = file.with_name(file.name.replace('run', 'rows', 1) + 'l')
    rows += read_rows(path) if path.exists() else []
  name = ':'.join(filter(None, (run['experiment'], run['variant'])))
  return name, run['config']['codistill']['burn_in_steps'], rows


def draw(
  runs: Sequence[tuple[str, int, list[dict[str, Any]]]], path: pathlib.Path
) -> None:
  """Draws held-out loss and error of every member and ensemble over steps.

  Args:
    runs: names, burn-in steps, rows.
    path: where to; its suffix decides the format.
  """
  figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
  for color, (name, burn_in, rows) in zip(
    (COLORS * len(runs))[: len(runs)], runs, strict=True
  ):
    # A member that diverged has a last row without scores.
    scored = [
      row
      for row in rows
      if row['kind'] in ('eval', 'final') and row['accuracy'] is not None
    ]
    whos = dict.fromkeys(row['member'] for row in scored)
    for who in whos:
      mine = [row for row in scored if row['member'] == who]
      ensemble = who == 'ensemble'
      for axis, values in (
        (axes[0], [row['task_loss'] for row in mine]),
        (axes[1], [100 * (1 - row['accuracy']) for row in mine]),
      ):
        axis.plot(
          [row['step'] for row in mine],
          values,
          LINES['ensemble' if ensemble else 'member'],
          color=color,
          linewidth=1.5,
          # Members of a run share a colour and, once, a label.
          label=f'{name}, {"ensemble" if ensemble else "each member"}'
          if ensemble or who == next(iter(whos))
          else None,
        )
    if any(row['num_peers'] for row in rows):
      for axis in axes:
        axis.axvline(burn_in, color=color, linewidth=0.8, linestyle=':')
      axes[0].annotate(
        'burn-in ends',
        (burn_in, 1),
        xycoords=('data', 'axes fraction'),
        xytext=(3, -3),
        textcoords='offset points',
        va='top',
        fontsize=8,
        color=color,
      )
  axes[0].set(ylabel='held-out cross-entropy (nats)', yscale='log')
  axes[1].set(ylabel='held-out error (%)')
  # Logarithmic as far as it goes; linear below one per cent, down to none.
  axes[1].set_yscale('symlog', linthresh=1)
  axes[1].set_ylim(bottom=0)
  axes[1].set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100])
  axes[1].yaxis.set_major_formatter('{x:g}')
  for axis in axes:
    axis.set_xlabel('step (updates of each member)')
    axis.grid(alpha=0.3, which='both')
    axis.spines[['top', 'right']].set_visible(False)
  if axes[1].has_data():
    axes[1].legend(frameon=False, fontsize=8)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table, draws the picture, says where all of it lies."""
  parser = argparse.ArgumentParser(prog='scripts.compare', description=__doc__)
  parser.add_argument('workdirs', nargs='+', type=local_path)
  parser.add_argument('--out', required=True, type=local_path)
  arguments = parser.parse_args(argv)
  try:
    runs = [read_workdir(workdir) for workdir in arguments.workdirs]
    draw(runs, arguments.out)
  except (OSError, ValueError, UserError) as error:
    print(f'scripts.compare: {error}', file=sys.stderr)
    return 1
  console = Console()
  console.print(results_table([(name, rows) for name, _, rows in runs]))
  lines = [
    f'rows, provenance, checkpoints: {workdir}'
    for workdir in arguments.workdirs
  ]
  for line in [*lines, f'learning curves: {arguments.out}']:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
  return 0


if __name__ == '__main__':
  sys.exit(main())
