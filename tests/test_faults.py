"""Failures: bad input, full disks, losses that are not finite."""

import contextlib
import errno
import functools
import io
import math
import os
import re
import signal
import sys
import warnings
from unittest import mock

import jax
import numpy as np
import pytest
from commands import (
  CODISTILL,
  DNN,
  error_sentence,
  line_of,
  on_row,
  rows_of,
  run_command,
  start_process,
  stop_after,
  strict_rows,
  untimed,
)

from codistill.algorithm import Member, Report
from codistill.storage.checkpoint import Checkpoints
from experiments import faults, record
from experiments.experiment import Experiment
from experiments.record import read_run

# tests/test_build.py has more of them, without a command.
BAD = {
  '--config.codistill.members=0': ('codistill.members is 0', '1'),
  '--member=2 --config.codistill.exchange=none': (
    *('--member=2 is out of range', '2 members'),
  ),
  '--member=one': ("'one'", 'all'),
  '--config.batch_size=20 --config.num_devices=8': (
    *('batch_size 20', 'not divisible by 8 devices'),
  ),
  '--config.num_devices=9999': ('num_devices is 9999',),
  '--config.codistill.exchange=pigeon': (
    *("'pigeon'", 'memory, checkpoints, frozen, none'),
  ),
  '--config.codistill.lease_timeout_s=0': ('must be at least 1',),
  '--config.fault.kind=slow --config.fault.step=1': ('scripts.launch',),
  '--config.fault.kind=slow --config.fault.slow_factor=0.5': ('at least 1',),
  '--config.fault.kind=death --config.codistill.members=1': ('kill it',),
  **{
    f'--config.data.{key}=-1': (f'data.{key} is -1; it must be at least 0',)
    for key in ('num_workers', 'num_threads', 'prefetch_batches')
  },
}


def test_bad_input_is_one_sentence_and_makes_no_run(tmp_path, capfd):
  for arguments, said in BAD.items():
    assert run_command(tmp_path, *arguments.split()).status == 2
    sentence = error_sentence(capfd)
    for words in said:
      assert words in sentence
  assert list(tmp_path.iterdir()) == []
  # The folder is not made, either.
  assert run_command(tmp_path / 'run', '--member=7').status == 2
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_serve_is_one_sentence(tmp_path, capfd):
  unprepared = (
    '--config.data.name=cifar10',
    '--config.data.image_shape=(32, 32, 3)',
    f'--config.data.data_dir={tmp_path}',
  )
  (tmp_path / 'file').write_text('in the way')
  below = tmp_path / 'file' / 'below'
  for workdir, arguments, said in (
    (tmp_path / 'run', unprepared, 'python -m scripts.prepare_images cifar10'),
    (tmp_path / 'run', unprepared, 'TFDS_DATA_DIR'),
    (below, (), f'cannot write to {below}'),
    (below, (), '--workdir'),
    ('s3://bucket/run', (), 's3://bucket/run is not on this machine'),
    # Nobody could read its checkpoints.
    (tmp_path / 'train[:50%]' / 'run', (), 'because of its brackets; choose'),
  ):
    assert run_command(workdir, *arguments).status == 2
    assert said in error_sentence(capfd)
  assert not (tmp_path / 'train[:50%]').exists()


