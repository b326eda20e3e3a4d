"""Seconds from a command to its first step, with and without compiled programs.

`python -m experiments.run` runs in a process of its own until it writes the
first row of training, by which the second step has been dispatched: first with
an empty compilation cache, then with what that run left there.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from experiments import config as configs
from experiments.tasks import make_task
from scripts.benchmark.measure import ROOT, Measure, Measures

TITLE = 'from the command to the first step'
ROUNDS = 'rounds of each config, twice'
SMALL = ('imagenet_codistill:laptop', 'lm_codistill:laptop')
FULL = (*SMALL, 'criteo_codistill:laptop')
_PATIENCE_S = 600.0


def measure(rounds: int, shapes: Sequence[str]) -> Iterator[list[Measure]]:
  """Starts runs, one after another.

  Args:
    rounds: how many for each config; its data are prepared before.
    shapes: configs that need no download of data.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  for config in shapes:
    make_task(configs.load(config).data).make_dataset()
  for _ in range(rounds):
    for config in shapes:
      with tempfile.TemporaryDirectory() as folder:
        for kind in ('fresh', 'compiled before'):
          seconds = _seconds(config, pathlib.Path(folder), kind)
          found.note(f'{config}, {kind}', 's', seconds)
    yield found.all()


def _seconds(config: str, folder: pathlib.Path, kind: str) -> float:
  """Seconds until the first row."""
  workdir = folder / kind.replace(' ', '-')
  line = [sys.executable, '-m', 'experiments.run', f'--config={config}']
  programs = {'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs')}
  began = time.perf_counter()
  run = subprocess.Popen(
    [*line, f'--workdir={workdir}'],
    cwd=ROOT,
    env={**os.environ, **programs},
    stdout=subprocess.DEVNULL,
  )
  try:
    while not _has_row(workdir):
      if run.poll() not in (None, 0):
        raise RuntimeError(f'{config} ended with status {run.returncode}')
      if time.perf_counter() - began > _PATIENCE_S:
        raise TimeoutError(f'{config} has not made a step')
      time.sleep(0.02)
    return time.perf_counter() - began
  finally:
    # Its checkpoint is not needed.
    run.kill()
    run.wait()


def _has_row(workdir: pathlib.Path) -> bool:
  rows = workdir / 'rows.jsonl'
  return rows.exists() and rows.stat().st_size > 0
