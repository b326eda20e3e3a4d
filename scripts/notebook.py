"""Runs a notebook, and writes what its cells print and draw into it.

  python -m scripts.notebook docs/open_a_run.ipynb

The same as Jupyter's "Run All", without Jupyter: a cell's output is what it
prints and the figures that it leaves. The notebook is written if all cells run.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib

from experiments.errors import UserError
from experiments.paths import local_path
from scripts.evaluate import prepare_jax

matplotlib.use('Agg')
import matplotlib.pyplot as plt

Output = dict[str, Any]


def run(notebook: dict[str, Any], folder: pathlib.Path) -> None:
  """Runs the cells of a notebook in its folder, and puts in their outputs."""
  names: dict[str, Any] = {}
  code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
  with contextlib.chdir(folder):
    for number, cell in enumerate(code, start=1):
      cell['outputs'] = outputs_of(''.join(cell['source']), names)
      cell['execution_count'] = number


def outputs_of(source: str, names: dict[str, Any]) -> list[Output]:
  """What a cell prints, and then what it draws."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), warnings.catch_warnings():
    # What is shown in Jupyter is kept here.
    warnings.filterwarnings('ignore', '.* is non-interactive')
    exec(source, names)
  outputs: list[Output] = []
  if text := printed.getvalue():
    lines = text.splitlines(keepends=True)
    outputs.append({'output_type': 'stream', 'name': 'stdout', 'text': lines})
  for number in plt.get_fignums():
    image = io.BytesIO()
    # Nothing that depends on when it was drawn.
    plt.figure(number).savefig(image, dpi=100, metadata={'Software': None})
    data = base64.b64encode(image.getvalue()).decode()
    outputs.append(
      {
        'output_type': 'display_data',
        'data': {'image/png': data},
        'metadata': {},
      }
    )
  plt.close('all')
  return outputs


def main(argv: Sequence[str] | None = None) -> int:
  """Runs and writes it; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.notebook',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('notebook', metavar='FILE', type=local_path)
  path = parser.parse_args(argv).notebook
  prepare_jax()
  try:
    notebook = json.loads(path.read_text(encoding='utf-8'))
    run(notebook, path.parent)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    path.write_text(text, encoding='utf-8')
  except (UserError, OSError) as error:
    print(f'scripts.notebook: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
