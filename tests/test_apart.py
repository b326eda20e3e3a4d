"""Members in one process or in many, through memory or a folder: one run."""

import functools
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from commands import (
  DNN,
  beside,
  build_cheaply,
  contents,
  error_sentence,
  killed_once,
  leaves_of,
  line_of,
  on_row,
  rows_of,
  run_command,
  stop_command,
)
from etils import epath
from etils.epath.backend import fsspec_backend
from stand_ins import lease, until

from codistill.exchange.folder.lease import Lease
from codistill.storage import step_folders
from codistill.storage.checkpoint import read_newest
from experiments.record import read_rows, read_run

FOLDER = (
  '--config.codistill.exchange=checkpoints',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=120',
)
# FOLDER for one member: the exchange follows from that.
APART = (*FOLDER[1:], '--config.checkpoint_interval_steps=4')


def test_a_run_through_a_folder_that_resumes_is_one_in_memory(either, tmp_path):
  arguments = (*either.arguments, *FOLDER)
  stop_command(7, tmp_path, *arguments)
  outcome = run_command(tmp_path, *arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, 7)
  assert rows_of(tmp_path) == either.rows
  # Memory still has publications that nobody needs any more.
  whole, found = leaves_of(either.whole), leaves_of(outcome)
  assert sum('publications' in path for path in found) > 3
  for path, leaf in found.items():
    assert leaf.dtype == whole[path].dtype
    assert leaf.tobytes() == whole[path].tobytes(), path


def assert_one_run_apart(reference, workdir, other):
  """Rows, and the members' states at the end, agree bit for bit."""
  arguments = (workdir, *reference.arguments, *APART)
  with other(line_of(*arguments, '--member=1')):
    outcome = run_command(*arguments, '--member=0')
  assert outcome.status == 0
  experiment = outcome.experiment
  restored = read_newest(
    workdir / 'checkpoints-1',
    experiment.abstract,
    experiment.mesh,
    experiment.teacher_precision,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    [outcome.trainer.members[0].state, restored.states[1]],
    [member.state for member in reference.whole.trainer.members],
  )
  for member in range(2):
    # A process evaluates only its own member.
    assert rows_of(workdir, f'rows-{member}.jsonl') == [
      row for row in reference.rows if row['member'] == member
    ]


def test_two_processes_that_average_are_one_run(averaged, tmp_path):
  assert_one_run_apart(averaged, tmp_path, beside)


def test_two_processes_are_one_run_though_one_is_killed(small, tmp_path):
  assert_one_run_apart(
    small, tmp_path, functools.partial(killed_once, workdir=tmp_path)
  )
  found = json.loads((tmp_path / 'exchange/1/lease.json').read_text())
  # It continued its first life.
  facts = {'incarnation': 2, 'began': 1, 'finished': True}
  assert found.items() >= facts.items()
  run = read_run(tmp_path / 'run-1.json')
  assert (run['status'], len(run['resumed'])) == ('done', 1)


# Asynchronous members.

ALONE = ('--member=0', '--config.num_steps=10', *DNN)


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
    assert (row['num_peers'], row['distill_loss']) == (0, None)
    # Burn-in ends at 3.
    assert row['left_out'] == ({'1': 'absent'} if row['step'] > 3 else {})
    assert row['stall_seconds'] >= 0
    assert row['failed_loads'] == 0
  exchanged = rows_by_kind(alone, 0, 'exchange')
  events = {row['event']: row for row in exchanged}
  # Also what was published after the last step. A slow disk skips some.
  assert {row['publication'] for row in exchanged} == {0, 2, 4, 6, 8, 10}
  assert exchanged[-1]['publication'] == published(alone)
  assert events['publish']['bytes'] > 1000
  assert events['publish']['took_seconds'] > 0
  overrides = read_run(alone / 'run-0.json')['overrides']
  assert overrides['codistill.exchange'] == 'checkpoints'


def test_a_member_that_comes_later_learns_from_members_at_work(
  alone, tmp_path, capfd
):
  workdir = shutil.copytree(alone, tmp_path / 'alone')

  def build_patient(config, member, **keywords):
    """Waits in its first step, so that the reader has time to look."""
    experiment = build_cheaply(config, member, **keywords)
    exchange = experiment.exchange
    real = exchange.freshest

    def freshest(*arguments):
      until(
        lambda: real(*arguments) or exchange._reader.absence(0) == 'earlier',
        seconds=60,
      )
      return real(*arguments)

    exchange.freshest = freshest
    return experiment

  def train(*more):
    arguments = ('--member=1', *ALONE[1:], *more)
    outcome = run_command(workdir, *arguments, builder=build_patient)
    assert outcome.status == 0

  with lease(workdir / 'exchange/0/lease.json'):
    train()
  for row in rows_by_kind(workdir, 1, 'train')[3:]:
    assert row['peers'] == [0]
    # The peer is ahead: it has been at the end for long.
    assert row['peer_ages'] == [row['step'] - 1 - 10]
    assert row['distill_loss'] > 0
  exchanged = rows_by_kind(workdir, 1, 'exchange')
  [load] = [row for row in exchanged if row['event'] == 'load']
  assert (load['publication'], load['peer']) == (10, 0)
  assert load['bytes'] > 1000
  # A finished member does not teach before it begins anew.
  train('--overwrite')
  for row in rows_by_kind(workdir, 1, 'train')[3:]:
    assert (row['peers'], row['left_out']) == ([], {'0': 'earlier'})
  events = rows_by_kind(workdir, 1, 'exchange')
  [said] = [row for row in events if 'peer' in row]
  assert (said['event'], said['peer']) == ('leave out', 0)
  assert said['message'] in capfd.readouterr().out.replace('\n', ' ')


