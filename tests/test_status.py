"""Members at a glance: from a run's files alone, at any time, read only."""

import datetime
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from unittest import mock

import pytest
from commands import DNN, ROOT, contents, run_command
from stand_ins import lease

from experiments.record import Record, read_rows
from scripts import status

BATCH = 16


def make_run(workdir, *, members=2, only=None, state='running', **changes):
  """Writes provenance as experiments.run does."""
  workdir.mkdir(parents=True, exist_ok=True)
  record = Record(workdir, '' if only is None else f'-{only}')
  codistill = {'members': members, 'exchange': 'memory', 'exchange_dir': None}
  codistill |= changes.pop('codistill', {})
  named = {'experiment': 'imagenet_codistill', 'variant': 'smoke'}
  config = {'num_steps': 1_000, 'codistill': codistill}
  own = {'member': only, 'status': state, 'config': config}
  record.write_run({**named, **own, **changes})
  return record


def train(record, member, steps, *, rate=100.0, loss=1.0, **fields):
  """Writes train rows of some steps, at `rate` examples a second."""
  row = {'member': member, 'kind': 'train', 'task_loss': loss}
  row |= {'peers': [], 'peer_ages': [], 'left_out': {}, 'failed_loads': 0}
  for step in steps:
    seen = step * BATCH
    times = {'step': step, 'seconds': seen / rate, 'examples_seen': seen}
    record.write_row({**row, **times, **fields})
  record.close()


def lines_of(capsys, workdir, *arguments):
  """The cells of every member's line."""
  assert status.main([str(workdir), *arguments]) == 0
  captured = capsys.readouterr()
  assert captured.err == ''
  lines = [line.split('  ') for line in captured.out.splitlines()]
  cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
  return [line for line in cells if line and line[0].isdecimal()]


def states_of(workdir):
  return [one.state for one in status.read_status(workdir)]


def everything(workdir):
  """All that an observer must not change: names, contents, folders' times."""
  paths = [workdir, *workdir.rglob('*')]
  return [path.stat().st_mtime_ns for path in paths], contents(workdir)


@pytest.fixture(scope='module')
def half(tmp_path_factory):
  """A real run of two members apart; only member 0 has started."""
  workdir = tmp_path_factory.mktemp('half')
  assert run_command(workdir, '--member=0', *DNN).status == 0
  return workdir


def test_a_real_run_of_which_one_member_has_not_started(half, capsys):
  first, second = lines_of(capsys, half)
  rows = read_rows(half / 'rows-0.jsonl')
  losses = [row['task_loss'] for row in rows if row['kind'] == 'train']
  assert len(losses) == 8
  loss = f'{sum(losses) / 8:.4f}'
  assert first[:3] == ['0', 'done', '8/8']
  assert first[4:9] == [loss, '1: absent', '0', '1', 'free']
  assert first[9].startswith('8, ')
  assert second == ['1', 'not started', *['–'] * 8]


def test_nothing_is_written_into_the_workdir(half, tmp_path):
  workdir = shutil.copytree(half, tmp_path / 'copy')
  (workdir / 'exchange/0/lease.json').unlink()
  own, others = workdir / 'lease-0.json', workdir / 'exchange/1/lease.json'
  with lease(own), lease(others):
    make_run(workdir, only=0, codistill={'exchange': 'checkpoints'})
    before = everything(workdir)
    assert states_of(workdir) == ['running', 'elsewhere']
    assert everything(workdir) == before


def test_what_reads_and_draws_needs_no_jax(half, tmp_path):
  """All commands run in one process, because this one has imported jax."""
  code = """
import sys
def check(status, *more):
  heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', *more}
  assert not status
  assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
half, out = sys.argv[1:]
from scripts import status, scaling
check(status.main([half]), 'numpy', 'matplotlib')
from scripts import churn, collect
check(churn.main([half, half]) != 1, 'matplotlib')
import scripts.compare.__main__ as compare
check(compare.main([half, f'--out={out}', f'--html={out}.html']))
import scripts.figures.__main__
check(0)
"""
  line = [sys.executable, '-c', code, str(half), str(tmp_path / 'curves.png')]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'not started' in done.stdout
  assert (tmp_path / 'curves.png').exists()


