"""Members in one process or in many, through memory or a folder: one run."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest
from commands import (
  assert_bit_for_bit,
  contents,
  error_sentence,
  line_of,
  rows_of,
  run_command,
  start_process,
  stop_after,
)

from codistill.exchange.folder import publication
from codistill.exchange.folder.lease import Lease
from experiments.build import build
from experiments.record import read_rows, read_run

FOLDER = (
  '--config.codistill.exchange=checkpoints',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=120',
)
# As FOLDER, but for one member: the exchange follows.
APART = (*FOLDER[1:], '--config.checkpoint_interval_steps=4')


@pytest.mark.parametrize('members', ['pair', 'triple'])
def test_one_process_sees_the_same_in_memory_and_in_a_folder(
  tmp_path, request, members
):
  reference = request.getfixturevalue(members)
  outcome = run_command(tmp_path, *reference.arguments, *FOLDER)
  assert outcome.status == 0
  assert rows_of(tmp_path) == reference.rows
  assert_same_states(outcome.trainer.members, reference.whole.trainer.members)


def assert_same_states(members, others):
  for one, other in zip(members, others, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one.state, other.state)


@pytest.mark.parametrize('stop', [4, 7])
def test_a_run_through_a_folder_resumes_bit_for_bit(pair, tmp_path, stop):
  with stop_after(stop):
    status = run_command(tmp_path, *pair.arguments, *FOLDER).status
  assert status == 128 + signal.SIGTERM
  outcome = run_command(tmp_path, *pair.arguments, *FOLDER)
  assert (outcome.status, outcome.trainer.start_step) == (0, stop)
  assert rows_of(tmp_path) == pair.rows
  again = run_command(tmp_path / 'again', *pair.arguments, *FOLDER)
  assert_bit_for_bit(outcome, again)


def test_three_processes_are_one_run_though_one_is_killed(triple, tmp_path):
  """Bit for bit: rows, and the members' states at the end."""
  lines = [
    line_of(tmp_path, *triple.arguments, *APART, f'--member={member}')
    for member in range(3)
  ]
  processes = [start_process(line) for line in lines]
  # It has a checkpoint of step 4, and has published step 6.
  wait_for(
    lambda: (
      (tmp_path / 'exchange/1/6').exists() and number_of_rows(tmp_path, 1) >= 7
    ),
    processes,
  )
  processes[1].kill()
  processes[1].communicate()
  processes[1] = start_process(lines[1])
  for process in processes:
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
  together = triple.rows
  for member in range(3):
    rows = rows_of(tmp_path, f'rows-{member}.jsonl')
    # Of an evaluation, a process knows its own member alone.
    assert rows == [row for row in together if row['member'] == member]
    state = stored_state(tmp_path, member)
    assert_same_states(
      [state], [m for m in triple.whole.trainer.members if m.index == member]
    )
  assert incarnation(tmp_path, 1) == 2
  assert read_run(tmp_path / 'run-1.json')['resumed']
  assert read_run(tmp_path / 'run-1.json')['status'] == 'done'


def wait_for(condition, processes):
  deadline = time.monotonic() + 200
  while not condition():
    for process in processes:
      if process.poll() not in (None, 0):
        raise AssertionError(process.communicate()[1])
    assert time.monotonic() < deadline
    time.sleep(0.005)


def number_of_rows(workdir, member):
  path = workdir / f'rows-{member}.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def stored_state(workdir, member):
  """The trainer's member, as its process left it."""
  outcome = run_command(workdir, *stored_arguments(workdir, member))
  assert outcome.status == 0
  # A finished run is shown, not trained: read what it stored.
  from codistill.checkpoint import Checkpoints

  run = read_run(workdir / f'run-{member}.json')
  config = load_config(run)
  experiment = build(config, member, exchange_folder=workdir / 'exchange')
  checkpoints = Checkpoints(workdir / f'checkpoints-{member}')
  restored = checkpoints.restore(
    jax.eval_shape(lambda: experiment.init(0)),
    experiment.mesh,
    experiment.teacher_precision,
  )
  checkpoints.close()
  from codistill.algorithm import Member

  return Member(member, restored.states[member], iter(()))


def stored_arguments(workdir, member):
  argv = read_run(workdir / f'run-{member}.json')['argv']
  return [a for a in argv[1:] if not re.match('--(config|workdir)=', a)]


def load_config(run):
  from ml_collections import ConfigDict

  return ConfigDict(run['config'])


def incarnation(workdir, member):
  path = workdir / 'exchange' / str(member) / 'lease.json'
  return json.loads(path.read_text())['incarnation']


# Without synchrony.

ALONE = ('--member=0', '--config.num_steps=10')


def test_a_member_alone_goes_on_without_peers(tmp_path):
  assert run_command(tmp_path, *ALONE).status == 0
  train = [
    row
    for row in read_rows(tmp_path / 'rows-0.jsonl')
    if row['kind'] == 'train'
  ]
  assert [row['step'] for row in train] == list(range(1, 11))
  for row in train:
    assert row['num_peers'] == 0
    assert row['distill_loss'] is None
    # Burn-in ends at 3.
    assert row['left_out'] == ({'1': 'absent'} if row['step'] > 3 else {})
    assert row['stall_seconds'] >= 0
    assert row['failed_loads'] == 0
  events = {
    row['event']: row
    for row in read_rows(tmp_path / 'rows-0.jsonl')
    if row['kind'] == 'exchange'
  }
  assert events['publish']['bytes'] > 1000
  assert events['publish']['took_seconds'] > 0
  assert read_run(tmp_path / 'run-0.json')['overrides'][
    'codistill.exchange'
  ] == ('checkpoints')


