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

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.paths import local_path

OUT = pathlib.Path(__file__).parent.parent.parent / 'docs/images/method.svg'
# Without dates and random ids, and with letters as outlines.
STYLE = {'svg.hashsalt': 'codistillation', 'svg.fonttype': 'path'}
# Colors of members 0 and 1, and of what they share.
_COLORS = ('#0072B2', '#D55E00')
_GRAY = '#555555'


def draw(out: pathlib.Path) -> None:
  """Writes the diagram; the suffix decides the format."""
  with plt.rc_context({**STYLE, 'font.size': 11}):
    figure, axes = plt.subplots(figsize=(7.8, 3.4))
    axes.set(xlim=(0, 78), ylim=(2, 35))
    axes.axis('off')
    for low, me, other in ((21, 0, 1), (3, 1, 0)):
      _draw_member(axes, low, me, other)
    _box(
      axes,
      (59, 3, 18, 31),
      'shared folder',
      _GRAY,
      'weights of\nboth members,\nas Orbax\ncheckpoints',
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Opaque, because pages may be light or dark.
    metadata = {'Date': None} if out.suffix == '.svg' else None
    figure.savefig(out, bbox_inches='tight', metadata=metadata, dpi=150)
    plt.close(figure)


def _draw_member(axes: Axes, low: float, me: int, other: int) -> None:
  color, theirs = _COLORS[me], _COLORS[other]
  _box(axes, (0.5, low + 3, 11, 7), f'data {me}', color)
  _arrow(axes, (11.5, low + 6.5), (16, low + 6.5), color)
  _box(
    axes,
    (16, low, 24, 13),
    f'member {me}: θ{"₀₁"[me]}',
    color,
    'learns from labels (φ)\nand from predictions\nof the stale copy (ψ)',
  )
  _arrow(
    axes,
    (40, low + 10),
    (59, low + 10),
    color,
    f'θ{"₀₁"[me]}, every k steps',
  )
  _arrow(axes, (59, low + 2.5), (40, low + 2.5), theirs)
  axes.text(
    *(49.5, low + 4.6),
    f'stale copy of θ{"₀₁"[other]}',
    color=theirs,
    ha='center',
    va='center',
    fontsize=9.5,
  )


def _box(
  axes: Axes,
  place: tuple[float, float, float, float],
  title: str,
  color: str,
  text: str = '',
) -> None:
  left, low, width, height = place
  axes.add_patch(
    plt.Rectangle(
      (left, low), width, height, edgecolor=color, facecolor='none', lw=1.6
    )
  )
  middle = left + width / 2
  axes.text(
    *(middle, low + height - 2.6 if text else low + height / 2),
    title,
    color=color,
    ha='center',
    va='center',
    weight='bold',
  )
  axes.text(
    *(middle, low + (height - 3.6) / 2),
    text,
    color='#222222',
    ha='center',
    va='center',
    fontsize=9.5,
  )


def _arrow(
  axes: Axes,
  start: tuple[float, float],
  end: tuple[float, float],
  color: str,
  text: str = '',
) -> None:
  axes.annotate(
    '',
    end,
    start,
    arrowprops={'arrowstyle': '-|>', 'color': color, 'lw': 1.6},
  )
  axes.text(
    *((start[0] + end[0]) / 2, start[1] + 2.1),
    text,
    color=color,
    ha='center',
    va='center',
    fontsize=9.5,
  )


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
