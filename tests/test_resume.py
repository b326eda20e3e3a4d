"""Resume: bit for bit, after signals and kills, in the right workdir only."""

import functools
import json
import shutil
import signal
import sys
import warnings
from unittest import mock

import jax
import numpy as np
import pytest
from commands import (
  DNN,
  assert_bit_for_bit,
  contents,
  error_sentence,
  leaves_of,
  on_row,
  rows_of,
  run_command,
  start_process,
  stop_after,
  stop_command,
)

from codistill.exchange.folder.lease import Lease, read_lease
from codistill.exchange.folder.waiter import PeerTimeoutError
from codistill.rivals.local_sgd import OuterSteps
from experiments import record
from experiments.errors import UserError
from experiments.record import read_rows, read_run
from experiments.stored import open_run
from experiments.workdir import check_config


def assert_goes_on(reference, workdir, step, *arguments):
  """Goes on from a step, and ends as the undisturbed run does."""
  outcome = run_command(workdir, *reference.arguments, *arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, step)
  assert rows_of(workdir) == reference.rows
  return outcome


def test_ten_steps_are_five_and_five_bit_for_bit(pair, tmp_path, capfd):
  workdir = pair.stopped_copy(tmp_path)
  assert read_run(workdir / 'run.json')['status'] == 'interrupted'
  assert max(row['step'] for row in rows_of(workdir)) == 5
  # A kill left rows of steps that are still to come; they are dropped.
  with open(workdir / 'rows.jsonl', 'a') as rows:
    late = {'step': 6, 'member': 0, 'kind': 'train', 'task_loss': 99.0}
    rows.write(json.dumps(late) + '\n')
    rows.write(json.dumps({**late, 'step': 7})[:-9])
  outcome = assert_goes_on(pair, workdir, 5)
  assert 'goes on from step 5' in capfd.readouterr().out
  assert_bit_for_bit(outcome, pair.whole)
  found = read_run(workdir / 'run.json')
  assert found['status'] == 'done'
  assert len(found['resumed']) == 1
  seconds = [row['seconds'] for row in read_rows(workdir / 'rows.jsonl')]
  assert seconds == sorted(seconds)


@pytest.mark.parametrize(
  ('name', 'config', 'arguments'),
  [
    (
      *('rows.jsonl', 'imagenet_codistill:smoke'),
      '--config.codistill.immediate=True --config.codistill.members=3 '
      '--config.num_devices=2',
    ),
    ('rows-1.jsonl', 'imagenet_ensemble:smoke', '--member=1'),
  ],
)
def test_other_ways_to_run_resume_as_exactly(tmp_path, name, config, arguments):
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'

  def go(workdir):
    return run_command(workdir, *DNN, *arguments.split(), config=config)

  at_once = go(whole)
  assert at_once.status == 0
  step = {'step': 5, 'member': 1, 'kind': 'train'}
  with on_row(lambda _: signal.raise_signal(signal.SIGTERM), **step):
    assert go(halves).status == 128 + signal.SIGTERM
  outcome = go(halves)
  assert outcome.status == 0
  assert outcome.trainer.start_step in (5, 6)
  assert rows_of(halves, name) == rows_of(whole, name)
  assert_bit_for_bit(outcome, at_once)


def test_the_states_that_are_compared_depend_on_the_past(pair):
  """Otherwise the test above would compare nothing."""
  leaves = leaves_of(pair.whole)
  kinds = ('params', 'batch_stats', 'opt_state', '.key', '.step')
  for member in (0, 1):
    for kind in kinds:
      assert [p for p in leaves if f"['members'][{member}]" in p and kind in p]
    for step in (6, 9):
      assert [p for p in leaves if f"['publications'][{member}][{step}]" in p]
  differ = [
    path
    for path, leaf in leaves.items()
    if "['publications'][0][6]" in path
    and (leaf != leaves[path.replace('[6]', '[9]')]).any()
  ]
  assert [path for path in differ if 'batch_stats' in path]
  assert pair.whole.config.data.augmentation != 'none'


@pytest.fixture
def handlers():
  """Signal handlers of a program that has its own."""
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
  mine = {number: lambda *_: None for number in numbers}
  before = {number: signal.signal(number, mine[number]) for number in mine}
  yield mine
  for number, handler in before.items():
    signal.signal(number, handler)


