"""How members meet in a folder: how often, how closely, how patiently."""

from __future__ import annotations

import dataclasses

from codistill.exchange.copies import check_cadence, check_precisions
from codistill.exchange.folder.lease import check_timeout
from codistill.precision import FULL

# Seconds: for the last publications, and for a thread at work, at the end.
CLOSE_S = 30.0
# Seconds: the least between two looks at the neighbours' folders.
_LEAST_POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is set once for a folder, and the only place that has defaults.

  Attributes:
    reload_interval_steps: k, updates between two publications, ≥ 1.
    delay_steps: d ≥ 0, by how many more steps each publication is held back;
      for synchronous members.
    synchronous: members wait for each other rather than take the freshest.
    publish_precision: what a process publishes in.
    teacher_precision: what it holds teachers in.
    keep_publications: how many of the newest stay in the folder, ≥ 2.
    keep_s: and for how many seconds after publication all do, so that slow
      readers get to the end.
    poll_interval_s: seconds between two looks at the neighbours' folders.
    wait_timeout_s: seconds that a synchronous member waits for a peer, and
      tries to publish.
    lease_timeout_s: seconds after which a job without a sign of life is taken
      for dead.
  """

  reload_interval_steps: int
  delay_steps: int = 0
  synchronous: bool = False
  publish_precision: str = FULL
  teacher_precision: str = FULL
  keep_publications: int = 3
  keep_s: float = 30.0
  poll_interval_s: float = 0.5
  wait_timeout_s: float = 600.0
  lease_timeout_s: float = 60.0

  def __post_init__(self):
    """Refuses what cannot be.

    Raises:
      ValueError: if a number is out of range, or a delay is asked of members
        that have no common steps.
    """
    check_cadence(self.reload_interval_steps, self.delay_steps)
    check_precisions(self.publish_precision, self.teacher_precision)
    if self.delay_steps and not self.synchronous:
      raise ValueError(
        'delay_steps counts steps that members have in common, and those of '
        'several jobs have none; set synchronous, or delay_steps to 0'
      )
    if self.keep_publications < 2:
      raise ValueError(
        f'keep_publications is {self.keep_publications}; with less than 2 the '
        'one that is being read goes'
      )
    for name in ('keep_s', 'poll_interval_s', 'wait_timeout_s'):
      if (value := getattr(self, name)) < 0:
        raise ValueError(f'{name} must not be negative: {value}')
    check_timeout(self.lease_timeout_s)

  @property
  def lag(self) -> int:
    """After how many steps a publication may teach."""
    return self.delay_steps + 1

  @property
  def poll_s(self) -> float:
    """Seconds between two looks; no folder is looked at without a pause."""
    return max(self.poll_interval_s, _LEAST_POLL_S)
