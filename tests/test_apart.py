"""Members in one process or in many, through memory or a folder: one run."""

import json
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from commands import (
  assert_bit_for_bit,
  build_cheaply,
  contents,
  error_sentence,
  line_of,
  on_row,
  rows_of,
  run_command,
  start_process,
  stop_after,
)
from etils import epath

from codistill import step_folders
from codistill.checkpoint import read_newest
from codistill.exchange.folder.lease import Lease
from experiments.record import read_rows, read_run

FOLDER = (
  '--config.codistill.exchange=checkpoints',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=120',
)
# As FOLDER, but for one member: the exchange follows.
APART = (*FOLDER[1:], '--config.checkpoint_interval_steps=4')


@pytest.fixture(scope='module')
def in_folder(pair, tmp_path_factory):
  """`pair` through a folder, undisturbed."""
  folder = tmp_path_factory.mktemp('folder')
  outcome = run_command(folder, *pair.arguments, *FOLDER)
  outcome.rows = rows_of(folder)
  return outcome


def test_one_process_sees_the_same_in_memory_and_in_a_folder(
  pair, triple, in_folder, tmp_path
):
  outcome = run_command(tmp_path, *triple.arguments, *FOLDER)
  for found, rows, reference in (
    (in_folder, in_folder.rows, pair),
    (outcome, rows_of(tmp_path), triple),
  ):
    assert found.status == 0
    assert rows == reference.rows
    assert_same_states(
      [member.state for member in found.trainer.members],
      [member.state for member in reference.whole.trainer.members],
    )


def assert_same_states(states, others):
  jax.tree.map(np.testing.assert_array_equal, states, others)


def test_a_run_through_a_folder_resumes_bit_for_bit(pair, in_folder, tmp_path):
  with stop_after(7):
    status = run_command(tmp_path, *pair.arguments, *FOLDER).status
  assert status == 128 + signal.SIGTERM
  outcome = run_command(tmp_path, *pair.arguments, *FOLDER)
  assert (outcome.status, outcome.trainer.start_step) == (0, 7)
  assert rows_of(tmp_path) == pair.rows
  assert_bit_for_bit(outcome, in_folder)


def test_two_processes_are_one_run_though_one_is_killed(pair, tmp_path):
  """Bit for bit: rows, and the members' states at the end."""
  line = line_of(tmp_path, *pair.arguments, *APART, '--member=1')
  lives = [start_process(line)]

  def kill_and_start_again():
    # It has a checkpoint of step 4, and has published step 6.
    rows = tmp_path / 'rows-1.jsonl'
    while not (
      (tmp_path / 'exchange/1/6').exists()
      and rows.read_bytes().count(b'\n') >= 7
    ):
      if lives[0].poll() is not None:
        return
      time.sleep(0.005)
    lives[0].kill()
    lives[0].communicate()
    lives.append(start_process(line))

  thread = threading.Thread(target=kill_and_start_again)
  thread.start()
  outcome = run_command(tmp_path, *pair.arguments, *APART, '--member=0')
  assert outcome.status == 0
  thread.join()
  assert len(lives) == 2, lives[0].communicate()[1]
  _, err = lives[1].communicate(timeout=200)
  assert lives[1].returncode == 0, err
  experiment = outcome.experiment
  restored = read_newest(
    tmp_path / 'checkpoints-1',
    jax.eval_shape(lambda: experiment.init(0)),
    experiment.mesh,
    experiment.teacher_precision,
  )
  assert_same_states(
    [outcome.trainer.members[0].state, restored.states[1]],
    [member.state for member in pair.whole.trainer.members],
  )
  for member in range(2):
    # Of an evaluation, a process knows its own member alone.
    assert rows_of(tmp_path, f'rows-{member}.jsonl') == [
      row for row in pair.rows if row['member'] == member
    ]
  lease = tmp_path / 'exchange' / '1' / 'lease.json'
  assert json.loads(lease.read_text())['incarnation'] == 2
  run = read_run(tmp_path / 'run-1.json')
  assert run['resumed']
  assert run['status'] == 'done'


# Without synchrony.

ALONE = ('--member=0', '--config.num_steps=10')


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of a member that never had a peer."""
  workdir = tmp_path_factory.mktemp('alone')
  assert run_command(workdir, *ALONE).status == 0
  return workdir


def rows_by_kind(workdir, member, kind):
  rows = read_rows(workdir / f'rows-{member}.jsonl')
  return [row for row in rows if row['kind'] == kind]


def published(workdir):
  return max(step_folders.finished(epath.Path(workdir) / 'exchange' / '0'))


def test_a_member_alone_goes_on_without_peers(alone):
  train = rows_by_kind(alone, 0, 'train')
  assert [row['step'] for row in train] == list(range(1, 11))
  for row in train:
    assert row['num_peers'] == 0
    assert row['distill_loss'] is None
    # Burn-in ends at 3.
    assert row['left_out'] == ({'1': 'absent'} if row['step'] > 3 else {})
    assert row['stall_seconds'] >= 0
    assert row['failed_loads'] == 0
  events = {row['event']: row for row in rows_by_kind(alone, 0, 'exchange')}
  assert events['publish']['bytes'] > 1000
  assert events['publish']['took_seconds'] > 0
  overrides = read_run(alone / 'run-0.json')['overrides']
  assert overrides['codistill.exchange'] == 'checkpoints'


def test_a_member_that_comes_later_learns_from_what_is_there(alone, tmp_path):
  workdir = shutil.copytree(alone, tmp_path / 'alone')

  def build_patient(config, member, **keywords):
    """Waits in its first step, so that the reader has time to look."""
    experiment = build_cheaply(config, member, **keywords)
    real = experiment.exchange.freshest

    def freshest(member, step):
      deadline = time.monotonic() + 60
      while not (peers := real(member, step)) and time.monotonic() < deadline:
        time.sleep(0.02)
      return peers

    experiment.exchange.freshest = freshest
    return experiment

  arguments = ('--member=1', '--config.num_steps=10')
  outcome = run_command(workdir, *arguments, builder=build_patient)
  assert outcome.status == 0
  for row in rows_by_kind(workdir, 1, 'train')[3:]:
    assert row['peers'] == [0]
    # Ahead: it has been at the end for long.
    assert row['peer_ages'] == [row['step'] - 1 - 10]
    assert row['distill_loss'] > 0
  [load] = [
    row
    for row in rows_by_kind(workdir, 1, 'exchange')
    if row['event'] == 'load'
  ]
  assert (load['publication'], load['peer']) == (10, 0)
  assert load['bytes'] > 1000


def test_overwrite_forgets_what_was_published(alone, tmp_path):
  workdir = shutil.copytree(alone, tmp_path / 'alone')
  assert published(workdir) == 10
  arguments = ('--member=0', '--config.num_steps=4', '--overwrite')
  assert run_command(workdir, *arguments).status == 0
  assert published(workdir) == 4


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
  assert published(tmp_path) == 10


def test_an_exchange_that_cannot_be_written_is_one_sentence(tmp_path, capfd):
  (tmp_path / 'exchange').mkdir()
  (tmp_path / 'exchange' / '0').write_text('in the way')
  assert run_command(tmp_path, *ALONE).status == 2
  sentence = error_sentence(capfd)
  assert 'cannot write to the exchange folder' in sentence
  assert 'codistill.exchange_dir' in sentence
  assert not list(tmp_path.glob('rows*'))


def test_a_job_that_was_replaced_stops_and_writes_nothing(tmp_path, capfd):
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