def test_overwrite_forgets_what_was_published(alone, tmp_path):
  workdir = shutil.copytree(alone, tmp_path / 'alone')
  assert published(workdir) == 10
  arguments = (*ALONE, '--config.num_steps=4', '--overwrite')
  assert run_command(workdir, *arguments).status == 0
  assert published(workdir) == 4


def test_members_apart_do_not_meet_a_run_of_all(small, tmp_path, capfd):
  """By default, too, members apart have a folder of their own."""
  workdir = small.stopped_copy(tmp_path)
  before = contents(workdir)
  assert run_command(workdir, *small.arguments, '--member=0').status == 2
  assert 'run of all members' in error_sentence(capfd)
  assert contents(workdir) == before


def test_a_second_job_or_a_folder_that_cannot_be_written_is_refused(
  tmp_path, capfd
):
  home = tmp_path / 'exchange' / '0'
  taken = Lease(home / 'lease.json', timeout_s=60.0, what='it')
  taken.acquire()
  # In another workdir, but with the same exchange.
  elsewhere = f'--config.codistill.exchange_dir={tmp_path / "exchange"}'
  arguments = (*ALONE, elsewhere, '--config.num_steps=4')
  assert run_command(tmp_path / 'a', *arguments).status == 2
  assert 'another process is at work on member 0' in error_sentence(capfd)
  taken.release()
  assert run_command(tmp_path / 'b', *arguments).status == 0
  assert published(tmp_path) == 4
  shutil.rmtree(home)
  home.write_text('in the way')
  assert run_command(tmp_path / 'c', *arguments).status == 2
  sentence = error_sentence(capfd)
  assert 'cannot write to the exchange folder' in sentence
  assert 'codistill.exchange_dir' in sentence
  assert not list(tmp_path.glob('c/rows*'))
  # Nor is a bucket without the package for it.
  bucket = '--config.codistill.exchange_dir=gs://bucket/pair'
  missing = mock.Mock(side_effect=ImportError('install gcsfs'))
  with mock.patch.object(fsspec_backend, 'fs', missing):
    assert run_command(tmp_path / 'd', *arguments, bucket).status == 2
  assert 'exchange folder (install gcsfs)' in error_sentence(capfd)


def test_a_job_that_was_replaced_stops_and_writes_nothing(tmp_path, capfd):
  def replace(trainer):
    path = tmp_path / 'exchange' / '0' / 'lease.json'
    mine = trainer._experiment.exchange._publisher._leases[0]
    taken = json.loads(path.read_text()) | {'nonce': 'x', 'pid': 7}
    for _ in range(9):  # A beat that is under way writes over it.
      path.write_text(json.dumps(taken))
      mine.beat()
      if mine._lost:
        break

  with on_row(replace, step=5, kind='train'):
    assert run_command(tmp_path, *ALONE).status == 1
  sentence = error_sentence(capfd)
  assert 'another process has taken over member 0' in sentence
  assert 'pid 7' in sentence
  assert max(row['step'] for row in rows_of(tmp_path, 'rows-0.jsonl')) <= 6
  theirs = json.loads((tmp_path / 'exchange/0/lease.json').read_text())
  assert theirs['nonce'] == 'x'
  steps = step_folders.finished(epath.Path(tmp_path / 'checkpoints-0'))
  assert max(steps, default=0) <= 4
  assert read_run(tmp_path / 'run-0.json')['status'] == 'running'


def test_a_peer_that_never_comes_ends_in_a_sentence_and_a_checkpoint(
  tmp_path, capfd
):
  codistill = '--config.codistill'
  waits = (f'{codistill}.synchronous=True', f'{codistill}.wait_timeout_s=1')
  assert run_command(tmp_path, *ALONE, *waits).status == 1
  sentence = error_sentence(capfd)
  assert 'member 1 has not published step 2' in sentence
  assert 'the same command goes on' in sentence
  assert list((tmp_path / 'checkpoints-0').glob('*3*'))
  assert read_run(tmp_path / 'run-0.json')['status'] == 'interrupted'


def test_so_does_one_that_is_awaited_for_an_evaluation(tmp_path, capfd):
  codistill = '--config.codistill'
  waits = (f'{codistill}.synchronous=True', f'{codistill}.wait_timeout_s=1')
  often = '--config.eval_interval_steps=2'
  config = 'imagenet_local_sgd:smoke'
  assert run_command(tmp_path, *ALONE, *waits, often, config=config).status == 1
  assert 'member 1 has not published step 2' in error_sentence(capfd)
  # Step 3 would begin with the average, too.
  assert list((tmp_path / 'checkpoints-0').glob('*2*'))
