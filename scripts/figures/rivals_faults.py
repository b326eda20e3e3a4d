"""Codistillation and its rivals when a member dies half-way, or is slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scripts.figures import panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.ends import Ends
from scripts.figures.figure import COMMAND, Cells
from scripts.figures.metric import Rows
from scripts.figures.rivals import WAYS

_CONFIG, _REFERENCE = 'lm_rivals_faults', 'lm_rivals'
_DEAD = {'fault.kind': 'death'}
_SLOW = {'fault.kind': 'slow', 'codistill.exchange': 'checkpoints'}
_OLD, _WORSE = 'codistill.max_age_steps', 'codistill.max_task_loss_ratio'
# What becomes of member 1, and which weights a rule leaves out.
_FATES = {
  'well': {},
  'dies half-way': _DEAD,
  'dies half-way, old weights are left out': {**_DEAD, _OLD: ANY},
  'ten times slower': _SLOW,
  'ten times slower, worse weights are left out': {**_SLOW, _WORSE: ANY},
}
# When a fault happens, and what methods tune for themselves.
_FREE = (
  *('fault.step', 'codistill.outer_learning_rate'),
  'schedule.constant.rate',
)
_NEVER = {'codistill.exchange': 'none', 'codistill.burn_in_steps': ANY}


class RivalsFaults(Ends):
  """Where member 0 ends: beside one that is well, and without one."""

  title = 'What does it cost when the other member dies, or is slow?'
  configs = (_REFERENCE, _CONFIG)
  columns = ('members, and what becomes of member 1',)
  of = 'member 0'
  other, of_other = 1, 'member 1'

  def groups(self, rows: Rows) -> Mapping[str, Sequence[Arm]]:
    never, found = _arm('members that never meet', panel.BLACK, _NEVER), []
    for method, (name, color) in WAYS.items():
      own = {} if method == 'codistillation' else {'codistill.method': method}
      for fate, point in _FATES.items():
        found.append(_arm(f'{name}, {fate}', color, own | point))
    # Some rules were tried with some methods.
    return {'': [never, *(arm for arm in found if arm.runs(rows))]}

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for line in super().lines(rows):
      # It is no sweep's: each member needs a process of its own.
      slow = 'slower' in line[self.columns[0]]
      yield line | ({COMMAND: 'below the table'} if slow else {})


def _arm(label: str, color: str, point: Mapping) -> Arm:
  config = _CONFIG if 'fault.kind' in point else _REFERENCE
  return Arm(label, color, config=config, point=point, free=_FREE)
