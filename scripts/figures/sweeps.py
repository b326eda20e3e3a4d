"""Ends along an ordered variable: staleness, batches, widths."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from experiments.results import Result
from scripts.figures import arms, panel
from scripts.figures.curves import Reloads
from scripts.figures.figure import Cells, Figure, count, ends, gains, made_by
from scripts.figures.metric import (
  LOSS,
  MEMBERS,
  TOP_1,
  Rows,
  crossing,
  grouped,
  one_a_seed,
)
from scripts.figures.panel import Grid, Line, Panel, along, sequence
from scripts.figures.regime import Pair, codistilled, ensemble

_RATE = 'schedule.constant.rate'


def _rate(run: Result) -> float:
  return run.run['config']['schedule']['constant']['rate']


class Staleness(Figure):
  """On images: the end over the mean age of peers, beside Figure 4's ends."""

  title = 'How old may a peer be? Ours on images'
  configs = ('imagenet_staleness',)

  def __init__(self, paper: Reloads):
    """Takes the figure whose ends are the paper's."""
    self._paper = paper

  def panels(self, rows: Rows) -> Grid:
    by_kind: dict[str, dict[float, list[float]]] = {}
    for (kind, _, _), runs in _stale(rows).items():
      if kind != _ALONE and (values := LOSS.ends(runs, 0)):
        age = runs[0].run['mean_peer_age']
        by_kind.setdefault(kind, {})[age] = values
    if not by_kind:
      return []
    lines = []
    for kind, points in by_kind.items():
      look = {'style': '--', 'marker': 's'} if kind == _DELAYED else {}
      lines += along(kind, panel.VERMILION, points, **look)
    ages = [age for points in by_kind.values() for age in points]
    for arm in (arms.SYNC, arms.HALF_OF_THE_DATA):
      lines += arm.level(LOSS, rows, ages)
    xlabel = 'mean age of the peers’ weights (updates)'
    title = 'ours, {}, images, at the end'
    return [[self._paper.paper_ends(), Panel(title, lines, xlabel, LOSS.label)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    paper = {
      f'reload {interval}': f'{curve[-1][1]:g}'
      for interval, arm in arms.LM_RELOADS.items()
      if (curve := self._paper.paper_curve(arm))
    }
    points = {f'{arms.SYNC.label}, all of the data': arms.SYNC.runs(rows)}
    for (kind, interval, delay), runs in _stale(rows).items():
      delayed = f', delay {delay}' if delay else ''
      name = kind if kind == _ALONE else f'reload {interval}{delayed}'
      points[name] = runs
    for name, runs in points.items():
      if runs:
        age = runs[0].run['mean_peer_age']
        yield {
          'peers': name,
          'mean age (updates)': '–' if age is None else f'{age:.1f}',
          **ends(runs, 0, LOSS, TOP_1),
          **gains(runs, 0, arms.SYNC, rows, LOSS),
          'paper, language model: at the end (nats)': paper.get(name, '–'),
          **made_by(runs[0].run['experiment'], runs),
        }


_RELOADED, _DELAYED = (
  'reloaded every k updates',
  'seen d later, reloaded every 10',
)
_ALONE = arms.HALF_OF_THE_DATA.label


def _stale(rows: Rows) -> dict[tuple[str, int, int], list[Result]]:
  """The sweep's runs by what they are, interval and delay."""
  kinds = (_RELOADED, _DELAYED, _ALONE)

  def key(run: Result) -> tuple[int, int, int]:
    codistill = run.run['config']['codistill']
    if codistill['exchange'] == 'none':
      return 2, 0, 0
    delay = codistill['delay_steps']
    return int(delay > 0), codistill['reload_interval_steps'], delay

  keys = ('reload_interval_steps', 'delay_steps', 'exchange')
  keys = [f'codistill.{key}' for key in keys]
  found = grouped(rows.get('imagenet_staleness', ()), keys, key)
  return {(kinds[kind], *rest): runs for (kind, *rest), runs in found.items()}


class Contrast(Figure):
  """Stale gradients and teachers: the oldest over steps, all at the end."""

  title = 'Stale gradients and stale predictions'
  configs = ('staleness_contrast',)
  seeds = 1
  looks = (
    ('stale teachers', panel.VERMILION, '-'),
    ('stale gradients', panel.BLUE, '-'),
    ('stale gradients, a quarter of the rate', panel.BLUE, '--'),
  )

  def panels(self, rows: Rows) -> Grid:
    found = self._points(rows)
    if not found:
      return []
    delays = sorted({delay for _, delay in found})
    alone = arms.LM_ALONE
    curves, at_end = [], alone.level(LOSS, rows, delays)
    for label, color, style in self.looks:
      points = {
        d: LOSS.ends(runs, MEMBERS)
        for (kind, d), runs in found.items()
        if kind == label
      }
      at_end += along(label, color, points, style=style)
      if runs := found.get((label, delays[-1])):
        look = {'style': style, 'seeds': len(runs)}
        points = LOSS.points(runs, MEMBERS)
        curves.append(Line(label, color, points, **look))
    if runs := alone.runs(rows):
      points = LOSS.points(runs, MEMBERS)
      curves.append(alone.draw(points, seeds=len(runs)))
    axis = {'xscale': 'log', 'xticks': delays}
    title = f'ours, {{}}, {delays[-1]} updates old'
    xlabel, label = 'step (updates)', LOSS.label
    oldest = Panel(title, curves, xlabel, label, yscale='log')
    title, xlabel = 'ours, {}, at the end', 'delay (updates)'
    return [[oldest, Panel(title, at_end, xlabel, label, **axis)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    points = self._points(rows)
    if points and (alone := arms.LM_ALONE.runs(rows)):
      points = {(arms.LM_ALONE.label, 0): alone, **points}
    for (label, delay), runs in points.items():
      yield {
        'what is stale': label,
        'delay (updates)': f'{delay:,}',
        **ends(runs, MEMBERS, LOSS),
        **gains(runs, MEMBERS, arms.LM_ALONE, rows, LOSS),
        'learning rate': f'{_rate(runs[0]):g}',
        **made_by('staleness_contrast', runs),
      }

  def _points(self, rows: Rows) -> dict[tuple[str, int], list[Result]]:
    """Runs that got to their end, by kind and by how old what they use is."""

    def key(run: Result) -> tuple[int, int]:
      config = run.run['config']
      if config['codistill']['exchange'] != 'none':
        return 0, config['codistill']['delay_steps'] + 1
      delay = config['num_async_workers'] - 1
      return 2 if _RATE in run.point else 1, delay

    keys = ('members', 'exchange', 'burn_in_steps', 'delay_steps')
    keys = [f'codistill.{key}' for key in keys]
    keys += ['diversity.partition', 'num_async_workers', _RATE]
    runs = LOSS.whole(rows.get('staleness_contrast', ()), MEMBERS)
    found = grouped(runs, keys, key)
    return {(self.looks[k][0], d): runs for (k, d), runs in found.items()}


class Batch(Figure):
  """Synchronous SGD by batch and rate: the end, and steps to a level."""

  title = 'Where twice the batch stops to pay: synchronous SGD on text'
  configs = ('lm_sync',)
  seeds = 1

  def panels(self, rows: Rows) -> Grid:
    found = _batches(rows)
    lanes = sorted({size for size, _ in found})
    rates = sorted({rate for _, rate in found})
    if len(lanes) < 3 or len(rates) < 2:
      return []
    at_end, to_level = [], []
    for rate, color in zip(rates, sequence(len(rates)), strict=True):
      some = {size: runs for (size, at), runs in found.items() if at == rate}
      label = f'learning rate {rate:g}'
      points = {size: LOSS.ends(runs, 0) for size, runs in some.items()}
      at_end += along(label, color, points)
      steps = {size: _steps(rows, runs) for size, runs in some.items()}
      points = {size: [at] for size, at in steps.items() if at is not None}
      to_level += along(label, color, points, seeds=None)
    own = arms.LM_SYNC.runs(rows)
    product = own[0].run['config']['batch_size'] * _steps(rows, own)
    ideal = {size: [product / size] for size in lanes}
    label = 'half of the steps at twice the batch'
    to_level.append(Line(label, panel.DARK_GRAY, ideal, ':'))
    axis = {'xscale': 'log', 'xticks': lanes, 'xlabel': 'lanes a batch'}
    title = 'ours, {}, to the baseline’s best'
    steps = Panel(title, to_level, ylabel='steps', yscale='log', **axis)
    title = 'ours, {}, at the end'
    return [[Panel(title, at_end, ylabel=LOSS.label, **axis), steps]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for (lanes, rate), runs in _batches(rows).items():
      at = _steps(rows, runs)
      tokens = lanes * runs[0].run['config']['data'].get('sequence_length', 1)
      yield {
        'lanes a batch': f'{lanes:,}',
        'learning rate': f'{rate:g}',
        **ends(runs, 0, LOSS, of='at the end'),
        'steps to the baseline’s best': count(at, 'not reached'),
        'tokens to it (M)': '–' if at is None else f'{at * tokens / 1e6:.1f}',
        **made_by('lm_sync', runs),
      }


def _steps(rows: Rows, runs: list[Result]) -> float | None:
  """To the best value of the baseline's mean curve."""
  best = min(y for _, y in LOSS.mean_curve(arms.LM_SYNC.runs(rows), 0))
  return crossing(LOSS.mean_curve(runs, 0), best, min)


def _batches(rows: Rows) -> dict[tuple[int, float], list[Result]]:
  """Runs that got to their end, by lanes and rate; none without a baseline."""
  if not arms.LM_SYNC.ended(LOSS, rows):
    return {}
  return grouped(
    LOSS.whole(rows['lm_sync'], 0),
    ['batch_size', _RATE],
    lambda run: (run.run['config']['batch_size'], _rate(run)),
  )


class _Width(NamedTuple):
  """Runs of one width at the rate, of those tried, that is best alone."""

  rate: float
  tried: int
  pair: Pair

  @property
  def share(self) -> float:
    """Of the ensemble's gain in percent."""
    peer, both = (
      statistics.fmean(of(self.pair)) for of in (codistilled, ensemble)
    )
    return 100 * peer / both


class Width(Figure):
  """What a peer and an ensemble give, at each width's own rate."""

  title = 'The wider the network, the more a peer gives?'
  configs = ('lm_width',)

  def panels(self, rows: Rows) -> Grid:
    widths = _widths(rows)
    if len(widths) < 2:
      return []
    lines = []
    for arm, of in (
      (arms.LM_ENSEMBLE, ensemble),
      (arms.LM_CODISTILL, codistilled),
    ):
      points = {units: of(width.pair) for units, width in widths.items()}
      lines += along(arm.label, arm.color, points)
    shares = {units: [width.share] for units, width in widths.items()}
    share = along('share', panel.VERMILION, shares, seeds=None)
    axis = {'xscale': 'log', 'xticks': list(widths), 'zero': 0}
    axis['xlabel'] = 'units of each of two layers'
    ylabel = 'better than one alone (nats)'
    gain = Panel('ours, {}', lines, ylabel=ylabel, **axis)
    title, ylabel = 'ours, {}, codistilled', 'of what an ensemble gains (%)'
    return [[gain, Panel(title, share, ylabel=ylabel, **axis)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for units, width in _widths(rows).items():
      together, apart = width.pair
      losses = [
        LOSS.ends(apart, MEMBERS),
        LOSS.ends(together, MEMBERS),
        LOSS.ends(apart, 'ensemble'),
      ]
      alone, taught = (
        LOSS.mean_curve(one, MEMBERS) for one in (apart, together)
      )
      best = min(y for _, y in alone)
      steps = [crossing(curve, best, min) for curve in (alone, taught)]
      kinds = 'alone / codistilled / ensemble of two'
      yield {
        'units': f'2 × {units}',
        'learning rate, best alone': f'{width.rate:g} ({width.tried} tried)',
        f'{kinds}: {LOSS.short}': ' / '.join(map(LOSS.text, losses)),
        'codistillation gains': LOSS.text(codistilled(width.pair), sign='+'),
        'the ensemble gains': LOSS.text(ensemble(width.pair), sign='+'),
        'share': f'{width.share:.0f} %',
        'steps to the best of one alone: alone / codistilled': ' / '.join(
          count(at, 'not reached') for at in steps
        ),
        **made_by('lm_width', together),
      }


def _widths(rows: Rows) -> dict[int, _Width]:
  """By units, ascending; of each the rate at which two alone end best."""
  runs = list(rows.get('lm_width', ()))
  for config in ('lm_codistill', 'lm_ensemble'):
    runs += [run for run in rows.get(config, ()) if run.point.keys() <= {_RATE}]
  # Of a run that lost a member nothing can be compared.
  for who in (0, 1, 'ensemble'):
    runs = LOSS.whole(runs, who)
  found: dict[int, dict[float, tuple[list[Result], list[Result]]]] = {}
  for run in runs:
    config = run.run['config']
    by_rate = found.setdefault(config['model']['lstm']['hidden_size'], {})
    pair = by_rate.setdefault(_rate(run), ([], []))
    pair[config['codistill']['exchange'] == 'none'].append(run)
  widths = {}
  for units, by_rate in sorted(found.items()):
    alone = {
      rate: statistics.fmean(LOSS.ends(apart, MEMBERS))
      for rate, (_, apart) in by_rate.items()
      if apart
    }
    if not alone:
      continue
    best = min(alone, key=lambda rate: alone[rate])
    together, apart = by_rate[best]
    pair = one_a_seed(together), one_a_seed(apart)
    if codistilled(pair):
      widths[units] = _Width(best, len(alone), pair)
  return widths