def test_a_reader_that_leaves_stops_the_run_with_a_checkpoint(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
  long = ('--config.num_steps=1000000', '--config.eval_interval_steps=1000000')
  with start_process(line_of(tmp_path, *DNN, *long)) as process:
    # It prints where it runs; then nobody reads any more.
    assert process.stdout.readline() == f'{CODISTILL} on 1 ? cpu\n'
    process.stdout.close()
    assert process.stderr.read() == ''
  assert process.returncode == 128 + signal.SIGPIPE
  found = read_run(tmp_path / 'run.json')
  assert found['status'] == 'interrupted'
  last = max(row['step'] for row in rows_of(tmp_path))
  assert found['checkpoint'] == last
  assert (tmp_path / 'checkpoints' / str(last)).is_dir()


def test_devices_that_are_not_there_are_one_sentence(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  process = start_process(line_of(tmp_path / 'run', *DNN))
  out, err = process.communicate(timeout=100)
  assert (process.returncode, out, err.count('\n')) == (2, '', 1)
  assert 'unset JAX_PLATFORMS' in err
  assert not (tmp_path / 'run').exists()


def full(*arguments, **keywords):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_for_rows(patch):
  class Full(io.FileIO):
    room = 3000

    def write(self, data):
      if not self.room:
        full()
      taken = bytes(data[: self.room])
      self.room -= len(taken)
      return super().write(taken)

  def open_full(path, mode='r', **keywords):
    kind = Full if mode == 'ab' else functools.partial(open, **keywords)
    return kind(path, mode)

  patch.setattr(record, 'open', open_full, raising=False)


def full_disk_for_checkpoints(patch):
  def save(*arguments, **keywords):
    # TensorStore said this on a file system of 200 kB.
    raise RuntimeError('could not save') from ValueError(
      'RESOURCE_EXHAUSTED: Error writing "d/0": Failed to write to local '
      'file [OS error 28: ENOSPC No space left on device]'
    )

  patch.setattr(Checkpoints, 'save', save)


def full_disk_for_provenance(patch):
  real, calls = os.fsync, []

  def fsync(descriptor):
    calls.append(descriptor)
    return real(descriptor) if len(calls) == 1 else full()

  patch.setattr(os, 'fsync', fsync)


@pytest.mark.parametrize(
  'fill',
  [full_disk_for_rows, full_disk_for_checkpoints, full_disk_for_provenance],
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(
  small, tmp_path, capfd, fill
):
  with pytest.MonkeyPatch.context() as patch:
    fill(patch)
    assert run_command(tmp_path, *small.arguments).status == 1
  assert re.search('disk is full.*same command', error_sentence(capfd))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # One line may be partial.
    rows = rows_of(tmp_path)
  assert rows
  assert rows == small.rows[: len(rows)]
  assert run_command(tmp_path, *small.arguments).status == 0
  assert rows_of(tmp_path) == small.rows


def test_a_file_that_cannot_be_written_is_one_sentence(
  small, tmp_path, capfd, monkeypatch
):
  path = str(tmp_path / 'checkpoints/10')
  denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
  monkeypatch.setattr(Checkpoints, 'save', mock.Mock(side_effect=denied))
  assert run_command(tmp_path, *small.arguments).status == 1
  sentence = error_sentence(capfd)
  assert f'{path}: Permission denied; fix that' in sentence


# A process in which no folder for a checkpoint can be made.
NO_FOLDER = """
import errno, os, runpy, sys

real = os.mkdir

def mkdir(path, *arguments, **keywords):
  if 'checkpoints/' in str(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return real(path, *arguments, **keywords)

os.mkdir = mkdir
sys.argv = sys.argv[1:]
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


def test_a_checkpoint_that_failed_does_not_keep_the_process(tmp_path):
  """Orbax's threads would keep it for five minutes."""
  config = 'imagenet_sync:smoke'
  line = line_of(tmp_path, *DNN, config=config)
  process = start_process([sys.executable, '-c', NO_FOLDER, *line[2:]])
  err = process.communicate(timeout=100)[1]
  assert process.returncode == 1
  assert re.search('experiments.run: .*disk is full', err.splitlines()[-1])
  assert 'future.py' not in err  # Orbax logs it.
  assert max(row['step'] for row in rows_of(tmp_path)) == 4
  assert run_command(tmp_path, *DNN, config=config).status == 0
  assert read_run(tmp_path / 'run.json')['status'] == 'done'


@contextlib.contextmanager
def sick(step, member):
  """Makes a member's examples NaN from a step on."""
  real, patient = Experiment.batches, member

  def batches(self, member, start):
    for number, batch in enumerate(real(self, member, start), start + 1):
      if member == patient and number >= step:
        batch = {**batch, 'inputs': batch['inputs'] * math.nan}
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Experiment, 'batches', batches)
    yield


THREE = (
  *DNN,
  '--config.num_steps=8',
  '--config.codistill.members=3',
  '--config.codistill.reload_interval_steps=1',
  '--config.eval_interval_steps=4',
  '--config.checkpoint_interval_steps=100',
)


@pytest.fixture(scope='module')
def diverged(tmp_path_factory):
  """The workdir of a run with a member that falls ill at step 5."""

  @functools.cache
  def diverged(patient):
    workdir = tmp_path_factory.mktemp(f'diverged-{patient}')
    with sick(5, patient):
      assert run_command(workdir, *THREE).status == 1
    return workdir

  return diverged


@pytest.mark.parametrize('patient', [0, 2])
def test_a_member_that_diverges_falls_silent_and_the_others_go_on(
  diverged, capfd, patient
):
  workdir = diverged(patient)
  found = read_run(workdir / 'run.json')
  steps = {key: what['step'] for key, what in found['diverged'].items()}
  assert (found['status'], steps) == ('diverged', {str(patient): 5})
  rows = untimed(strict_rows(workdir))
  well = [member for member in range(3) if member != patient]
  assert [row['step'] for row in rows if row['member'] == patient][-1] == 5
  for row in rows:
    if row['member'] == patient:
      assert (row['task_loss'] is None) == (row['step'] >= 5)
    elif row['kind'] == 'train' and row['step'] > 3:
      ages = dict(zip(row['peers'], row['peer_ages'], strict=True))
      [other] = set(well) - {row['member']}
      # Its last copy is of step 4.
      assert ages == {patient: max(0, row['step'] - 5), other: 0}
      assert row['peer_age'] == ages[patient]
      assert math.isfinite(row['task_loss'])
      assert math.isfinite(row['distill_loss'])
  final = [row for row in rows if row['kind'] == 'final']
  assert [row['member'] for row in final] == [*well, 'ensemble']
  assert all(row['task_loss'] is not None for row in final)
  # Shown again, it still has diverged.
  capfd.readouterr()
  assert run_command(workdir, *THREE).status == 1
  assert f'member {patient} diverged at step 5' in error_sentence(capfd)


# The last member of a round has made one more update when its loss is known.
@pytest.mark.parametrize(('patient', 'step'), [(0, 5), (2, 6)])
def test_a_member_that_diverged_stays_out_when_resumed(
  diverged, tmp_path, patient, step
):
  with sick(5, patient), stop_after(step):
    assert run_command(tmp_path, *THREE).status == 128 + signal.SIGTERM
  # It is healthy again, but is not asked.
  assert run_command(tmp_path, *THREE).status == 1
  whole = diverged(patient)
  assert rows_of(tmp_path) == rows_of(whole)
  one, other = (read_run(w / 'run.json') for w in (whole, tmp_path))
  assert one['diverged'] == other['diverged']
  assert other['status'] == 'diverged'


def test_a_divergence_after_the_last_checkpoint_may_not_happen_again(
  small, tmp_path
):
  class Killed(BaseException):
    pass

  def die(trainer):
    raise Killed

  workdir = small.stopped_copy(tmp_path)
  with sick(7, 1), on_row(die, step=9, kind='train'), pytest.raises(Killed):
    run_command(workdir, *small.arguments)
  assert read_run(workdir / 'run.json')['diverged']
  assert run_command(workdir, *small.arguments).status == 0
  found = read_run(workdir / 'run.json')
  assert (found['status'], found['diverged']) == ('done', {})
  assert rows_of(workdir) == small.rows


def ruined(member, step):
  """Ruins a member after a loss, as a rate that is far too high does."""

  def ruin(trainer):
    state = trainer.members[member].state
    trainer.members[member].state = jax.tree.map(
      lambda leaf: leaf * math.nan if leaf.dtype == np.float32 else leaf, state
    )

  return on_row(ruin, step=step, member=member, kind='train')


@pytest.mark.parametrize(
  ('make', 'step', 'scored'),
  # The last one is ruined by its last update, which shows at the end.
  [(sick, 5, False), (sick, 8, False), (ruined, 8, True)],
)
def test_when_all_have_diverged_the_run_ends(
  tmp_path, capfd, make, step, scored
):
  with make(step=step, member=0):
    outcome = run_command(tmp_path, *DNN, config='imagenet_sync:smoke')
  assert outcome.status == 1
  assert f'member 0 diverged at step {step}' in error_sentence(capfd)
  assert read_run(tmp_path / 'run.json')['status'] == 'diverged'
  rows = strict_rows(tmp_path)
  assert max(row['step'] for row in rows) == step
  final = [row for row in rows if row['kind'] == 'final']
  assert [row['task_loss'] for row in final] == [None] * scored


def test_a_ruined_member_is_no_part_of_the_ensemble(tmp_path):
  with ruined(1, 8):
    stores = '--config.store_predictions=True'
    assert run_command(tmp_path, *THREE, stores).status == 1
  final = [row for row in strict_rows(tmp_path) if row['kind'] == 'final']
  assert [row['member'] for row in final] == [1, 0, 2, 'ensemble']
  assert final[0]['task_loss'] is final[0]['accuracy'] is None
  for row in final[1:]:
    assert math.isfinite(row['task_loss'])
  one, other, mean = (
    np.load(tmp_path / f'predictions/step-8/{who}.npy')
    for who in ('member-0', 'member-2', 'ensemble')
  )
  np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-5)


DEATH = (
  *(f'--config.fault.{key}' for key in ('kind=death', 'member=1', 'step=3')),
)


@pytest.mark.parametrize('method', ['codistillation', 'local_sgd'])
def test_a_member_that_dies_on_purpose_leaves_its_last_weights(
  tmp_path, method
):
  lines = (*THREE, *DEATH, f'--config.codistill.method={method}')
  assert run_command(tmp_path / 'whole', *lines).status == 0
  rows = untimed(strict_rows(tmp_path / 'whole'))
  train = [row for row in rows if row['kind'] == 'train']
  assert [row['step'] for row in train if row['member'] == 1] == [1, 2, 3]
  # Averages leave out weights older than an interval; teachers may be old.
  averages = method == 'local_sgd'
  for row in train:
    if row['step'] > 5:
      ages = dict(zip(row['peers'], row['peer_ages'], strict=True))
      assert ages.get(1) == (None if averages else row['step'] - 4)
      assert row['left_out'] == ({'1': 'old'} if averages else {})
  final = [row['member'] for row in rows if row['kind'] == 'final']
  assert final == [0, 2, 'ensemble']
  assert read_run(tmp_path / 'whole/run.json')['status'] == 'done'
  # Stopped before or after, the same command ends with the same rows.
  for stop in (2, 5):
    workdir = tmp_path / str(stop)
    with stop_after(stop):
      assert run_command(workdir, *lines).status == 128 + signal.SIGTERM
    assert run_command(workdir, *lines).status == 0
    assert untimed(strict_rows(workdir)) == rows


def test_a_slow_member_takes_so_many_times_as_long(monkeypatch):
  now, slept = [0.0], []

  def sleep(seconds):
    now[0] += seconds
    slept.append(seconds)

  monkeypatch.setattr(faults.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(faults.time, 'sleep', sleep)
  fault = faults.Fault('slow', 1, step=2, rate_factor=1, slow_factor=10, seed=0)

  def reports(member):
    for step in range(1, 5):
      now[0] += 2  # An update takes two seconds.
      yield Report(Member(member, None, iter(())), step, {}, (), True)

  for member, stops, wanted in (
    (0, False, 0),
    (1, False, 2 * 18),
    (1, True, 0),
  ):
    slept.clear()
    for _ in fault.slowed(reports(member), lambda stops=stops: stops):
      now[0] += 5  # What its consumer does is not slower.
    assert sum(slept) == wanted
    assert max(slept, default=0) <= 1
