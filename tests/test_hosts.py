"""Members of several processes: worlds of `jax.distributed` on this machine."""

import os
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from commands import ROOT, line_of, rows_of, run_command

from codistill import hosts
from codistill.checkpoint import read_newest
from experiments import predictions, run
from experiments.ending import LOST_OTHERS
from experiments.record import read_rows, read_run

# Little to compile; tests/test_train_step.py has BatchNorm on many devices.
ARGUMENTS = (
  '--config.num_devices=4',
  '--config.model.name=dnn',
  '--config.model.dnn.hidden=(8,)',
  '--config.eval_batch_size=32',
)
SHORT = (
  *ARGUMENTS,
  '--config.num_steps=5',
  '--config.codistill.burn_in_steps=1',
  '--config.codistill.reload_interval_steps=2',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=200',
  '--config.eval_interval_steps=5',
)


STARTED = []


def start(workdir, *arguments):
  """Two processes that are member 0, with two CPU devices each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [
        *line_of(workdir, '--member=0', *arguments),
        *(f'--coordinator-address={address}', '--num-processes=2'),
        f'--process-id={number}',
      ],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(2)
  ]
  STARTED.extend(processes)
  return processes


def finish(processes):
  for process in processes:
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said


@pytest.fixture(autouse=True)
def no_process_stays():
  yield
  for process in STARTED:
    if process.poll() is None:
      process.kill()
      process.communicate()
  STARTED.clear()


def test_two_hosts_a_member_train_as_one_does(tmp_path):
  """2 processes × 2 devices, and a peer of 1 × 4: as both in one process."""
  one, two = tmp_path / 'one', tmp_path / 'two'
  processes = start(two, *SHORT)
  together = run_command(one, *SHORT)
  assert together.status == 0
  # With the same programs, and so in this process.
  assert run_command(two, *SHORT, '--member=1').status == 0
  finish(processes)
  experiment = together.experiment
  for member in together.trainer.members:
    ours = rows_of(two, f'rows-{member.index}.jsonl')
    theirs = [row for row in rows_of(one) if row['member'] == member.index]
    assert [(r['step'], r['kind'], r['peers']) for r in ours] == [
      (r['step'], r['kind'], r['peers']) for r in theirs
    ]
    # ψ was on, against the same publications.
    assert [row['peer_age'] for row in ours[:5]] == [None, 1, 0, 1, 0]
    for loss in ('task_loss', 'distill_loss'):
      np.testing.assert_allclose(
        [row[loss] for row in ours if row[loss] is not None],
        [row[loss] for row in theirs if row[loss] is not None],
        rtol=1e-5,
      )
    found = read_run(two / f'run-{member.index}.json')
    assert found['device']['processes'] == (1 if member.index else 2)
    # The first of two processes has stored what both predicted.
    (p, right), (q, same) = (
      predictions.find(workdir)[5, member.index].open()
      for workdir in (two, one)
    )
    np.testing.assert_array_equal(right, same)
    np.testing.assert_allclose(p, q, rtol=1e-3, atol=1e-5)
    restored = read_newest(
      two / f'checkpoints-{member.index}',
      jax.eval_shape(lambda: experiment.init(0)),
      experiment.mesh,
      experiment.teacher_precision,
    )
    assert restored.step == 5
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
      restored.states[member.index].variables,
      member.state.variables,
    )


def test_a_killed_process_of_a_member_stops_that_member(tmp_path):
  """It goes on from the checkpoint that all its processes wrote."""
  arguments = (
    *ARGUMENTS,
    '--config.num_steps=100',
    '--config.eval_interval_steps=100',
    '--config.checkpoint_interval_steps=20',
    '--config.codistill.reload_interval_steps=20',
    '--config.codistill.lease_timeout_s=10',
  )
  # The peer that is to teach both processes.
  assert run_command(tmp_path, *arguments, '--member=1').status == 0
  processes = start(tmp_path, *arguments)
  deadline = time.monotonic() + 200
  while not list((tmp_path / 'checkpoints-0').glob('[2-9]0')):
    assert time.monotonic() < deadline
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  processes[1].kill()
  processes[1].communicate()
  said, _ = processes[0].communicate(timeout=60)  # Within bounds.
  # In a collective, or where JAX itself aborts it.
  assert processes[0].returncode in (LOST_OTHERS, -signal.SIGABRT), said
  if processes[0].returncode == LOST_OTHERS:
    assert 'another process of this member has ended' in said
    assert 'Traceback' not in said
  finish(start(tmp_path, *arguments))
  run = read_run(tmp_path / 'run-0.json')
  assert (run['status'], len(run['resumed'])) == ('done', 1)
  rows = read_rows(tmp_path / 'rows-0.jsonl')
  train = [row for row in rows if row['kind'] == 'train']
  assert [row['step'] for row in train] == list(range(1, 101))
  assert any(row['peers'] == [1] for row in train)


def test_one_process_is_the_first_and_agrees_with_itself():
  assert hosts.is_first()
  assert not hosts.are_several()
  assert hosts.any_says(True)
  assert not hosts.any_says(False)
  assert hosts.tell({'a': [1, None]}) == {'a': [1, None]}
  np.testing.assert_array_equal(hosts.gather([3, 4]), [[3, 4]])
  assert hosts.first_then_others(lambda: 7) == 7


@pytest.mark.parametrize(
  ('text', 'is_lost'),
  [
    ('UNKNOWN: Gloo AllGather failed: Connection reset by peer', True),
    ('INTERNAL: NCCL operation failed: remote process exited', True),
    ('UNAVAILABLE: Failed to send RPC to coordination service.', True),
    ('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes', False),
  ],
)
@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, ValueError])
def test_a_process_that_is_gone_is_told_from_other_errors(
  text, is_lost, kind, monkeypatch
):
  error = RuntimeError('a save failed')
  error.__cause__ = kind(text)
  # Of one process alone it cannot be the reason.
  assert hosts.lost(error) == ''
  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  assert hosts.lost(error) == (text if is_lost else '')
  assert hosts.lost(OSError('Connection reset by peer')) == ''


@pytest.mark.parametrize(
  ('text', 'status', 'sentence'),
  [
    ('Gloo AllGather failed', 3, 'another process of this member has ended'),
    ('shapes differ', 1, 'Traceback'),
  ],
)
def test_who_fails_does_not_wait_for_the_others(
  text, status, sentence, monkeypatch, capsys
):
  """As JAX does at exit, for minutes, and the others for it."""

  def fail(*_):
    raise jax.errors.JaxRuntimeError(text)

  def leave(number):
    raise SystemExit(number)

  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  monkeypatch.setattr(run, 'run', fail)
  monkeypatch.setattr(run.os, '_exit', leave)
  with flagsaver.flagsaver():
    argv = run.parse_flags(['run', '--config=imagenet_codistill:smoke'])
    with pytest.raises(SystemExit) as left:
      run._main_of_process(argv)
  assert left.value.code == status
  err = capsys.readouterr().err
  assert sentence in err
  assert ('Traceback' in err) == (status == 1)


def test_saves_and_loads_go_on_in_a_process_beside_this_one():
  beside = hosts.OwnWorld()
  try:
    there = beside.call(os.getpid)
    assert there != os.getpid()
    assert beside.call(os.getpid) == there
    with pytest.raises(ZeroDivisionError):
      beside.call(divmod, 1, 0)
    os.kill(there, signal.SIGKILL)
    with pytest.raises(Exception, match='terminated abruptly'):
      beside.call(time.sleep, 60)
    assert beside.call(os.getpid) != there
  finally:
    beside.close()
