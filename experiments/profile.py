"""Some of a run's steps under JAX's profiler."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import jax

from codistill.algorithm import Report


class Profile:
  """Writes one trace of some steps, of all members of this process."""

  def __init__(
    self,
    steps: range,
    folder: pathlib.Path,
    start_step: int,
    say: Callable[[str], None],
  ):
    """Begins nothing yet.

    Args:
      steps: which.
      folder: where the trace goes.
      start_step: after which the run begins, or goes on.
      say: how to tell where the trace is, or that there will be none.
    """
    self._steps, self._folder, self._say = steps, folder, say
    self._done = start_step
    self._began: int | None = None
    if start_step >= steps[-1]:
      say(
        f'Nothing is profiled: the run is past step {steps[-1]:,}. Name later '
        'steps with --profile.'
      )

  def __enter__(self) -> Profile:
    return self

  def __exit__(self, *exception: object) -> None:
    self._end()

  def watch(self, reports: Iterator[Report]) -> Iterator[Report]:
    """The same reports. What is done between two steps is in the trace, too."""
    report = None
    while True:
      if self._began is None and self._done + 1 in self._steps:
        if report is not None:
          # What is still at work belongs to the steps before.
          jax.block_until_ready(report.metrics)
        self._began = self._done + 1
        jax.profiler.start_trace(self._folder)
      with jax.profiler.StepTraceAnnotation('step', step_num=self._done + 1):
        report = next(reports, None)
      if report is None:
        return
      self._done = report.step if report.ends_round else self._done
      if self._began is not None and self._done >= self._steps[-1]:
        jax.block_until_ready(report.metrics)
        self._end()
      yield report

  def _end(self) -> None:
    if self._began is None:
      return
    jax.profiler.stop_trace()
    self._say(
      f'Steps {self._began:,} to {self._done:,} are profiled in {self._folder} '
      '(docs/watching.md says how to open it).'
    )
    self._began = None
