"""Pairs of two networks, such as a small and a large one: what each gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.figures import panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.figure import Cells, Figure, ends, gains, made_by
from scripts.figures.metric import AVERAGE_LOSS, LOSS, TOP_1, Rows
from scripts.figures.panel import Dots, Grid, Panel

_CONFIG = 'mixed_members'
_MODELS = 'codistill.member_models'
_ALONE = {'codistill.exchange': 'none', 'codistill.burn_in_steps': ANY}
_ALL_OF_IT = {'codistill.burn_in_steps': 0}
_STUDENT = {
  'codistill.exchange': 'frozen',
  'codistill.members': 1,
  'two_phase.members': 1,
  'two_phase.num_steps': ANY,
}


class MixedMembers(Figure):
  """The end of each network of each pair, a panel a network."""

  title = 'What do two different networks teach each other?'
  configs = (_CONFIG,)
  names = 2

  def panels(self, rows: Rows) -> Grid:
    found = _arms(rows)
    if not any(arm.runs(rows) for arms in found.values() for arm in arms):
      return []
    title, xlabel = 'ours, {}, at the end, ', LOSS.label
    return [
      [
        Panel(
          title + name,
          [
            Dots(arm.label, arm.color, LOSS.ends(arm.runs(rows), arm.who))
            for arm in arms
          ],
          xlabel,
        )
        for name, arms in found.items()
      ]
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for name, (alone, *others) in _arms(rows).items():
      metrics = [LOSS, TOP_1]
      if AVERAGE_LOSS.whole(alone.runs(rows), alone.who):
        metrics.append(AVERAGE_LOSS)
      for arm in (alone, *others):
        runs = arm.runs(rows)
        yield {
          'network': name,
          'trained': arm.label,
          **ends(runs, arm.who, *metrics),
          **gains(runs, arm.who, alone, rows, *metrics),
          **ends(runs, 'ensemble', LOSS, TOP_1, of='both averaged'),
          **made_by(_CONFIG, runs),
        }


def _arms(rows: Rows) -> dict[str, list[Arm]]:
  """How each network of the pair was trained; first alone.

  The second one, which is the smaller one on images, was also the student of a
  frozen first one. In pairs of equals the member with the number that a network
  has in the pair is shown, since it begins with the same weights.
  """
  pairs = [
    run.run['config']['codistill']['member_models']
    for run in rows.get(_CONFIG, ())
    if not run.point
  ]
  first, second = pairs[0] if pairs else ('large', 'small')

  def arm(label: str, color: str, who: int, *points: Mapping[str, Any]) -> Arm:
    point = {key: value for one in points for key, value in one.items()}
    return Arm(label, color, config=_CONFIG, point=point, who=who)

  found = {
    name: [
      arm('alone', panel.BLACK, who, _ALONE),
      arm(f'with {name}', panel.ORANGE, who, {_MODELS: [name, name]}),
      arm(f'with {other}', panel.VERMILION, who),
      arm(f'with {other}, no burn-in', panel.PURPLE, who, _ALL_OF_IT),
    ]
    for who, name, other in ((1, second, first), (0, first, second))
  }
  own = {_MODELS: [second], 'two_phase.model': first}
  found[second].append(
    arm(f'with frozen {first}', panel.BLUE, 0, _STUDENT, _ALL_OF_IT, own)
  )
  return found
