"""Rows as TensorBoard event files, without TensorFlow."""

from __future__ import annotations

import os
from typing import Any

METRICS = (
  'task_loss',
  'distill_loss',
  'accuracy',
  'average_task_loss',
  'average_accuracy',
  'disagreement',
  'peer_age',
  'examples_per_second',
)


class TensorBoard:
  """A folder of event files a member, so that their curves share one chart."""

  def __init__(self, directory: str | os.PathLike[str], start_step: int):
    """Remembers the folder; writers open with their first row.

    Args:
      directory: where to.
      start_step: what an earlier process wrote after it is hidden.
    """
    self._directory = os.fspath(directory)
    self._start_step = start_step
    self._writers: dict[Any, Any] = {}

  def __enter__(self) -> TensorBoard:
    return self

  def __exit__(self, *exception: object) -> None:
    for writer in self._writers.values():
      writer.close()

  def write(self, row: dict[str, Any]) -> None:
    """Adds a row's metrics, each under its kind."""
    # Imported when asked for: it costs a start of every run otherwise.
    from tensorboardX import SummaryWriter

    who = row['member']
    if who not in self._writers:
      name = who if who == 'ensemble' else f'member-{who}'
      self._writers[who] = SummaryWriter(
        os.path.join(self._directory, name), purge_step=self._start_step + 1
      )
    for metric in METRICS:
      value = row.get(metric)
      if value is not None:
        self._writers[who].add_scalar(
          f'{row["kind"]}/{metric}', value, row['step']
        )