def test_a_member_that_comes_later_learns_from_what_is_there(tmp_path):
  assert run_command(tmp_path, *ALONE).status == 0
  seen = {}

  class Patient:
    """Waits in its first step, so that the reader has time to look."""

    def __init__(self, exchange):
      self._exchange = exchange

    def __call__(self, member, step):
      deadline = time.monotonic() + 60
      peers = self._exchange.__class__.freshest(self._exchange, member, step)
      while not peers and time.monotonic() < deadline:
        time.sleep(0.02)
        peers = self._exchange.__class__.freshest(self._exchange, member, step)
      seen[step] = peers
      return peers

  def build_patient(config, member, **keywords):
    from commands import build_cheaply

    experiment = build_cheaply(config, member, **keywords)
    experiment.exchange.freshest = Patient(experiment.exchange)
    return experiment

  outcome = run_command(
    tmp_path, '--member=1', '--config.num_steps=10', builder=build_patient
  )
  assert outcome.status == 0
  train = {
    row['step']: row
    for row in read_rows(tmp_path / 'rows-1.jsonl')
    if row['kind'] == 'train'
  }
  for step in range(4, 11):
    assert train[step]['peers'] == [0]
    # Ahead: it has been at the end for long.
    assert train[step]['peer_ages'] == [step - 1 - 10]
    assert train[step]['distill_loss'] > 0
  events = [
    row
    for row in read_rows(tmp_path / 'rows-1.jsonl')
    if row['kind'] == 'exchange' and row['event'] == 'load'
  ]
  assert [row['publication'] for row in events] == [10]
  assert events[0]['peer'] == 0
  assert events[0]['bytes'] > 1000


def test_members_apart_do_not_meet_a_run_of_all(pair, tmp_path, capfd):
  """Not even where it is by default: members apart have their own folder."""
  workdir = pair.stopped_copy(tmp_path)
  before = contents(workdir)
  assert run_command(workdir, *pair.arguments, '--member=0').status == 2
  assert 'run of all members' in error_sentence(capfd)
  assert contents(workdir) == before


def test_a_second_job_for_a_member_is_refused(tmp_path, capfd):
  lease = Lease(
    tmp_path / 'exchange' / '0' / 'lease.json', timeout_s=60.0, what='it'
  )
  lease.acquire()
  # In another workdir, but with the same exchange.
  elsewhere = f'--config.codistill.exchange_dir={tmp_path / "exchange"}'
  assert run_command(tmp_path / 'a', *ALONE, elsewhere).status == 2
  assert 'another process is at work on member 0' in error_sentence(capfd)
  lease.release()
  assert run_command(tmp_path / 'b', *ALONE, elsewhere).status == 0
  assert publication.steps(publication.epath.Path(tmp_path) / 'exchange' / '0')


def test_an_exchange_that_cannot_be_written_is_one_sentence(tmp_path, capfd):
  (tmp_path / 'exchange').mkdir()
  (tmp_path / 'exchange' / '0').write_text('in the way')
  assert run_command(tmp_path, *ALONE).status == 2
  sentence = error_sentence(capfd)
  assert 'cannot write to the exchange folder' in sentence
  assert 'codistill.exchange_dir' in sentence
  assert not list(tmp_path.glob('rows*'))


def test_a_job_that_was_replaced_stops_and_writes_nothing(tmp_path, capfd):
  from commands import on_row

  def replace(trainer):
    path = tmp_path / 'exchange' / '0' / 'lease.json'
    lease = trainer._experiment.exchange._publisher._leases[0]
    taken = json.loads(path.read_text()) | {'nonce': 'x', 'pid': 7}
    for _ in range(9):  # A beat that is under way writes over it.
      path.write_text(json.dumps(taken))
      lease.beat()
      if lease._lost:
        break

  with on_row(replace, step=5, kind='train'):
    assert run_command(tmp_path, *ALONE).status == 1
  sentence = error_sentence(capfd)
  assert 'another process has taken over member 0' in sentence
  assert 'pid 7' in sentence
  assert max(row['step'] for row in rows_of(tmp_path, 'rows-0.jsonl')) <= 6


def test_a_peer_that_never_comes_ends_in_a_sentence_and_a_checkpoint(
  tmp_path, capfd
):
  arguments = (*ALONE, '--config.codistill.synchronous=True')
  waits = '--config.codistill.wait_timeout_s=3'
  assert run_command(tmp_path, *arguments, waits).status == 1
  sentence = error_sentence(capfd)
  assert 'member 1 has not published step 2' in sentence
  assert 'the same command goes on' in sentence
  assert list((tmp_path / 'checkpoints-0').glob('*3*'))
  assert read_run(tmp_path / 'run-0.json')['status'] == 'interrupted'


def test_overwrite_forgets_what_was_published(tmp_path):
  assert run_command(tmp_path, *ALONE).status == 0
  mine = publication.epath.Path(tmp_path) / 'exchange' / '0'
  assert max(publication.steps(mine)) == 10
  arguments = ('--member=0', '--config.num_steps=4', '--overwrite')
  assert run_command(tmp_path, *arguments).status == 0
  assert max(publication.steps(mine)) == 4