def test_signals_stop_with_a_checkpoint(small, tmp_path, capfd, handlers):
  # Slurm is told to send SIGUSR2 before it takes a job away.
  for step, number in ((4, signal.SIGINT), (7, signal.SIGUSR2)):
    stop_command(step, tmp_path, *small.arguments, number=number)
    captured = capfd.readouterr()
    said = f'Stopped at step {step} of 10; the same command goes on'
    assert said in captured.out
    assert 'Stopping' in captured.err
    assert read_run(tmp_path / 'run.json')['status'] == 'interrupted'
    assert list((tmp_path / 'checkpoints').glob(f'*{step}*'))
    # The handlers from before are back.
    for number, handler in handlers.items():
      assert signal.getsignal(number) is handler
  # In the last step it is too late to stop anything.
  with stop_after(10):
    assert_goes_on(small, tmp_path, 7)


def test_kill_9_loses_the_steps_since_a_checkpoint_at_most(small, tmp_path):
  every_three = '--config.checkpoint_interval_steps=3'
  code = """
import os, pathlib, signal, sys
sys.path.insert(0, 'tests')
from commands import on_row, run_command
with on_row(
  lambda _: os.kill(os.getpid(), signal.SIGKILL), step=8, kind='train'
):
  run_command(pathlib.Path(sys.argv[1]), *sys.argv[2:])
"""
  arguments = (str(tmp_path), *small.arguments, every_three)
  process = start_process([sys.executable, '-c', code, *arguments])
  _, err = process.communicate(timeout=200)
  assert process.returncode == -signal.SIGKILL, err
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # The last line may be cut.
    rows = rows_of(tmp_path)
  assert rows == small.rows[: len(rows)]
  assert read_run(tmp_path / 'run.json')['status'] == 'running'
  assert_goes_on(small, tmp_path, 6, every_three)


def test_a_run_may_be_killed_at_any_moment(either, tmp_path):
  die = mock.Mock(side_effect=SystemExit('killed'))
  # Before its first checkpoint, and between the last one and its final rows.
  for goes_on_from, moment in (
    (0, {'step': 3, 'kind': 'train'}),
    (10, {'kind': 'final', 'member': 1}),
  ):
    workdir = tmp_path / str(goes_on_from)
    with on_row(die, **moment), pytest.raises(SystemExit, match='killed'):
      run_command(workdir, *either.arguments)
    assert rows_of(workdir)
    assert_goes_on(either, workdir, goes_on_from)


def test_an_evaluation_that_a_kill_cut_short_is_made_again(either, tmp_path):
  die = mock.Mock(side_effect=SystemExit('killed'))
  # There is a checkpoint of step 8, and a row of one member.
  moment = {'step': 8, 'kind': 'eval', 'member': 0}
  with stop_after(8), on_row(die, **moment), pytest.raises(SystemExit):
    run_command(tmp_path, *either.arguments)
  assert rows_of(tmp_path)[-1]['kind'] == 'eval'
  assert_goes_on(either, tmp_path, 8)


