"""Ends by arm, a row of dots each: what members share, graphs, precisions."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence

from experiments import results
from experiments.results import Result
from scripts.figures import arms, panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.curves import STEPS
from scripts.figures.figure import (
  Cells,
  Figure,
  beside,
  ends,
  gain_over,
  gains,
  made_by,
)
from scripts.figures.metric import (
  AVERAGE_LOSS,
  LOSS,
  MEMBERS,
  TOP_1,
  Curve,
  Metric,
  Rows,
  grouped,
  together,
)
from scripts.figures.panel import Dots, Grid, Line, Panel, sequence

_AT_END = 'ours, {}, at the end'


class Diversity(Figure):
  """The end of training for each combination of own and same."""

  title = 'What must members not share? Ours on images'
  configs = ('imagenet_codistill', 'imagenet_diversity')
  sources = ('initialization', 'order', 'partition')
  label = 'initialisation, order, partition'

  def panels(self, rows: Rows) -> Grid:
    own = {'imagenet_diversity': rows.get('imagenet_diversity', ())}
    if not any(LOSS.whole(runs, 0) for runs in self._points(own).values()):
      return []
    return [[self._panel(rows, LOSS), self._panel(rows, TOP_1)]]

  def _panel(self, rows: Rows, metric: Metric) -> Panel:
    colors = {'own': arms.CODISTILL.color, 'same': arms.SAME.color}
    dots = [arm.dots(metric, rows) for arm in (arms.SYNC, arms.ENSEMBLE)] + [
      Dots(', '.join(key), colors[key[-1]], metric.ends(runs, 0))
      for key, runs in self._points(rows).items()
    ]
    alone = statistics.fmean(dots[0].values) if dots[0].values else None
    return Panel(_AT_END, dots, metric.label, self.label, zero=alone)

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for key, runs in self._points(rows).items():
      apart = [
        100 * row['disagreement']
        for run in runs
        for row in run.rows
        if row['kind'] == 'final' and 'disagreement' in row
      ]
      yield {
        self.label: ', '.join(key),
        **ends(runs, 0, LOSS, TOP_1, of='one member'),
        **gains(runs, 0, arms.SYNC, rows, LOSS),
        **ends(runs, 'ensemble', LOSS, of='both averaged'),
        'members disagree on (%)': TOP_1.text(apart),
        **made_by(runs[0].run['experiment'], runs),
      }

  def _points(self, rows: Rows) -> dict[tuple[str, ...], list[Result]]:
    """Runs by their sources of diversity, own before same."""

    def key(run: Result) -> tuple[str, ...]:
      return tuple(run.run['config']['diversity'][one] for one in self.sources)

    runs = [*arms.CODISTILL.runs(rows), *arms.SAME.runs(rows)]
    runs += rows.get('imagenet_diversity', ())
    return grouped(runs, [f'diversity.{one}' for one in self.sources], key)


class Topology(Figure):
  """Disagreement over steps of the most members; every graph at the end."""

  title = 'Who should learn from whom?'
  configs = ('topology',)
  graphs: Mapping[str, tuple[str, str]] = {
    'all': (panel.VERMILION, '-'),
    'random': (panel.PURPLE, '-'),
    'star': (panel.ORANGE, '-'),
    'ring': (panel.BLUE, '-'),
    'pairs': (panel.GREEN, '-'),
    'none': (panel.BLACK, '--'),
  }

  def panels(self, rows: Rows) -> Grid:
    found = self._points(rows)
    if not found:
      return []
    most = max(members for members, _ in found)
    lines, dots = [], []
    for (members, graph), runs in found.items():
      color, style = self.graphs[graph]
      label = f'{members} members, {graph}'
      dots.append(Dots(label, color, _of_members(LOSS, runs)))
      if members == most:
        look = {'style': style, 'seeds': len(runs)}
        points = together([_disagreement(run) for run in runs])
        lines.append(Line(graph, color, points, **look))
    label = 'examples on which two members differ (%)'
    title = f'ours, {{}}, {most} members'
    alike = Panel(title, lines, STEPS, label, yscale='log')
    return [[alike, Panel(_AT_END, dots, f'a member’s {LOSS.label}')]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for (members, graph), runs in self._points(rows).items():
      apart = [_disagreement(run)[-1][1] for run in runs]
      bytes_ = [
        _megabytes(runs, which, members) for which in ('publish', 'load')
      ]
      yield {
        'members': str(members),
        'who teaches whom': graph,
        f'a member: {LOSS.short} / {TOP_1.short}': beside(
          *(one.text(_of_members(one, runs)) for one in (LOSS, TOP_1))
        ),
        **ends(runs, 'ensemble', LOSS, TOP_1, of='ensemble'),
        'two members differ on (%)': TOP_1.text(apart),
        'published / loaded, a member (MB)': beside(*bytes_),
        **made_by('topology', runs),
      }

  def _points(self, rows: Rows) -> dict[tuple[int, str], list[Result]]:
    """Finished runs by number of members and graph."""
    order = list(self.graphs)

    def key(run: Result) -> tuple[int, int]:
      codistill = run.run['config']['codistill']
      alone = codistill['exchange'] == 'none'
      graph = 'none' if alone else codistill['topology']
      return codistill['members'], order.index(graph)

    keys = ('codistill.members', 'codistill.topology', 'codistill.exchange')
    runs = TOP_1.whole(rows.get('topology', ()), 'ensemble')
    found = grouped(runs, keys, key)
    return {(n, order[graph]): runs for (n, graph), runs in found.items()}


def _of_members(metric: Metric, runs: Sequence[Result]) -> list[float]:
  """Of each run the mean over its members, of which some may be lost."""
  numbers = [range(run.run['config']['codistill']['members']) for run in runs]
  return [
    statistics.fmean(y for member in some for y in metric.ends([run], member))
    for run, some in zip(runs, numbers, strict=True)
  ]


def _disagreement(run: Result) -> Curve:
  return [
    (row['step'], 100 * row['disagreement'])
    for row in run.rows
    if row['member'] == 'ensemble' and row.get('disagreement')
  ]


def _megabytes(runs: Sequence[Result], event: str, members: int) -> str:
  """What a member exchanged in a whole run, in 10⁶ bytes."""
  total = [run.run.get('exchanged_bytes', {}).get(event, 0) for run in runs]
  return f'{statistics.fmean(total) / members / 1e6:.2f}'


class TeacherPrecision(Figure):
  """What students lose and what a teacher costs, by its precision."""

  title = 'How precise must a teacher be?'
  configs = ('teacher_precision',)
  colors: Mapping[str, str] = dict(
    zip(('float32', 'bfloat16', 'int8'), sequence(3), strict=True)
  )
  # What is shown: the names that the benchmark gives it.
  costs: Mapping[str, str] = {
    'bytes published': 'published and held, {} (MB)',
    'memory of an update': 'memory, teacher in {} (MB)',
    'time of an update': 'time, teacher in {} (ms)',
  }

  def panels(self, rows: Rows) -> Grid:
    losses = [
      Dots(
        published if published == held else f'{published}, held in {held}',
        self.colors[published],
        _both(LOSS, runs),
      )
      for (published, held), runs in self._points(rows).items()
    ]
    costs = [
      Dots(f'{what}, {name}', self.colors[name], _shares(key, name))
      for what, key in self.costs.items()
      for name in ('bfloat16', 'int8')
    ]
    xlabel = 'of what a teacher in float32 costs (%)'
    look = {'zero': 100, 'middle': statistics.median}
    right = Panel('ResNet-18, a dot a measurement', costs, xlabel, **look)
    title = 'ours, {}, at the end, a dot a seed and member'
    return [[Panel(title, losses, LOSS.label), right]] if losses else []

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for (published, held), runs in self._points(rows).items():
      yield {
        'published in': published,
        'held in': held,
        f'a member: {LOSS.short}': LOSS.text(_both(LOSS, runs)),
        f'a member: {TOP_1.short}': TOP_1.text(_both(TOP_1, runs)),
        **ends(runs, 'ensemble', LOSS, of='ensemble'),
        'published, a member (MB)': _megabytes(runs, 'publish', 2),
        **made_by('teacher_precision', runs),
      }

  def _points(self, rows: Rows) -> dict[tuple[str, str], list[Result]]:
    """Finished runs by what is published and what is held."""
    keys = ('publish_precision', 'teacher_precision')
    order = list(self.colors)
    found = grouped(
      LOSS.whole(rows.get('teacher_precision', ()), 0),
      [f'codistill.{key}' for key in keys],
      lambda run: tuple(
        order.index(run.run['config']['codistill'][key]) for key in keys
      ),
    )
    return {(order[a], order[b]): runs for (a, b), runs in found.items()}


def _both(metric: Metric, runs: Sequence[Result]) -> list[float]:
  return metric.ends(runs, 0) + metric.ends(runs, 1)


def _shares(key: str, name: str) -> list[float]:
  """Round by round: what else the machine did met all of a round alike."""
  mine, full = (_measured()[key.format(one)] for one in (name, 'float32'))
  return [100 * a / b for a, b in zip(mine, full, strict=True)]


@functools.cache
def _measured() -> Mapping[str, list[float]]:
  path = results.FOLDER / 'benchmark.json'
  return json.loads(path.read_text(encoding='utf-8'))['teacher']['values']


_APART = {
  'codistill.exchange': 'none',
  'codistill.burn_in_steps': ANY,
  'diversity.partition': 'same',
}
_FALLING = {'schedule.name': 'warmup_cosine'}
_TWICE = {'schedule.warmup_cosine.peak_rate': ANY}
_PUBLISHED = {'codistill.publish_average': True}


class Average(Figure):
  """Averaged weights and falling rates beside peers: what costs nothing."""

  title = 'Does averaging give for nothing what a peer gives?'
  configs = ('lm_average',)
  ways = tuple(
    Arm(label, color, config='lm_average', point=point, who=MEMBERS)
    for label, color, point in (
      ('alone', panel.BLACK, _APART),
      ('alone, rate falls', panel.BLACK, _APART | _FALLING),
      ('alone, twice the rate falls', panel.BLACK, _APART | _FALLING | _TWICE),
      ('codistilled', panel.VERMILION, {}),
      ('codistilled, rate falls', panel.VERMILION, _FALLING),
      ('codistilled, averages teach', panel.VERMILION, _PUBLISHED),
    )
  )
  # Runs of other configs that average, too, are not made again.
  elsewhere: Mapping[str, Arm] = {
    'alone': arms.LM_ENSEMBLE,
    'codistilled': arms.LM_CODISTILL,
  }

  def panels(self, rows: Rows) -> Grid:
    found = {arm.label: self._runs(arm, rows) for arm in self.ways}
    if not all(found[name] for name in self.elsewhere):
      return []
    return [
      [
        Panel(
          f'ours, {{}}, {title}',
          [
            Dots(label or arm.label, arm.color, metric.ends(runs, who))
            for arm in self.ways
            if (runs := found[arm.label])
            for metric, label in ((LOSS, ''), (AVERAGE_LOSS, 'its averages'))
          ],
          LOSS.label,
        )
        for who, title in ((MEMBERS, 'one network'), ('ensemble', 'ensemble'))
      ]
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    alone = self._runs(self.ways[0], rows)
    for arm in self.ways:
      runs = self._runs(arm, rows)
      yield {
        'trained': arm.label,
        **{
          f'{name}, {kind}: {LOSS.short}': metric.text(metric.ends(runs, who))
          for name, who in (('one', MEMBERS), ('ensemble', 'ensemble'))
          for kind, metric in (('weights', LOSS), ('averaged', AVERAGE_LOSS))
        },
        'weights gain over alone, seed for seed': gain_over(
          alone, runs, MEMBERS
        ),
        **made_by('lm_average', runs),
      }

  def _runs(self, arm: Arm, rows: Rows) -> list[Result]:
    runs = arm.runs(rows)
    if not runs and arm.label in self.elsewhere:
      runs = self.elsewhere[arm.label].runs(rows)
    return AVERAGE_LOSS.whole(runs, MEMBERS)
