"""Members of several processes: worlds of `jax.distributed` on this machine."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from commands import ROOT, line_of, rows_of, run_command
from stand_ins import until

from codistill import hosts
from codistill.storage.checkpoint import read_newest
from experiments import predictions, run
from experiments.ending import LOST_OTHERS, REFUSED, ending_of
from experiments.record import read_run

# It compiles fast; tests/test_train_step.py has BatchNorm on many devices.
ARGUMENTS = (
  '--config.num_devices=4',
  '--config.model.name=dnn',
  '--config.model.dnn.hidden=(8,)',
  '--config.eval_batch_size=32',
  '--config.num_steps=9',
  '--config.eval_interval_steps=9',
  '--config.checkpoint_interval_steps=3',
  '--config.codistill.burn_in_steps=1',
  '--config.codistill.reload_interval_steps=2',
)
APART = (
  *ARGUMENTS,
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=200',
  '--config.codistill.lease_timeout_s=10',
)
# Each tries what one of the two cannot do, and writes down what came of it.
SHARE = """
import json, pathlib, sys
from codistill import hosts

me = int(sys.argv[2])
hosts.start(sys.argv[1], 2, me, start_timeout_s=60, heartbeat_timeout_s=60)

def fail_in(process):
  if me == process:
    raise OSError(f'{process} has no data')
  return f'{me} has'

said = []
for share in (hosts.all_or_none, hosts.first_then_others):
  for process in (None, 0, 1):
    try:
      said.append(share(lambda: fail_in(process)))
    except (OSError, hosts.OtherProcessError) as error:
      said.append(f'{type(error).__name__} {error}')
said.append(hosts.tell(f'{me} tells', 1))
hosts.leave()
pathlib.Path(sys.argv[3], sys.argv[2]).write_text(json.dumps(said))
"""
# experiments.run, in which one of the two cannot do something.
FAILING = """
import sys, time
from unittest import mock
from absl import app
from experiments import run

if '--process-id=1' in sys.argv:
  error = PermissionError(13, 'Permission denied', 'images')
  run.build = mock.Mock(side_effect=error)
  complain = run.complain
  # The other must not leave before.
  run.complain = lambda sentence: (time.sleep(2), complain(sentence))
app.run(run._main_of_process, flags_parser=run._parse_or_exit)
"""
STARTED = []


def start(line_of_process):
  """Starts two processes that meet, with two CPU devices each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '2'}
  processes = [
    subprocess.Popen(
      line_of_process(address, number),
      cwd=ROOT,
      env=environment,
      text=True,
      **options,
    )
    for number in range(2)
  ]
  STARTED.extend(processes)
  return processes


def start_member(workdir, code=None):
  """Starts two processes as member 0."""

  def line(address, number):
    python, *command = line_of(
      workdir,
      *APART,
      '--member=0',
      f'--coordinator-address={address}',
      '--num-processes=2',
      f'--process-id={number}',
    )
    return [python, *(['-c', code, *command[2:]] if code else command)]

  return start(line)


@pytest.fixture(autouse=True)
def no_process_stays():
  yield
  for process in STARTED:
    if process.poll() is None:
      process.kill()
      process.communicate()
  STARTED.clear()


def lose_one_and_start_again(workdir, said):
  """Starts a world, kills one process, and starts it again; adds outputs."""
  processes = start_member(workdir)
  # All of its processes have written this checkpoint.
  until((workdir / 'checkpoints-0/3').exists, processes[0])
  processes[1].kill()
  processes[1].communicate()
  said.append(processes[0].communicate(timeout=60)[0])  # Within bounds.
  for process in start_member(workdir):
    said.append(process.communicate(timeout=250)[0])


def test_two_hosts_one_of_which_is_killed_train_as_one_does(tmp_path):
  """2 processes × 2 devices with a peer of 1 × 4, against one process."""
  one, two, said = tmp_path / 'one', tmp_path / 'two', []
  world = threading.Thread(target=lose_one_and_start_again, args=(two, said))
  world.start()
  together = run_command(one, *ARGUMENTS)
  assert together.status == 0
  # It has the same programs, so it runs in this process.
  assert run_command(two, *APART, '--member=1').status == 0
  world.join()
  lost, _, *again = [process.returncode for process in STARTED]
  # It ended in a collective, or JAX aborted it.
  assert lost in (LOST_OTHERS, -signal.SIGABRT), '\n'.join(said)
  if lost == LOST_OTHERS:
    assert 'another process of this member has ended' in said[0]
    assert 'Traceback' not in said[0]
  assert again == [0, 0], '\n'.join(said)
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
    # It resumed from the checkpoint that all had written.
    resumed = found.get('resumed', ())
    assert (found['status'], len(resumed)) == ('done', 1 - member.index)
    # The first of two processes has stored what both predicted.
    (p, right), (q, same) = (
      predictions.find(workdir)[9, member.index].open()
      for workdir in (two, one)
    )
    np.testing.assert_array_equal(right, same)
    np.testing.assert_allclose(p, q, rtol=1e-3, atol=1e-5)
    restored = read_newest(
      two / f'checkpoints-{member.index}',
      experiment.abstract,
      experiment.mesh,
      experiment.teacher_precision,
    )
    assert restored.step == 9
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
      restored.states[member.index].variables,
      member.state.variables,
    )


