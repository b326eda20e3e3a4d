"""Trains a few steps in a process of its own, and prints what they took.

  python -m scripts.benchmark.job '{"config": …, "changes": …, "devices": …}'

`scale` starts one for each case: JAX's number of devices is fixed at a
process's start, and peak memory belongs to the whole process.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import psutil

from experiments import config as configs
from experiments.build import build
from scripts.benchmark.loop import Loop
from scripts.benchmark.measure import ROOT

_STATUS = pathlib.Path('/proc/self/status')


class Job(NamedTuple):
  """A config to train, the number of devices, and of steps to time."""

  config: str
  changes: Mapping[str, Any]
  devices: int
  steps: int


def start(job: Job) -> dict[str, float]:
  """Calls `run` in a process of its own."""
  line = [sys.executable, '-m', 'scripts.benchmark.job']
  done = subprocess.run(
    [*line, json.dumps(job._asdict())],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  return json.loads(done.stdout)


def run(job: Job) -> dict[str, float]:
  """Trains; peers teach from the first step on.

  Returns:
    `start`, the seconds from the beginning of this process to the end of the
    first step of all members; `step`, the mean seconds of such a step
    thereafter; `evaluation`, the seconds to evaluate all members, once
    compiled; and `memory`, this process's peak in bytes, if the system tells.
  """
  # This is too late if JAX has devices already; it keeps those.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', job.devices)
  changes = {'num_devices': job.devices, 'codistill.burn_in_steps': 0}
  config = configs.load_changed(job.config, {**job.changes, **changes})
  experiment = build(config, None)
  loop = Loop(experiment)
  loop.take(1)
  start_s = time.time() - psutil.Process().create_time()
  loop.take(1)
  step_s = loop.take(job.steps)[0] / job.steps

  def evaluate() -> float:
    began = time.perf_counter()
    experiment.evaluate(
      experiment.models(member.index for member in loop.members),
      [member.state.variables for member in loop.members],
      experiment.eval_batches(),
      [experiment.carried(member) for member in loop.members],
    )
    return time.perf_counter() - began

  evaluate()
  found = {'start': start_s, 'step': step_s, 'evaluation': evaluate()}
  if _STATUS.exists():
    words = _STATUS.read_text(encoding='utf-8').split()
    found['memory'] = 1024 * int(words[words.index('VmHWM:') + 1])
  return found


if __name__ == '__main__':
  print(json.dumps(run(Job(**json.loads(sys.argv[1])))))
