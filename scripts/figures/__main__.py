"""Redraws the paper's figures beside ours, and their numbers as tables.

  python -m scripts.figures [NAME … | all] [--variant=NAME]
    [--results=DIR] [--out=DIR] [--into=FILE …]

Left what the paper shows, read off its figures; right what our committed rows
show. Writes <name>-<variant>.svg, .png and .md in docs/figures, or in --out,
byte for byte the same each time; --into also puts the tables between a file's
markers. A figure that is named and has no rows says what makes them. Needs
neither jax nor the data.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments import results
from experiments.paths import local_path
from scripts import markdown
from scripts.figures import arms
from scripts.figures.arms import LOSS, TOP_1, Rows
from scripts.figures.average import Average
from scripts.figures.batch import Batch
from scripts.figures.churn import (
  MODELS,
  OTHER_COPY,
  REGRESSION,
  Choices,
  Churn,
  ChurnOverSteps,
)
from scripts.figures.contrast import Contrast
from scripts.figures.cost import Cost, EqualCompute
from scripts.figures.curves import Curves
from scripts.figures.diversity import Diversity
from scripts.figures.failed_peer import FailedPeer
from scripts.figures.figure import Figure, hours_table
from scripts.figures.half_the_steps import HalfTheSteps
from scripts.figures.regime import Regime
from scripts.figures.staleness import Staleness
from scripts.figures.teacher_fit import TeacherFit
from scripts.figures.teacher_precision import TeacherPrecision
from scripts.figures.topology import Topology
from scripts.figures.transfer import Transfer
from scripts.figures.two_phase import TwoPhase
from scripts.figures.width import Width

OUT = pathlib.Path(__file__).parent.parent.parent / 'docs/figures'
VARIANTS = ('gpu', 'reduced', 'sample', 'narrow', 'laptop')
DPI = 150  # Of PNGs.
# The same for the same rows: no dates, no random ids, letters as outlines.
STYLE = {
  'svg.hashsalt': 'codistillation',
  'svg.fonttype': 'path',
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.titlesize': 9.5,
  'grid.alpha': 0.3,
  'legend.frameon': False,
  'legend.fontsize': 7.5,
  'lines.linewidth': 1.4,
}

_text = functools.partial(
  Curves,
  metric=LOSS,
  baseline=arms.LM_ALONE,
  paper_label='validation cross-entropy (nats a token)',
  paper_range=(3.85, 4.75),
)
_WINDOW = 15_000  # Where Figures 1, 2 and 4 end.
_FIGURE_2A = _text(
  'Figure 2a: codistillation, its controls, the ensemble',
  paper=('fig2a',),
  arms=(
    arms.LM_ALONE,
    arms.LM_UNIFORM,
    arms.LM_UNIGRAM,
    arms.LM_CODISTILL,
    arms.LM_ENSEMBLE,
  ),
  paper_steps=_WINDOW,
)
_FIGURE_2B = _text(
  'Figure 2b: the same data against partitioned data',
  paper=('fig2b',),
  arms=(arms.LM_ALONE, arms.LM_SAME, arms.LM_CODISTILL, arms.LM_ENSEMBLE),
  paper_steps=_WINDOW,
)
_FIGURE_4 = _text(
  'Figure 4: how often peers are reloaded',
  paper=('fig4', 'fig2a'),
  arms=(
    arms.LM_ALONE,
    arms.LM_CODISTILL,
    arms.LM_RELOAD_10,
    arms.LM_RELOAD_25,
    arms.LM_RELOAD_100,
    arms.LM_RELOAD_250,
    arms.LM_NO_PEERS,
  ),
  paper_steps=_WINDOW,
)
_BATCHES = (arms.LM_HALF, arms.LM_SYNC, arms.LM_DOUBLE)

FIGURES: Mapping[str, Figure] = {
  'fig1a': _text(
    'Figure 1a: half the batch and twice the batch, by steps',
    paper=('fig1a',),
    arms=_BATCHES,
    baseline=arms.LM_SYNC,
    paper_steps=_WINDOW,
  ),
  'fig1b': _text(
    'Figure 1b: half the batch and twice the batch, by hours',
    paper=('fig1b',),
    arms=_BATCHES,
    baseline=arms.LM_SYNC,
    paper_steps=_WINDOW,
    by_hours=True,
  ),
  'fig2a': _FIGURE_2A,
  'fig2b': _FIGURE_2B,
  'fig3': Curves(
    'Figure 3: codistillation on images',
    paper=('fig3',),
    metric=TOP_1,
    arms=(arms.SYNC, arms.SYNC_DOUBLE, arms.TWO_WAY),
    baseline=arms.SYNC,
    paper_label='ImageNet, top-1 validation accuracy (%)',
    paper_range=(60, 77),
    also=(LOSS,),
  ),
  'fig4': _FIGURE_4,
  'batch': Batch('Where twice the batch stops to pay: synchronous SGD on text'),
  'regime': Regime('From where on does codistillation gain?'),
  'over_fitting': _text(
    'The arms of Figures 2a and 2b where one network over-fits',
    paper=('fig2a', 'fig2b'),
    arms=arms.OVER_FITTING,
    baseline=arms.OVER_FITTING[0],
    paper_steps=_WINDOW,
  ),
  'width': Width('The wider the network, the more a peer gives?'),
  'average': Average('Does averaging give for nothing what a peer gives?'),
  'two_phase': TwoPhase('Two phases, all steps counted'),
  'staleness_contrast': Contrast('Stale gradients and stale predictions'),
  'cost': Cost(
    'Fewer steps are not less computing',
    arms=(
      arms.LM_SYNC,
      arms.LM_HALF,
      arms.LM_DOUBLE,
      arms.LM_UNIFORM,
      arms.LM_CODISTILL,
      arms.LM_SAME,
      arms.LM_TWO_PHASE,
      arms.LM_ENSEMBLE,
    ),
    baseline=arms.LM_SYNC,
  ),
  'equal_compute': EqualCompute('Two networks’ worth of computing'),
  'table1': Churn(
    'Table 1: log loss and churn of retrains',
    ('criteo_table1',),
    'DNN',
    (*MODELS, OTHER_COPY, REGRESSION),
  ),
  'controls': Curves(
    'The arms of Figures 2a and 2b, ours on images',
    paper=('fig2a', 'fig2b'),
    metric=LOSS,
    arms=arms.CONTROLS,
    baseline=arms.CONTROLS[0],
    paper_label='validation cross-entropy (nats a token)',
    paper_range=(3.85, 4.75),
    paper_steps=_WINDOW,
    also=(TOP_1,),
    paper_note=', language model',
  ),
  'staleness': Staleness(
    'Figure 4’s question, ours on images', _FIGURE_4, (LOSS, TOP_1)
  ),
  'diversity': Diversity(
    'What the members share, ours on images', _FIGURE_2B, (LOSS, TOP_1)
  ),
  'half_the_steps': HalfTheSteps(
    'One budget: one network, or two for half of the steps'
  ),
  'transfer': Transfer('A student of a frozen pair, by what it learns from'),
  'teacher_fit': TeacherFit('When does a teacher stop to help?'),
  'failed_peer': FailedPeer('What if one model collapses? One of three fails'),
  'topology': Topology('Who should learn from whom?'),
  'teacher_precision': TeacherPrecision('How precise must a teacher be?'),
  'churn': ChurnOverSteps(
    'Log loss and churn on the way: clicks',
    ('criteo_table1',),
    'DNN',
    (*MODELS, REGRESSION),
  ),
  'choices': Choices(
    'What the paper leaves out: reload interval, burn-in, partition',
    ('criteo_table1', 'criteo_choices'),
    'DNN',
  ),
  'churn_images': ChurnOverSteps(
    'Log loss and churn on the way: images',
    ('imagenet_sync', 'imagenet_ensemble', 'imagenet_codistill'),
    'network',
  ),
}


def draw(figure: Figure, rows: Rows, variant: str, stem: pathlib.Path) -> None:
  """Writes `<stem>.svg` and `<stem>.png`."""
  # Whatever the user's own matplotlibrc says.
  with plt.style.context(['default', STYLE]):
    picture, (paper, ours) = plt.subplots(
      1, 2, figsize=(10, 4), layout='constrained'
    )
    picture.suptitle(figure.title, fontsize=11)
    for axes, title in zip((paper, ours), figure.titles, strict=True):
      axes.set_title(title.format(variant=variant))
    figure.draw_left(paper, rows)
    figure.draw_ours(ours, rows)
    picture.savefig(f'{stem}.svg', metadata={'Date': None})
    picture.savefig(f'{stem}.png', dpi=DPI, metadata={'Software': None})
    plt.close(picture)


def choose(names: Sequence[str], rows: Rows) -> list[str]:
  """The figures that are meant; ValueError for one that there is not.

  All are those that have rows.
  """
  if not names or 'all' in names:
    there = [name for name in FIGURES if FIGURES[name].has_rows(rows)]
    if without := [name for name in FIGURES if name not in there]:
      print(
        f'without rows: {", ".join(without)}; name one to see what makes it'
      )
    return there
  for name in names:
    if name not in FIGURES:
      near = difflib.get_close_matches(name, FIGURES)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise ValueError(
        f'there is no figure {name!r}{hint} There are {", ".join(FIGURES)}, all'
      )
  return list(names)


def _make(arguments: argparse.Namespace) -> None:
  rows = results.read_folder(arguments.results, arguments.variant)
  names = choose(arguments.names, rows)
  arguments.out.mkdir(parents=True, exist_ok=True)
  tables = {}
  for name in names:
    figure = FIGURES[name]
    stem = arguments.out / f'{name}-{arguments.variant}'
    tables[stem.name] = figure.table(rows, arguments.variant)
    stem.with_suffix('.md').write_text(tables[stem.name], encoding='utf-8')
    if figure.has_rows(rows):
      draw(figure, rows, arguments.variant, stem)
      print(f'{stem}.svg, .png, .md')
    else:
      why = ' '.join(figure.how(arguments.variant).split())
      print(f'{stem}.md, no picture. {why}')
  hours = arguments.out / f'hours-{arguments.variant}.md'
  tables[hours.stem] = hours_table(rows, arguments.variant)
  hours.write_text(tables[hours.stem], encoding='utf-8')
  for path in arguments.into:
    markdown.insert_into(path, tables)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.figures',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('names', nargs='*', metavar='NAME', help='default: all')
  parser.add_argument(
    '--variant',
    choices=VARIANTS,
    default='reduced',
    help='whose rows (default: %(default)s)',
  )
  parser.add_argument(
    '--results',
    type=local_path,
    default=results.FOLDER,
    metavar='DIR',
    help='where rows lie (default: experiments/results)',
  )
  parser.add_argument(
    '--out',
    type=local_path,
    default=OUT,
    metavar='DIR',
    help='where figures and tables go (default: docs/figures)',
  )
  parser.add_argument(
    '--into',
    type=local_path,
    action='append',
    default=[],
    metavar='FILE',
    help='a Markdown file with <!-- table NAME --> … <!-- end -->; repeatable',
  )
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