def test_what_waits_for_the_last_average_ends_with_it(averaged, tmp_path):
  real, told = OuterSteps.make, PeerTimeoutError('member 1 is late')

  def make(self, members, updates, exchange, step):
    if step > 11:
      raise told
    return real(self, members, updates, exchange, step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(OuterSteps, 'make', make)
    assert run_command(tmp_path, *averaged.arguments).status == 1
  outcome = assert_goes_on(averaged, tmp_path, 10)
  assert_bit_for_bit(outcome, averaged.whole)
  # What is scored is what is stored.
  stored = open_run(tmp_path).members
  for member in outcome.trainer.members:
    mine = member.state.variables
    jax.tree.map(
      np.testing.assert_array_equal, mine, stored[member.index].variables
    )


def test_loads_without_a_row_yet_are_in_the_rows_of_a_resumed_run(tmp_path):
  # Averages, evaluations and checkpoints fall on the same steps.
  often = ('interval_steps=4',) * 3
  keys = ('codistill.reload_', 'eval_', 'checkpoint_')
  arguments = (
    *DNN,
    '--config.num_steps=10',
    '--config.codistill.method=local_sgd',
    *(f'--config.{key}{one}' for key, one in zip(keys, often, strict=True)),
  )
  die = mock.Mock(side_effect=SystemExit('killed'))
  assert run_command(tmp_path / 'whole', *arguments).status == 0
  moment = {'step': 6, 'kind': 'train', 'member': 1}
  with on_row(die, **moment), pytest.raises(SystemExit):
    run_command(tmp_path / 'killed', *arguments)
  assert run_command(tmp_path / 'killed', *arguments).status == 0
  whole, killed = (
    [row for row in read_rows(tmp_path / one / 'rows.jsonl') if 'event' in row]
    for one in ('whole', 'killed')
  )
  assert [row['event'] for row in whole].count('load') == 4
  for row in (*whole, *killed):
    del row['seconds']
  assert killed == whole


# Refusals of a workdir.


@pytest.fixture
def refusal(small, capfd):
  """Why a command is refused, checking that nothing is lost."""

  def refusal(workdir, *arguments):
    before = contents(workdir)
    assert run_command(workdir, *small.arguments, *arguments).status == 2
    assert contents(workdir) == before
    return error_sentence(capfd)

  return refusal


def test_another_config_is_refused_with_what_differs(small, refusal):
  changes = ('codistill.delay_steps=1', 'optimizer.sgd.momentum=0.5')
  arguments = (f'--config.{change}' for change in changes)
  sentence = refusal(small.workdir, *arguments)
  # It names these keys and no others.
  assert (
    '(codistill.delay_steps 2 there, 1 now; '
    'optimizer.sgd.momentum 0.9 there, 0.5 now)' in sentence
  )
  assert '--overwrite' in sentence
  # So are keys of networks that the config gained.
  found, wanted = (read_run(small.workdir / 'run.json') for _ in range(2))
  for run in (found, wanted):
    run['config']['codistill']['member_models'] = ['dnn', 'mine']
    run['config']['networks'] = {'mine': {'model': {'name': 'dnn'}}}
  wanted['config']['networks']['mine']['schedule'] = {'name': 'constant'}
  wanted['config_hash'] = 'another'
  with pytest.raises(UserError, match=r'mine\.schedule\.name not set'):
    check_config(small.workdir, found, wanted)
  # With bad input --overwrite loses nothing.
  bad = ('--overwrite', '--config.codistill.members=0')
  assert 'codistill.members' in refusal(small.workdir, *bad)


@pytest.fixture
def other_commit(monkeypatch):
  version = {'commit': 'c0ffee' * 6 + 'cafe', 'dirty': False, 'code': 'other'}
  parts = {key: version[key] for key in ('commit', 'dirty')}
  monkeypatch.setattr(record, 'code_version', lambda directory: dict(parts))
  monkeypatch.setattr(record, 'code_hash', lambda *_: version['code'])
  return parts


def test_another_commit_may_be_allowed(small, tmp_path, refusal, other_commit):
  workdir, commit = small.stopped_copy(tmp_path), other_commit['commit']
  # The old code did not have this key yet.
  run = read_run(workdir / 'run.json')
  del run['config']['average_decay']
  old = {**run, 'config_hash': record.config_hash(run['config'])}
  record.Record(workdir).write_run(old)
  sentence = refusal(workdir, '--config.average_decay=0.5')
  assert 'average_decay' in sentence
  assert '0.5 now' in sentence
  first = read_run(workdir / 'run.json')['commit']
  sentence = refusal(workdir)
  for words in (commit[:12], str(first)[:12], '--allow-code-change'):
    assert words in sentence
  stop_command(7, workdir, *small.arguments, '--allow-code-change')
  # The last commit may go on without asking.
  assert_goes_on(small, workdir, 7)
  found = read_run(workdir / 'run.json')
  assert found['commit'] == first
  keys = ('commit', 'dirty', 'allow_code_change')
  resumed = [tuple(entry[key] for key in keys) for entry in found['resumed']]
  assert resumed == [(commit, False, True), (commit, False, False)]
  # Any code may show a finished run.
  other_commit['commit'] = 'decaf' * 8
  assert run_command(workdir, *small.arguments).status == 0


def test_unknown_code_is_not_unchanged_code(
  small, tmp_path, refusal, other_commit, capfd, monkeypatch
):
  other_commit.update(commit=None, dirty=None)
  why = 'git is not here: bring it'
  monkeypatch.setattr(record, 'why_unknown', lambda directory: why)
  ours = read_run(small.stopped_copy(tmp_path / 'first') / 'run.json')
  changed = '--allow-code-change'
  for name, before, words in (
    # The code has another hash, with a commit or without.
    (
      'known',
      {},
      (ours['commit'][:12], 'commit unknown (code other)', changed),
    ),
    ('unknown', {'commit': None}, ('by commit unknown', 'code other', changed)),
    # The run is from before hashes were recorded.
    ('older', {'code': None}, (ours['commit'][:12], changed)),
    ('neither', {'code': None, 'commit': None}, (changed,)),
  ):
    workdir = small.stopped_copy(tmp_path / name)
    (workdir / 'run.json').write_text(json.dumps(ours | before))
    sentence = refusal(workdir)
    for word in words:
      assert word in sentence
  # The same code goes on in any state of git, and says what is unknown.
  monkeypatch.setattr(record, 'code_hash', lambda *_: ours['code'])
  for before in ({}, {'commit': None}):
    workdir = small.stopped_copy(tmp_path / f'same{len(before)}')
    (workdir / 'run.json').write_text(json.dumps(ours | before))
    capfd.readouterr()
    stop_command(7, workdir, *small.arguments)
    assert 'commit of this code is unknown, and its' in capfd.readouterr().out
  # So does it under another commit.
  other_commit.update(commit='decaf' * 8, dirty=False)
  workdir = small.stopped_copy(tmp_path / 'commit')
  stop_command(7, workdir, *small.arguments)


def test_overwrite_begins_anew(small, tmp_path, other_commit):
  workdir = small.stopped_copy(tmp_path)
  (workdir / 'mine.txt').write_text('kept')
  # It removes files that it does not use, also behind a link.
  elsewhere = (workdir / 'checkpoints').rename(tmp_path / 'scratch')
  (workdir / 'checkpoints').symlink_to(elsewhere)
  arguments = (*small.arguments, '--config.seed=1', '--overwrite')
  outcome = run_command(workdir, *arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, 0)
  found = read_run(workdir / 'run.json')
  assert found['commit'] == other_commit['commit']
  assert found['config']['seed'] == 1
  assert 'resumed' not in found
  rows = rows_of(workdir)
  assert len(rows) == len(small.rows)
  assert rows[0]['task_loss'] != small.rows[0]['task_loss']
  assert (workdir / 'mine.txt').read_text() == 'kept'


def test_a_workdir_of_a_process_at_work_is_refused(small, tmp_path, refusal):
  workdir = small.stopped_copy(tmp_path)
  lease = Lease(workdir / 'lease.json', timeout_s=60.0, what='here')
  lease.acquire()
  for overwrite in ([], ['--overwrite']):
    assert 'another process is at work' in refusal(workdir, *overwrite)
  lease.release()
  # How long it counts may change; that is noted.
  longer = '--config.codistill.lease_timeout_s=90'
  stop_command(7, workdir, *small.arguments, longer)
  found = read_run(workdir / 'run.json')
  changed = {'codistill.lease_timeout_s': 90.0}
  assert found['resumed'][-1]['changed'] == changed
  assert read_lease(workdir / 'lease.json')['timeout_s'] == 90
  # It is not named beside what may not.
  said = refusal(workdir, longer, '--config.seed=7')
  assert '(seed 0 there, 7 now)' in said


def test_a_part_of_a_run_is_refused(small, tmp_path, refusal):
  shutil.copy(small.workdir / 'run.json', tmp_path)
  assert 'rows.jsonl is gone; --overwrite' in refusal(tmp_path)
  shutil.copy(small.workdir / 'rows.jsonl', tmp_path)
  cut_rows(tmp_path, 7)
  assert 'rows.jsonl ends before the run did; put' in refusal(tmp_path)
  # These checkpoints belong to no run.
  workdir = small.stopped_copy(tmp_path)
  (workdir / 'run.json').unlink()
  assert 'without run.json' in refusal(workdir)


def test_members_apart_in_one_workdir_are_of_one_config(tmp_path, capfd):
  ensemble = functools.partial(run_command, config='imagenet_ensemble:smoke')
  assert ensemble(tmp_path, *DNN, '--member=0').status == 0
  for said, *arguments in (
    ('seed 0 there, 7 now', '--member=1', '--config.seed=7'),
    ('member 0 alone, and this is one of all members',),
  ):
    assert ensemble(tmp_path, *DNN, *arguments).status == 2
    assert said in error_sentence(capfd)
  assert sorted(path.name for path in tmp_path.glob('run*')) == ['run-0.json']


# Damage by a disk, or by copying a run.


def no_states(workdir, step):
  shutil.rmtree(workdir / 'checkpoints' / str(step) / 'state')


def cut_rows(workdir, step):
  """Removes the last row of a step, and all after it."""
  path = workdir / 'rows.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  end = max(
    n for n, line in enumerate(lines) if json.loads(line)['step'] < step
  )
  path.write_text(''.join(lines[: end + 2]))


