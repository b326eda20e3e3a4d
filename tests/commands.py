"""Runs the whole command in a test, cheaply, and reads what it left."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import types

import grain  # noqa: F401 - defines flags, before any are saved
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from stand_ins import until

from experiments import run
from experiments.build import build
from experiments.record import read_rows
from experiments.train import Trainer

ROOT = pathlib.Path(__file__).parent.parent
CODISTILL = 'imagenet_codistill:smoke'
# Peers' copies outlive checkpoints: published at 0, 3, 6, 9 and seen 3 later.
STALE = (
  '--config.num_steps=10',
  '--config.codistill.burn_in_steps=3',
  '--config.codistill.reload_interval_steps=3',
  '--config.codistill.delay_steps=2',
  '--config.eval_interval_steps=4',
  '--config.checkpoint_interval_steps=100',
)
# It compiles fast.
DNN = ('--config.model.name=dnn', '--config.model.dnn.hidden=(8,)')
# The same as DiLoCo: differences in int8 at 3, 6, 9, averaged 2 steps later.
DILOCO = (
  *(one for one in STALE if 'burn_in' not in one),
  '--config.codistill.method=diloco',
  '--config.codistill.publish_differences=True',
  '--config.codistill.publish_precision=int8',
)
# Used if no other schedule or network is named.
IMAGENET = {
  # Otherwise programs would depend on num_steps.
  '--config.schedule.name': '--config.schedule.warmup_cosine.num_steps=100',
  # It has a sixth of the layers to compile.
  '--config.model.name': '--config.model.resnet.depth=8',
}
# Keys in which experiments that share programs may differ.
NO_PROGRAM = {
  'config': 'seed num_steps eval_interval_steps checkpoint_interval_steps '
  'store_predictions predictions_interval_steps diversity',
  'codistill': 'members burn_in_steps exchange topology reload_interval_steps '
  'delay_steps immediate synchronous wait_timeout_s lease_timeout_s '
  'exchange_dir',
  'two_phase': 'members num_steps train_split',
  'data': 'max_test_tokens path',
}
_alike = {}


def build_cheaply(config, member, **keywords):
  """`build`, with the programs of an earlier experiment like it."""
  experiment = build(config, member, **keywords)
  plain = config.to_dict()
  for section, keys in NO_PROGRAM.items():
    for key in keys.split():
      (plain if section == 'config' else plain[section]).pop(key, None)
  first = _alike.setdefault(json.dumps(plain), experiment)
  named = {network.name: network for network in first.networks}
  return dataclasses.replace(
    experiment,
    networks=tuple(named[network.name] for network in experiment.networks),
    updates=first.updates,
    evaluate=first.evaluate,
  )


def run_command(workdir, *arguments, config=CODISTILL, builder=build_cheaply):
  """Runs the command in this process; returns what it built and trained."""
  outcome = types.SimpleNamespace(config=None, trainer=None, experiment=None)

  def build_and_keep(config, *arguments, **keywords):
    outcome.config = config
    return builder(config, *arguments, **keywords)

  class Kept(Trainer):
    def __init__(self, experiment, workdir):
      super().__init__(experiment, workdir)
      outcome.trainer, outcome.experiment = self, experiment

  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, 'argv', line_of(workdir, *arguments, config=config)[2:])
    patch.setattr(run, 'build', build_and_keep)
    patch.setattr(run, 'Trainer', Kept)
    outcome.status = run.main(run.parse_flags(sys.argv))
  return outcome


def line_of(workdir, *arguments, config=CODISTILL):
  named = {argument.partition('=')[0] for argument in arguments}
  of_images = IMAGENET if config.startswith('imagenet') else {}
  return [
    sys.executable,
    '-m',
    'experiments.run',
    f'--config={config}',
    f'--workdir={workdir}',
    '--config.num_devices=1',
    *(one for key, one in of_images.items() if key not in named),
    *arguments,
  ]


def start_process(line):
  # As many devices as here, so that compiled programs are shared.
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '8'}
  pipes = dict.fromkeys(('stdout', 'stderr'), subprocess.PIPE)
  return subprocess.Popen(line, cwd=ROOT, env=environment, text=True, **pipes)


@contextlib.contextmanager
def beside(*lines):
  """Other members, each in a process of its own that has to succeed."""
  processes = [start_process(line) for line in lines]
  yield
  for process in processes:
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err


@contextlib.contextmanager
def killed_once(line, workdir):
  """Member 1 in a process of its own, which is killed and started again."""
  lives = [start_process(line)]

  def kill_and_start_again():
    # It has a checkpoint of step 4, and has published step 6.
    rows, published = workdir / 'rows-1.jsonl', workdir / 'exchange/1/6'
    until(
      lambda: published.exists() and rows.read_bytes().count(b'\n') >= 7,
      lives[0],
    )
    lives[0].kill()
    lives[0].communicate()
    lives.append(start_process(line))

  thread = threading.Thread(target=kill_and_start_again)
  thread.start()
  yield
  thread.join()
  assert len(lives) == 2, lives[0].communicate()[1]
  _, err = lives[1].communicate(timeout=200)
  assert lives[1].returncode == 0, err


@contextlib.contextmanager
def on_row(act, **wanted):
  """Acts when a row with the wanted values has been written."""
  real = Trainer._write

  def write(self, row):
    real(self, row)
    if all(row[key] == value for key, value in wanted.items()):
      act(self)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Trainer, '_write', write)
    yield


def stop_after(step, number=signal.SIGTERM):
  """Sends a signal in the middle of the round that ends with `step`."""
  # Metrics are late: this row is written when member 1 has made that step.
  row = {'step': step, 'member': 0, 'kind': 'train'}
  return on_row(lambda _: signal.raise_signal(number), **row)


def stop_command(step, workdir, *arguments, number=signal.SIGTERM, **options):
  with stop_after(step, number):
    outcome = run_command(workdir, *arguments, **options)
  assert outcome.status == 128 + number


def untimed(rows):
  """Rows without what differs when a run is repeated."""
  timed = ('seconds', 'examples_per_second', 'stall_seconds')
  return [
    {k: v for k, v in row.items() if k not in timed}
    for row in rows
    # The disk decides when a publication lands.
    if row['kind'] != 'exchange'
  ]


def rows_of(workdir, name='rows.jsonl'):
  return untimed(read_rows(workdir / name))


def strict_rows(workdir):
  """Rows as other languages read them, without NaN and Infinity."""
  lines = (workdir / 'rows.jsonl').read_text(encoding='utf-8').splitlines()
  return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def leaves_of(outcome):
  """Everything that a run has in memory at its end, by path."""
  tree = {
    'members': {m.index: m.state for m in outcome.trainer.members},
    'publications': outcome.experiment.exchange.publications().variables,
  }
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_bit_for_bit(one, other):
  one, other = leaves_of(one), leaves_of(other)
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    assert leaf.dtype == other[path].dtype
    assert leaf.tobytes() == other[path].tobytes(), path


def contents(workdir):
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file()
  }


def error_sentence(capfd):
  """The command's error: one line, and no traceback."""
  err = capfd.readouterr().err
  lines = [line for line in err.splitlines() if 'experiments.run: ' in line]
  assert 'Traceback' not in err
  [line] = lines
  return line


@dataclasses.dataclass(frozen=True)
class Reference:
  """A run that nothing disturbed, and one that stopped half way."""

  arguments: tuple[str, ...]
  workdir: pathlib.Path
  whole: types.SimpleNamespace
  stopped: pathlib.Path

  @property
  def rows(self):
    return rows_of(self.workdir)

  def stopped_copy(self, folder):
    return pathlib.Path(shutil.copytree(self.stopped, folder / 'stopped'))


def make_reference(folder, *arguments):
  whole = run_command(folder / 'whole', *arguments)
  assert whole.status == 0
  stop_command(5, folder / 'half', *arguments)
  return Reference(arguments, folder / 'whole', whole, folder / 'half')