def test_what_one_process_cannot_do_ends_in_all(tmp_path):
  python = [sys.executable, '-c', SHARE]
  processes = start(
    lambda address, number: [*python, address, str(number), str(tmp_path)]
  )
  said = [process.communicate(timeout=60)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  lines = [
    json.loads((tmp_path / str(number)).read_text()) for number in range(2)
  ]
  other = 'OtherProcessError process {0} of this member cannot go on: {0} has'
  first, second = (f'{other.format(process)} no data' for process in (0, 1))
  # Together, and then the first before the other.
  assert lines[0] == [
    *('0 has', 'OSError 0 has no data', second),
    *('0 has', 'OSError 0 has no data', second),
    '1 tells',
  ]
  assert lines[1] == [
    *('1 has', first, 'OSError 1 has no data'),
    *('1 has', first, 'OSError 1 has no data'),
    '1 tells',
  ]


def test_processes_end_together_whatever_the_status(tmp_path):
  """JAX would abort one that waits for another that has left."""
  processes = start_member(tmp_path, FAILING)
  said = [process.communicate(timeout=60)[0] for process in processes]
  assert [process.returncode for process in processes] == [LOST_OTHERS, 1], said
  assert 'process 1 of this member cannot go on: ' in said[0]
  assert 'images: Permission denied; fix that' in said[1]
  assert 'Terminating process' not in ''.join(said)


def test_others_end_like_the_process_that_failed():
  for kinds, status in (
    (['BadDataError', 'UserError'], REFUSED),
    (['OSError'], LOST_OTHERS),
  ):
    error = hosts.OtherProcessError('why', kinds)
    assert ending_of(error) == (status, 'why')


def test_who_waits_for_others_says_so_and_for_how_long(monkeypatch, capsys):
  """JAX would be silent, and then abort with a C++ stack."""
  ended = threading.Event()
  leave = mock.Mock(side_effect=lambda status: ended.set())
  monkeypatch.setattr(run.os, '_exit', leave)
  monkeypatch.setattr(run, '_SILENT_S', 0)
  handlers = []

  def wait_for_others(*_, **timeouts):
    handlers.append(signal.getsignal(signal.SIGTERM))
    ended.wait(60)

  wait = mock.Mock(side_effect=wait_for_others)
  monkeypatch.setattr(hosts, 'start', wait)
  world = run.World('host:1', 2, 0)
  join = functools.partial(run._join, world, run.Console())
  before = signal.signal(signal.SIGTERM, lambda *_: None)
  join(start_timeout_s=0.2, heartbeat_timeout_s=7)
  # Python's own would wait, too.
  assert handlers == [signal.SIG_DFL]
  assert signal.signal(signal.SIGTERM, before) is not signal.SIG_DFL
  assert wait.call_args.args == ('host:1', 2, 0)
  timeouts = wait.call_args.kwargs
  assert timeouts['start_timeout_s'] > 10
  assert timeouts['heartbeat_timeout_s'] == 7
  out, err = capsys.readouterr()
  assert 'Waiting for the other processes of this member, up to 0.2' in out
  assert 'did not find each other in 0.2 seconds' in err
  leave.assert_called_once_with(LOST_OTHERS)
  # Those who come are not waited for.
  wait.side_effect = lambda *_, **timeouts: None
  join(start_timeout_s=60, heartbeat_timeout_s=7)
  for thread in threading.enumerate():
    assert not isinstance(thread, threading.Timer) or thread.finished.is_set()
  assert leave.call_count == 1


def test_one_process_is_the_first_and_agrees_with_itself():
  assert hosts.is_first()
  assert not hosts.are_several()
  assert hosts.any_says(True)
  assert not hosts.any_says(False)
  assert hosts.tell({'a': [1, None]}) == {'a': [1, None]}
  np.testing.assert_array_equal(hosts.gather([3, 4]), [[3, 4]])
  assert hosts.all_or_none(lambda: 7) == 7
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
  # In a single process it cannot be the reason.
  assert hosts.lost(error) == ''
  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  assert hosts.lost(error) == (text if is_lost else '')
  assert hosts.lost(OSError('Connection reset by peer')) == ''


def test_a_failed_process_does_not_wait_for_the_others(monkeypatch, capsys):
  """At exit JAX would, for minutes, and the others would wait for it."""
  leave = mock.Mock(side_effect=SystemExit)
  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  monkeypatch.setattr(run.os, '_exit', leave)
  lost = 'another process of this member has ended'
  for text, status, sentence in (
    ('Gloo AllGather failed', LOST_OTHERS, lost),
    ('shapes differ', 1, 'Traceback'),
  ):
    fail = mock.Mock(side_effect=jax.errors.JaxRuntimeError(text))
    monkeypatch.setattr(run, 'run', fail)
    with flagsaver.flagsaver():
      argv = run.parse_flags(['run', '--config=imagenet_codistill:smoke'])
      with pytest.raises(SystemExit):
        run._main_of_process(argv)
    assert leave.call_args.args == (status,)
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