@pytest.fixture(scope='module')
def two(small, tmp_path_factory):
  """A run with checkpoints of steps 5 and 7."""
  workdir = small.stopped_copy(tmp_path_factory.mktemp('two'))
  stop_command(7, workdir, *small.arguments)
  assert read_run(workdir / 'run.json')['checkpoint'] == 7
  return workdir


@pytest.mark.parametrize(
  ('spoil', 'why'),
  [
    (no_states, 'checkpoints/7 is damaged or does not fit'),
    (cut_rows, 'checkpoints/7 cannot be used: rows.jsonl ends at step 6'),
  ],
)
def test_what_is_damaged_costs_the_steps_since_the_checkpoint_before(
  small, two, tmp_path, capfd, spoil, why
):
  workdir = shutil.copytree(two, tmp_path / 'run')
  spoil(workdir, 7)
  stop_command(7, workdir, *small.arguments)
  said = capfd.readouterr().out
  [line] = [line for line in said.splitlines() if 'goes on from step' in line]
  assert why in line
  assert 'goes on from step 5.' in line
  # It has been saved again, and serves like any other.
  assert_goes_on(small, workdir, 7)
  kept = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
  assert kept == ['10', '7']


def both_damaged(workdir):
  for step in (5, 7):
    no_states(workdir, step)


