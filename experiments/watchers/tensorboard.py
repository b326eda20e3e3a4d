"""Rows and config as TensorBoard event files, without TensorFlow."""

from __future__ import annotations

import json
import os
from typing import Any

from tensorboardX import SummaryWriter, summary

from experiments.watchers import Row, Watcher, curves, whose
from experiments.workdir import flat


class TensorBoard(Watcher):
  """A folder of event files a member, so that their curves share one chart.

  Each has the config as text, and as hyper-parameters.
  """

  def __enter__(self) -> TensorBoard:
    # They open with their first row.
    self._writers: dict[str, SummaryWriter] = {}
    return self

  def __exit__(self, *exception: object) -> None:
    for writer in self._writers.values():
      if self._workdir.run['status'] == 'done':
        writer.file_writer.add_summary(self._hyper_parameters()[2])
      writer.close()

  def write(self, row: Row) -> None:
    """Adds the numbers of a row, each under its kind."""
    who = whose(row)
    if who not in self._writers:
      self._writers[who] = self._open(who)
    for name, value in curves(row).items():
      self._writers[who].add_scalar(name, value, row['step'])

  def _open(self, who: str) -> SummaryWriter:
    """A writer that has written the config."""
    writer = SummaryWriter(
      os.path.join(self._workdir.tensorboard, who),
      # TensorBoard hides what an earlier process wrote from there on.
      purge_step=self._start_step + 1,
    )
    config = self._workdir.run['config']
    text = json.dumps(config, indent=2, ensure_ascii=False)
    writer.add_text('config', f'```\n{text}\n```', self._start_step)
    for part in self._hyper_parameters()[:2]:
      writer.file_writer.add_summary(part)
    return writer

  def _hyper_parameters(self) -> tuple[Any, Any, Any]:
    """What there are, their values, and that the run has ended well."""
    config = flat(self._workdir.run['config'])
    settings = {key: _plain(value) for key, value in config.items()}
    scores = ('final/task_loss', 'final/accuracy')
    # Not SummaryWriter.add_hparams, which begins a folder of its own for them.
    return summary.hparams(settings, dict.fromkeys(scores))


def _plain(value: Any) -> bool | float | str:
  """As a column of TensorBoard's table has it."""
  if isinstance(value, (bool, int, float, str)):
    return value
  return json.dumps(value)