def test_a_holder_of_the_lease_runs_and_one_that_lost_it_is_dead(
  tmp_path, capsys
):
  make_run(tmp_path)
  path = tmp_path / 'lease.json'
  with lease(path) as content:
    for line in lines_of(capsys, tmp_path):
      assert line[1] == 'running'
      assert line[8].startswith(f'{content["host"]} {os.getpid()}, ')
  assert states_of(tmp_path) == ['dead', 'dead']
  # One process has gone without a word, one of another host hangs.
  gone = subprocess.Popen(['true'])
  gone.wait()
  with lease(path, pid=gone.pid):
    assert states_of(tmp_path) == ['dead', 'dead']
  with lease(path, host='elsewhere'):
    assert states_of(tmp_path) == ['running', 'running']
    long_ago = datetime.datetime.now().timestamp() - 170
    os.utime(path, (long_ago, long_ago))
    assert states_of(tmp_path) == ['dead', 'dead']
    text = status.read_status(tmp_path)[0].lease
    assert text == f'elsewhere {os.getpid()}, 2 min'
    # A clock was set back: status does not wait, and shows what it knows.
    tomorrow = datetime.datetime.now().timestamp() + 86_500
    os.utime(path, (tomorrow, tomorrow))
    assert states_of(tmp_path) == ['unclear', 'unclear']
    text = status.read_status(tmp_path)[0].lease
    assert text == f'elsewhere {os.getpid()}, 24 h from now'


def test_a_process_that_is_just_ending_is_not_dead(tmp_path, monkeypatch):
  make_run(tmp_path)
  monkeypatch.setattr(
    status.time, 'sleep', lambda seconds: make_run(tmp_path, state='done')
  )
  assert states_of(tmp_path) == ['done', 'done']


def test_ends_of_all_kinds(tmp_path):
  apart, together = tmp_path / 'apart', tmp_path / 'together'
  make_run(apart, members=4, only=0, state='done')
  make_run(apart, members=4, only=1, state='interrupted')
  broken = {'step': 17, 'task_loss': 'nan'}
  make_run(apart, members=4, only=3, state='diverged', diverged={'3': broken})
  states = ['done', 'stopped', 'not started', 'diverged']
  assert states_of(apart) == states
  assert [one.step for one in status.read_status(apart)] == [0, 0, None, 17]
  # In one process a member diverges while the other goes on.
  record = make_run(together, diverged={'1': broken})
  train(record, 0, range(1, 41))
  with lease(together / 'lease.json'):
    assert states_of(together) == ['running', 'diverged']
  make_run(together, diverged={'1': broken}, state='diverged')
  assert states_of(together) == ['done', 'diverged']


def test_a_member_that_died_on_purpose_is_over(tmp_path, monkeypatch):
  config = {'num_steps': 90, 'codistill': {'members': 2, 'exchange': 'none'}}
  config['fault'] = {'kind': 'death', 'member': 1, 'step': 20}
  record = make_run(tmp_path, config=config)
  with lease(tmp_path / 'lease.json'):
    train(record, 1, range(1, 20))
    train(record, 0, range(1, 21))
    # The other one's update of a step may be first.
    assert states_of(tmp_path) == ['running', 'running']
    train(record, 1, [20])
    assert states_of(tmp_path) == ['running', 'died']
    # As long ago as this file is read.
    record.rows_path.unlink()
    train(record, 0, range(21, 31))
    assert states_of(tmp_path) == ['running', 'died']
    assert [one.step for one in status.read_status(tmp_path)] == [30, 20]
  make_run(tmp_path, config=config, state='done')
  assert states_of(tmp_path) == ['done', 'died']
  # A watch does not wait for it.
  monkeypatch.setattr(status.time, 'sleep', lambda _: pytest.fail('it waits'))
  assert status.main([str(tmp_path), '--watch=100']) == 0


