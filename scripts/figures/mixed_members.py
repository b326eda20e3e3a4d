"""Pairs of two networks, such as a small and a large one: what each gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.figures import panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.ends import Ends
from scripts.figures.metric import AVERAGE_LOSS, LOSS, TOP_1, Rows

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


class MixedMembers(Ends):
  """The end of each network of each pair, a panel a network."""

  title = 'What do two different networks teach each other?'
  configs = (_CONFIG,)
  names = 2
  columns = ('network', 'trained')
  metrics = (LOSS, TOP_1, AVERAGE_LOSS)
  of_other = 'both averaged'
  others = (LOSS, TOP_1)

  def groups(self, rows: Rows) -> Mapping[str, Sequence[Arm]]:
    """How each network of the pair was trained; first alone.

    The second one, which is the smaller one on images, was also the student of
    a frozen first one. In pairs of equals the member with the number that a
    network has in the pair is shown, since it begins with the same weights.
    """
    pairs = [
      run.run['config']['codistill']['member_models']
      for run in rows.get(_CONFIG, ())
      if not run.point
    ]
    first, second = pairs[0] if pairs else ('large', 'small')

    def arm(
      label: str, color: str, who: int, *points: Mapping[str, Any]
    ) -> Arm:
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
