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
from experiments import config as config_lib
from experiments import predictions, run
from experiments.build import build
from experiments.ending import LOST_OTHERS
from experiments.record import read_rows, read_run

SHORT = (
  '--config.num_steps=5',
  '--config.codistill.burn_in_steps=1',
  '--config.codistill.reload_interval_steps=2',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=200',
  '--config.eval_interval_steps=5',
  '--config.eval_batch_size=32',
)


def start(workdir, member, processes, devices, *arguments):
  """The processes of a member, with so many CPU devices each."""
  world = ()
  if processes > 1:
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    world = (f'--coordinator-address={address}', f'--num-processes={processes}')
  return [
    subprocess.Popen(
      [
        *line_of(workdir, f'--member={member}', *arguments),
        f'--config.num_devices={processes * devices}',
        *world,
        *([f'--process-id={number}'] if world else []),
      ],
      cwd=ROOT,
      env={
        **os.environ,
        # Alone, as many as this process has: what one of the two has compiled
        # the other need not.
        'JAX_NUM_CPU_DEVICES': str(devices if processes > 1 else 8),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(processes)
  ]


def finish(processes):
  for process in processes:
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said


@pytest.fixture(autouse=True)
def no_process_stays(monkeypatch):
  started, real = [], subprocess.Popen

  def popen(*arguments, **keywords):
    started.append(real(*arguments, **keywords))
    return started[-1]

  monkeypatch.setattr(subprocess, 'Popen', popen)
  yield
  for process in started:
    if process.poll() is None:
      process.kill()
      process.communicate()


def stored(workdir, member):
  """A member's state as its last checkpoint has it."""
  config = config_lib.load('imagenet_codistill:smoke')
  config.codistill.exchange = 'checkpoints'
  experiment = build(config, member, exchange_folder=workdir / 'exchange')
  restored = read_newest(
    workdir / f'checkpoints-{member}',
    jax.eval_shape(lambda: experiment.init(0)),
    experiment.mesh,
    experiment.teacher_precision,
  )
  return restored.step, restored.states[member]


def test_two_hosts_a_member_train_as_one_does(tmp_path):
  """2 processes × 2 devices, and a peer of 1 × 4: as both in one process."""
  one, two = tmp_path / 'one', tmp_path / 'two'
  together = run_command(one, *SHORT, '--config.num_devices=4')
  assert together.status == 0
  finish([*start(two, 0, 2, 2, *SHORT), *start(two, 1, 1, 4, *SHORT)])
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
    step, mine = stored(two, member.index)
    assert step == 5
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
      mine.variables,
      member.state.variables,
    )


def test_a_killed_process_of_a_member_stops_that_member_alone(tmp_path):
  """It goes on from the checkpoint that all its processes wrote."""
  arguments = (
    '--config.num_steps=200',
    # Little to compile: the test above is of a network with BatchNorm.
    '--config.model.name=dnn',
    '--config.model.dnn.hidden=(8,)',
    '--config.eval_interval_steps=200',
    '--config.eval_batch_size=32',
    '--config.checkpoint_interval_steps=20',
    '--config.codistill.reload_interval_steps=20',
    '--config.codistill.lease_timeout_s=10',
  )
  several = start(tmp_path, 0, 2, 2, *arguments)
  alone = start(tmp_path, 1, 1, 4, *arguments)
  deadline = time.monotonic() + 200
  while not list((tmp_path / 'checkpoints-0').glob('[2-9]0')):
    assert time.monotonic() < deadline
    for process in several:
      assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  several[1].send_signal(signal.SIGKILL)
  several[1].communicate()
  said, _ = several[0].communicate(timeout=60)  # Within bounds.
  # In a collective, or where JAX itself aborts it.
  assert several[0].returncode in (LOST_OTHERS, -signal.SIGABRT), said
  if several[0].returncode == LOST_OTHERS:
    assert 'another process of this member has ended' in said
    assert 'Traceback' not in said
  finish(alone)
  assert read_run(tmp_path / 'run-1.json')['status'] == 'done'
  finish(start(tmp_path, 0, 2, 2, *arguments))
  run = read_run(tmp_path / 'run-0.json')
  assert (run['status'], len(run['resumed'])) == ('done', 1)
  rows = read_rows(tmp_path / 'rows-0.jsonl')
  steps = [row['step'] for row in rows if row['kind'] == 'train']
  assert steps == list(range(1, 201))
  # The peer was there, and taught both processes.
  assert any(row['peers'] == [1] for row in rows if row['kind'] == 'train')


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
