"""Draws the README's diagram of the method.

  python -m scripts.figures.diagram [--out=docs/images/method.svg]

Two members train on their own parts of the data, publish weights through a
folder, and learn from stale copies of each other. The file is always the same.
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
from matplotlib.axes import Axes

from experiments.paths import local_path

OUT = pathlib.Path(__file__).parent.parent.parent / 'docs/images/method.svg'
# Without dates and random ids, and with letters as outlines.
STYLE = {'svg.hashsalt': 'codistillation', 'svg.fonttype': 'path'}
# Colours and weights of members 0 and 1, and the colour of what they share.
_MEMBERS = (('#0072B2', 'θ₀'), ('#D55E00', 'θ₁'))
_GRAY = '#555555'


def draw(out: pathlib.Path) -> None:
  """Writes the diagram; the suffix decides the format."""
  with plt.rc_context({**STYLE, 'font.size': 11}):
    figure, axes = plt.subplots(figsize=(7.8, 3.4))
    axes.set(xlim=(0, 78), ylim=(2, 35))
    axes.axis('off')
    for low, me, other in ((21, 0, 1), (3, 1, 0)):
      _draw_member(axes, low, me, other)
    text = 'weights of\nboth members,\nas Orbax\ncheckpoints'
    _box(axes, (59, 3, 18, 31), 'shared folder', _GRAY, text)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Opaque, because pages may be light or dark.
    metadata = {'Date': None} if out.suffix == '.svg' else None
    figure.savefig(out, bbox_inches='tight', metadata=metadata, dpi=150)
    plt.close(figure)


def _draw_member(axes: Axes, low: float, me: int, other: int) -> None:
  (mine, name), (theirs, peer) = _MEMBERS[me], _MEMBERS[other]
  _box(axes, (0.5, low + 3, 11, 7), f'data {me}', mine)
  _arrow(axes, 11.5, 16, low + 6.5, mine)
  text = 'learns from labels (φ)\nand from predictions\nof the stale copy (ψ)'
  _box(axes, (16, low, 24, 13), f'member {me}: {name}', mine, text)
  _arrow(axes, 40, 59, low + 10, mine, f'{name}, every k steps')
  _arrow(axes, 59, 40, low + 2.5, theirs, f'stale copy of {peer}')


def _box(
  axes: Axes,
  place: tuple[float, float, float, float],
  title: str,
  color: str,
  text: str = '',
) -> None:
  left, low, width, height = place
  look = {'edgecolor': color, 'facecolor': 'none', 'lw': 1.6}
  axes.add_patch(plt.Rectangle((left, low), width, height, **look))
  middle, high = left + width / 2, height - 2.6 if text else height / 2
  _write(axes, middle, low + high, title, color, size=11, weight='bold')
  _write(axes, middle, low + (height - 3.6) / 2, text, '#222222')


def _arrow(
  axes: Axes, start: float, end: float, y: float, color: str, text: str = ''
) -> None:
  look = {'arrowstyle': '-|>', 'color': color, 'lw': 1.6}
  axes.annotate('', (end, y), (start, y), arrowprops=look)
  _write(axes, (start + end) / 2, y + 2.1, text, color)


def _write(
  axes: Axes, x: float, y: float, text: str, color: str, **look: Any
) -> None:
  look = {'ha': 'center', 'va': 'center', 'size': 9.5, **look}
  axes.text(x, y, text, color=color, **look)


def main(argv: Sequence[str] | None = None) -> int:
  """Draws the diagram."""
  parser = argparse.ArgumentParser(
    prog='scripts.figures.diagram', description=__doc__
  )
  parser.add_argument('--out', type=local_path, default=OUT)
  draw(parser.parse_args(argv).out)
  return 0


if __name__ == '__main__':
  sys.exit(main())