def test_the_first_of_two_phases_is_shown_until_the_second_begins(
  tmp_path, capsys, monkeypatch
):
  first = tmp_path / 'ensemble'
  train(make_run(first), 0, range(1, 8))
  with lease(first / 'lease.json'):
    assert [line[1:3] for line in lines_of(capsys, tmp_path)] == [
      ['running', '7/1,000'],
      ['running', '0/1,000'],
    ]
    assert status.main([str(tmp_path)]) == 0
    title = 'imagenet_codistill:smoke, the first of two phases'
    assert title in capsys.readouterr().out
  make_run(first, state='done')
  assert states_of(tmp_path) == ['taught', 'taught']
  assert states_of(first) == ['done', 'done']

  def begin(seconds):
    make_run(tmp_path, members=1, state='done')

  monkeypatch.setattr(status.time, 'sleep', begin)
  assert status.main([str(tmp_path), '--watch=1']) == 0
  text = capsys.readouterr().out
  assert text.count(title) == 1
  # There is no second phase if a teacher diverged.
  diverged = {'state': 'diverged', 'diverged': {'1': {'step': 3}}}
  make_run(tmp_path / 'other/ensemble', **diverged)
  assert states_of(tmp_path / 'other') == ['done', 'diverged']


def test_a_member_at_work_from_another_workdir_is_seen(tmp_path):
  shared = tmp_path / 'shared'
  meeting = {'exchange': 'checkpoints', 'exchange_dir': str(shared)}
  make_run(tmp_path / 'mine', only=0, state='done', codistill=meeting)
  with lease(shared / '1/lease.json', incarnation=3):
    other = status.read_status(tmp_path / 'mine')[1]
    assert (other.state, other.incarnation) == ('elsewhere', 3)
  assert states_of(tmp_path / 'mine') == ['done', 'not started']


def test_a_lease_that_says_nothing_is_no_sign_of_life(
  tmp_path, capsys, monkeypatch
):
  make_run(tmp_path, members=1)
  odd = {'held': True, 'host': os.uname().nodename, 'pid': 'seventeen'}
  odd |= {'process_started': None, 'nonce': 1, 'incarnation': 1}
  odd |= {'timeout_s': '60'}
  for text in (None, '', '{"held": tr', '[]', json.dumps(odd)):
    if text is not None:
      (tmp_path / 'lease.json').write_text(text)
    [line] = lines_of(capsys, tmp_path)
    assert line[1] == 'dead'
    assert ('missing' if text is None else 'unreadable') in line
  # NFS may say so of a file that was replaced.
  stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
  monkeypatch.setattr(status, 'is_held', mock.Mock(side_effect=stale))
  assert 'unreadable' in lines_of(capsys, tmp_path)[0]


def test_rate_and_loss_are_those_of_the_last_rows_of_each_member(tmp_path):
  record = make_run(tmp_path, state='done')
  train(record, 0, range(1, 101), loss=9.0)
  for step in range(101, 101 + status.LAST_ROWS):
    train(record, 0, [step], loss=step, rate=100.0)
    train(record, 1, [step], loss=2.0, rate=250.0)
    scored = {'member': 0, 'kind': 'eval', 'task_loss': 77.0}
    record.write_row({'step': step, **scored})
    record.close()
  # Its loss is NaN, so it does not count in the mean.
  train(record, 1, [121], loss=float('nan'), rate=250.0)
  one, other = (
    (one.step, one.rate, one.task_loss) for one in status.read_status(tmp_path)
  )
  assert one == (120, pytest.approx(100), pytest.approx(110.5))
  assert other == (121, pytest.approx(250), 2.0)


def test_ages_of_peers_and_why_others_are_left_out(tmp_path, capsys):
  record = make_run(tmp_path, members=4, state='done')
  train(record, 0, [7], peers=[1], peer_ages=[99])
  why = {'left_out': {'2': 'old'}, 'failed_loads': 5}
  train(record, 0, [8], peers=[3, 1], peer_ages=[-3, 12], **why)
  train(record, 1, [8])
  first, second, *_ = lines_of(capsys, tmp_path)
  assert '1: 12, 2: old, 3: -3' in first
  assert '5' in first
  assert second[5] == '–'


