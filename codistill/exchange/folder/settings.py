"""Settings of an exchange through a folder: cadence, precision, patience."""

from __future__ import annotations

import dataclasses

from codistill.exchange.copies import check_cadence, check_precisions
from codistill.exchange.folder.lease import check_timeout
from codistill.precision import FULL

# Seconds to wait at the end for the last publications and for a busy thread.
CLOSE_S = 30.0
# The least time between two looks at the neighbours' folders, in seconds.
_LEAST_POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of an exchange folder, and the only place of their defaults.

  Attributes:
    reload_interval_steps: k, updates between two publications, ≥ 1.
    delay_steps: d ≥ 0, further steps before a publication is visible; for
      synchronous members.
    synchronous: members wait for each other, rather than take the freshest.
    publish_precision: precision of publications.
    teacher_precision: precision of teachers in memory.
    keep_publications: number of newest publications that stay, ≥ 2.
    keep_s: seconds that each publication stays at least, so that slow readers
      can finish.
    poll_interval_s: seconds between two looks at the neighbours' folders.
    wait_timeout_s: seconds that a synchronous member waits for a peer, and
      tries to publish.
    lease_timeout_s: seconds without a heartbeat after which a job counts as
      dead.
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
    """Refuses impossible settings.

    Raises:
      ValueError: if a number is out of range, or for a delay of members that
        have no common steps.
    """
    check_cadence(self.reload_interval_steps, self.delay_steps)
    check_precisions(self.publish_precision, self.teacher_precision)
    if self.delay_steps and not self.synchronous:
      raise ValueError(
        'delay_steps counts steps that members have in common, and members of '
        'several jobs have none; set synchronous, or delay_steps to 0'
      )
    if self.keep_publications < 2:
      raise ValueError(
        f'keep_publications is {self.keep_publications}, so a publication may '
        'be removed while it is read; make it at least 2'
      )
    for name in ('keep_s', 'poll_interval_s', 'wait_timeout_s'):
      if (value := getattr(self, name)) < 0:
        raise ValueError(f'{name} must not be negative: {value}')
    check_timeout(self.lease_timeout_s)

  @property
  def lag(self) -> int:
    """Steps after which a publication may teach."""
    return self.delay_steps + 1

  @property
  def poll_s(self) -> float:
    """Seconds between two looks, never without a pause."""
    return max(self.poll_interval_s, _LEAST_POLL_S)
