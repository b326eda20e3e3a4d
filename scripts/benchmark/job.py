"""A few steps of training in a process of its own, and what they took.

  python -m scripts.benchmark.job '{"config": …, "changes": …, "devices": …}'

Of use to `scale`: how many devices JAX shows is settled at a process's start,
and so is the most memory that it ever had.
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
  """What to train, on how many devices, how many steps are timed."""

  config: str
  changes: Mapping[str, Any]
  devices: int
  steps: int


def start(job: Job) -> dict[str, float]:
  """`run` in a process of its own."""
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
    Seconds: `start`, from the beginning of this process to the end of the first
    step of all members, `step`, the mean of such a step thereafter, and
    `evaluation`, of the members once it is compiled; and the most `memory` that
    this process had, in bytes, where the system tells.
  """
  # Too late where devices are in use already: then there are those.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', job.devices)
  config = configs.load(job.config)
  changes = {
    **job.changes,
    'num_devices': job.devices,
    'codistill.burn_in_steps': 0,
  }
  configs.check_keys(config, changes)
  config.update_from_flattened_dict(changes)
  experiment = build(config, None)
  loop = Loop(experiment)
  loop.take(1)
  start_s = time.time() - psutil.Process().create_time()
  loop.take(1)
  step_s = loop.take(job.steps)[0] / job.steps

  def evaluate() -> float:
    began = time.perf_counter()
    experiment.evaluate(
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