def emptied(name):
  return lambda workdir: (workdir / name).write_text('')


def half(name):
  def spoil(workdir):
    content = (workdir / name).read_bytes()
    (workdir / name).write_bytes(content[: len(content) // 2])

  return spoil


def garbled(workdir):
  content = (workdir / 'rows.jsonl').read_bytes()
  (workdir / 'rows.jsonl').write_bytes(b'\xff' + content[1:])


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (both_damaged, ('no checkpoint in', '7 is damaged', '5 is damaged')),
    (
      lambda workdir: shutil.rmtree(workdir / 'checkpoints'),
      ('checkpoints is empty', 'run.json knows of a checkpoint of step 7'),
    ),
    (
      lambda workdir: (workdir / 'rows.jsonl').unlink(),
      ('5 cannot be used: rows.jsonl ends at step 0',),
    ),
    (garbled, ('rows.jsonl, line 1: not a row',)),
    (emptied('run.json'), ('run.json is damaged',)),
    (half('run.json'), ('run.json is damaged',)),
  ],
)
def test_what_cannot_be_gone_on_with_is_one_sentence(
  small, two, tmp_path, capfd, spoil, words
):
  workdir = shutil.copytree(two, tmp_path / 'run')
  spoil(workdir)
  before = contents(workdir)
  assert run_command(workdir, *small.arguments).status == 2
  sentence = error_sentence(capfd)
  for part in (*words, 'put back a copy', '--overwrite'):
    assert part in sentence
  # The files that are left can be combined with restored ones.
  after = contents(workdir)
  assert {name for name in after if after[name] != before.get(name)} <= {
    'run.json',
    'lease.json',
  }
  assert after.keys() == before.keys()
