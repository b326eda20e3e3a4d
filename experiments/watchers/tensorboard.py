"""Rows and config as TensorBoard event files, without TensorFlow."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.results import flat
from experiments.watchers import Row, Watcher, curves, whose

# The longest time until a row is on the disk, if others follow it.
_FLUSH_SECONDS = 30.0


class TensorBoard(Watcher):
  """A folder of event files a member, so that their curves share one chart.

  Each has the config as text, and as hyper-parameters. They are not written by
  tensorboardX's thread: after an error it would keep the run waiting for ever.
  """

  name = 'TensorBoard'

  def __enter__(self) -> TensorBoard:
    # They open with their first row.
    self._writers: dict[str, EventsWriter] = {}
    self._flushed = time.monotonic()
    return self

  def __exit__(self, *exception: object) -> None:
    self._attempt(self._close)

  def write(self, row: Row) -> None:
    """Adds the numbers of a row, each under its kind."""
    self._attempt(self._write, row)

  def _write(self, row: Row) -> None:
    who = whose(row)
    if who not in self._writers:
      self._writers[who] = self._open(who)
    for name, value in curves(row).items():
      _add(self._writers[who], row['step'], summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._flushed = time.monotonic()
      for writer in self._writers.values():
        writer.flush()

  def _close(self) -> None:
    for writer in self._writers.values():
      if self._workdir.run['status'] == 'done':
        _add(writer, None, self._hyper_parameters()[2])
      writer.close()

  def _open(self, who: str) -> EventsWriter:
    """A writer that has written the config."""
    folder = os.path.join(self._workdir.tensorboard, who)
    os.makedirs(folder, exist_ok=True)
    writer = EventsWriter(os.path.join(folder, 'events'))
    # TensorBoard hides what an earlier process wrote from there on.
    start = SessionLog(status=SessionLog.START)
    writer.write_event(Event(step=self._start_step + 1, session_log=start))
    config = self._workdir.run['config']
    text = json.dumps(config, indent=2, ensure_ascii=False)
    _add(writer, self._start_step, summary.text('config', f'```\n{text}\n```'))
    for part in self._hyper_parameters()[:2]:
      _add(writer, None, part)
    return writer

  def _hyper_parameters(self) -> tuple[Any, Any, Any]:
    """What there are, their values, and that the run has ended well."""
    config = flat(self._workdir.run['config'])
    settings = {key: _plain(value) for key, value in config.items()}
    scores = ('final/task_loss', 'final/accuracy')
    # Not SummaryWriter.add_hparams, which begins a folder of its own for them.
    return summary.hparams(settings, dict.fromkeys(scores))


def _add(writer: EventsWriter, step: int | None, part: Any) -> None:
  writer.write_event(Event(wall_time=time.time(), step=step, summary=part))


def _plain(value: Any) -> bool | float | str:
  """As a column of TensorBoard's table has it."""
  if isinstance(value, (bool, int, float, str)):
    return value
  return json.dumps(value)