def test_the_end_of_a_long_file_is_all_that_is_read(tmp_path, recwarn):
  record = make_run(tmp_path, members=1, state='done')
  assert status.read_status(tmp_path)[0].step == 0
  train(record, 0, range(1, 1_001))
  rows = read_rows(record.rows_path)
  whole = record.rows_path.read_bytes()
  for num_bytes in (100, 5_000, len(whole) - 1, len(whole), len(whole) + 1):
    found = status.last_rows(record.rows_path, num_bytes)
    assert found == rows[len(rows) - len(found) :]
    size = sum(len(json.dumps(row)) + 1 for row in found)
    assert len(found) == len(rows) or size <= num_bytes
  # A last line that is not whole is left out; without its newline it is whole.
  for cut, step in ((1, 1_000), (7, 999), (200, 999)):
    record.rows_path.write_bytes(whole[:-cut])
    assert status.read_status(tmp_path)[0].step == step
  record.rows_path.write_bytes(whole + b'[' * 5_000 + b'\n')
  assert status.read_status(tmp_path)[0].step == 1_000
  # Any amount of data may be before it.
  with open(record.rows_path, 'r+b') as file:
    file.truncate(1 << 27)
    file.seek(0, os.SEEK_END)
    file.write(b'\n' + json.dumps(rows[-1]).encode() + b'\n')
  tracemalloc.start()
  try:
    assert status.read_status(tmp_path)[0].step == 1_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
  finally:
    tracemalloc.stop()
  assert not recwarn


def test_the_newest_publication_is_the_last_one_that_was_finished(tmp_path):
  meeting = {'exchange': 'checkpoints'}
  make_run(tmp_path, members=1, state='done', codistill=meeting)
  folder = tmp_path / 'exchange/0'
  now = datetime.datetime.now().timestamp()
  # A job that came back has resumed from before its last life's publications.
  for name, age in (('6', 4000), ('900', 400), ('60', 200), ('.70.tmp', 0)):
    (folder / name).mkdir(parents=True)
    os.utime(folder / name, (now - age, now - age))
  # What cannot be looked at, and a file, are none.
  (folder / '80').symlink_to('80')
  (folder / '99').touch()
  assert status.read_status(tmp_path)[0].published == '60, 3 min'


def test_no_run_or_a_damaged_one_is_one_sentence(tmp_path, capsys):
  said, advice = f'{tmp_path} holds no run', 'make one with'
  for text in (None, '', '{}', '[1]', '{"status": "done"}'):
    if text is not None:
      (tmp_path / 'run.json').write_text(text)
      said, advice = f'{tmp_path / "run.json"} is damaged', 'put back a copy'
    for arguments in ([], ['--watch=1']):
      assert status.main([str(tmp_path), *arguments]) == 1
      captured = capsys.readouterr()
      assert captured.err.startswith('scripts.status: ')
      assert said in captured.err
      assert advice in captured.err
      assert captured.err.count('\n') == 1
      assert captured.out.strip() == ''
  for seconds in ('0', '-1', 'nan', 'inf', 'soon'):
    with pytest.raises(SystemExit, match='2'):
      status.main([str(tmp_path), f'--watch={seconds}'])
    assert f'{seconds!r} is not a number above 0' in capsys.readouterr().err


def test_a_watch_ends_when_all_have_ended(tmp_path, capsys, monkeypatch):
  make_run(tmp_path, members=1, state='interrupted')
  slept = []

  def sleep(seconds):
    slept.append(seconds)
    if seconds == 1:
      raise KeyboardInterrupt
    state = 'done' if len(slept) == 2 else 'running'
    make_run(tmp_path, members=1, state=state)

  monkeypatch.setattr(status.time, 'sleep', sleep)
  with lease(tmp_path / 'lease.json'):
    lines = lines_of(capsys, tmp_path, '--watch=7')
  assert [line[1] for line in lines] == ['stopped', 'running', 'done']
  assert slept == [7, 7]
  # It ends quietly when it is interrupted, too.
  make_run(tmp_path, members=1, state='interrupted')
  [line] = lines_of(capsys, tmp_path, '--watch=1')
  assert line[1] == 'stopped'


def test_no_answer_while_a_run_writes_is_wrong_or_an_error(tmp_path):
  record = make_run(tmp_path, members=1)
  going = threading.Event()

  def write():
    step = 0
    while not going.is_set():
      step += 1
      train(record, 0, [step])
      make_run(tmp_path, members=1, state='running')

  writer = threading.Thread(target=write)
  with lease(tmp_path / 'lease.json'):
    writer.start()
    seen = [status.read_status(tmp_path)[0] for _ in range(50)]
    going.set()
    writer.join()
  assert {one.state for one in seen} == {'running'}
  steps = [one.step for one in seen]
  assert steps == sorted(steps)
  assert steps[-1] > steps[0]
