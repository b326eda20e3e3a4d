"""Faults injected into members: the short version of scripts.chaos.

The long one, with processes and for minutes, is python -m scripts.chaos.
"""

import random
import re
import signal
import subprocess
import sys

import grain  # noqa: F401 - defines flags, before any are saved
import numpy as np
import psutil
import pytest
from absl.testing import flagsaver
from etils import epath

from codistill.storage import step_folders
from experiments.flags import make_request, parse_flags
from experiments.record import Record
from scripts.chaos import __main__ as command
from scripts.chaos import (
  checkpoint_faults,
  exchanges,
  folder_faults,
  outcome,
  process_faults,
  publication_faults,
  runs,
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Two members that live through all faults of their folder."""
  folder = tmp_path_factory.mktemp('world') / 'exchange'
  with exchanges.InProcess(folder) as world:
    yield world


@pytest.fixture
def stage(tmp_path):
  with runs.Stage(tmp_path, kills=1) as stage:
    yield stage


def chance():
  return random.Random(0)


# Each raises if somebody is taught by weights that nobody published, or does
# not go on, or does not hear of the other again.


def test_a_folder_that_cannot_be_written_costs_publications_alone(world):
  result = folder_faults.read_only(world, by='file')
  assert 'failed publish' in result.lost
  assert 'a file in place of' in result.how


def test_a_folder_that_is_removed_or_moved_appears_again(world):
  folder_faults.removed(world)
  for member in ('0', '1'):
    assert (world.exchange / member / 'lease.json').exists()
  before = world.exchange.stat().st_ino
  folder_faults.moved(world)
  assert world.exchange.stat().st_ino == before


def test_garbage_in_a_folder_is_no_publication(world):
  result = folder_faults.garbage(world, chance())
  assert 'failed load' in result.lost

  def tidy():
    """Garbage belongs to nobody, and does not count as the newest."""
    world.go_on()
    there = step_folders.finished(epath.Path(world.exchange) / '1')
    return max(there) <= world.step and len(there) >= 3

  outcome.until(tidy, 'only what was published to be there')


def test_a_lease_of_tomorrow_is_watched(tmp_path):
  result = folder_faults.tomorrow(tmp_path)
  # The timeout is four seconds there, and a beat comes every second.
  free, refused = map(float, re.findall(r'after ([\d.]+) s', result.recovery))
  assert 4 <= free < 20
  assert refused < 4


def test_a_publication_damaged_at_any_file_is_refused_or_right(tmp_path):
  # A flipped bit is the least that can be wrong.
  ways = {'flip': publication_faults.FLIPPED['flip 0']}
  result = publication_faults.damaged(tmp_path, ways, chance())
  refused, _, tried, *_ = result.lost.split()
  assert 5 <= int(refused) < int(tried)


def test_a_checkpoint_damaged_at_any_file_is_passed_over_or_right(tmp_path):
  ways = {'flip': publication_faults.FLIPPED['flip 0']}
  result = checkpoint_faults.damaged(tmp_path, ways, chance())
  passed_over, _, tried, *_ = result.lost.split()
  assert 4 <= int(passed_over) < int(tried)


def test_checkpoints_that_stay_are_said_once_and_removed_later(tmp_path):
  exchanges.weights.cache_clear()
  result = checkpoint_faults.busy(tmp_path, steps=4)
  assert 'for 4 checkpoints' in result.how
  # The faults after it get the same weights, so these must be numbers.
  assert np.asarray(exchanges.weights(0, 0)['params']['bias']).any()


def test_nothing_is_decided_by_a_clock_nor_kept_by_a_slow_disk(tmp_path):
  publication_faults.clock(tmp_path / 'clock')
  publication_faults.slow_disk(tmp_path / 'disk', steps=30)
  result = publication_faults.slow_writer(tmp_path / 'writer', steps=30)
  assert '28 publications skipped' in result.lost
  there = step_folders.finished(epath.Path(tmp_path / 'writer' / '1'))
  assert sorted(there) == [1, 30]  # Nothing grows.


# By its rows, it looks like a member with a checkpoint every 20 steps.
MEMBER = """
import json, pathlib, sys, time
from experiments.record import Record

path, ending, steps, lost = pathlib.Path(sys.argv[1]), *sys.argv[2:]
lines = path.read_text().splitlines(True) if path.exists() else []
start = len(lines) // 20 * 20
print('goes on from step', start)
new = path.with_name(f'new{ending}')
new.write_text(''.join(lines[:start]))
new.replace(path)

def write(**row):
  row |= {'member': int(ending[1:]), 'peer_ages': []}
  with open(path, 'a') as rows:
    rows.write(json.dumps(row) + '\\n')

for step in range(start + 1 + int(lost) * bool(lines), int(steps) + 1):
  write(kind='train', step=step)
  time.sleep(0.02)
write(kind='final', step=int(steps))
Record(path.parent, ending).write_run({'status': 'done'})
"""


@pytest.fixture
def light(stage, monkeypatch):
  """A stage on which `MEMBER` stands in for members."""
  start = stage.start

  def light(lost):
    def start_light(line, rows):
      ending = rows.stem.removeprefix('rows')
      return start(
        [sys.executable, '-c', MEMBER, rows, ending, '80', lost], rows
      )

    monkeypatch.setattr(stage, 'start', start_light)
    return stage

  return light


def test_members_that_are_killed_finish_with_all_rows(light):
  result = process_faults.kills(light('0'), members=2, num_steps=80)
  assert 'kill -9 × 1, 2 members of 80 steps' in result.how
  again, most = map(int, re.findall(r'(\d+) (?:steps|a kill)', result.lost))
  assert 0 <= again == most < 20


def test_a_row_that_is_lost_with_a_member_that_is_killed_is_found(light):
  with pytest.raises(outcome.FailedError, match='are not 1, 2, 3'):
    process_faults.kills(light('1'), members=2, num_steps=80)


def test_members_are_runs_of_this_project(stage, tmp_path, monkeypatch):
  monkeypatch.setattr(stage, 'start', lambda line, rows: line)
  line = runs.Run(stage, tmp_path, members=3, num_steps=7).start(1)
  assert line[:3] == [sys.executable, '-m', 'experiments.run']
  monkeypatch.setattr(sys, 'argv', line[2:])
  with flagsaver.flagsaver():
    request = make_request(parse_flags(sys.argv)[-1])
  config = request.config
  assert (request.workdir, request.member) == (tmp_path, 1)
  assert (config.codistill.members, config.num_steps) == (3, 7)


def write_rows(workdir, steps, *, final=(0,), status='done', ages=()):
  workdir.mkdir(parents=True, exist_ok=True)
  record = Record(workdir, '-0')
  row = {'member': 0, 'kind': 'train', 'peer_ages': ages}
  for step in steps:
    record.write_row(row | {'step': step})
  for member in final:
    record.write_row({'step': 9, 'member': member, 'kind': 'final'})
  record.write_run({'status': status})
  record.close()


@pytest.mark.parametrize(
  ('steps', 'changes', 'said'),
  [
    ([1, 3], {}, 'are not 1, 2, 3'),
    ([1, 2, 2, 3], {}, 'are not 1, 2, 3'),
    ([1, 2], {}, 'are not 1, 2, 3'),
    ([2, 1, 3], {}, 'are not 1, 2, 3'),
    ([1, 2, 3], {'final': ()}, 'final rows of member 0: []'),
    ([1, 2, 3], {'final': (0, 0)}, 'final rows of member 0'),
    ([1, 2, 3], {'status': 'running'}, 'member 0 is running'),
    ([1, 2, 3], {'ages': (1,)}, 'a copy of step -1'),
  ],
)
def test_rows_that_are_not_complete_are_found(
  stage, tmp_path, steps, changes, said
):
  run = runs.Run(stage, tmp_path, members=2)
  write_rows(tmp_path, steps, **changes)
  with pytest.raises(outcome.FailedError, match=re.escape(said)):
    run.check_rows(0, 3)


def test_rows_that_are_complete_are_as_they_should_be(stage, tmp_path):
  write_rows(tmp_path, [1, 2, 3])
  assert len(runs.Run(stage, tmp_path, members=2).check_rows(0, 3)) == 3


def test_weights_that_nobody_published_are_found(tmp_path, monkeypatch):
  real = exchanges.weights
  with exchanges.Reader(tmp_path) as reader:
    with monkeypatch.context() as patch:
      patch.setattr(exchanges, 'weights', lambda m, step: real(m, step + 1))
      with reader.about_to_appear():
        pass
    with pytest.raises(outcome.FailedError, match='weights that nobody'):
      reader.sees()


def sleeper(stage, tmp_path, seconds=100):
  line = [sys.executable, '-c', f'import time; time.sleep({seconds})']
  return stage.start(line, tmp_path / 'rows-0.jsonl')


def test_what_never_comes_is_not_awaited_for_ever(stage, tmp_path, monkeypatch):
  jobs = [sleeper(stage, tmp_path, seconds=0)]
  with pytest.raises(outcome.FailedError, match='it: ended with status 0'):
    outcome.until(lambda: False, 'it', jobs)
  monkeypatch.setattr(outcome, 'LONG_S', 0.1)
  with pytest.raises(outcome.FailedError, match=r'it: not in 0\.1 s'):
    outcome.until(lambda: False, 'it')


def test_processes_end_with_the_stage_however_it_ends(tmp_path):
  jobs = []

  def interrupted():
    with runs.Stage(tmp_path) as stage:
      jobs.append(sleeper(stage, tmp_path))
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    interrupted()
  assert jobs[0].process.poll() == -signal.SIGKILL


def test_the_table_says_what_came_of_each_fault(tmp_path, capsys, monkeypatch):
  jobs = []

  def fail(stage):
    """It always fails."""
    jobs.append(sleeper(stage, tmp_path))
    raise outcome.FailedError('nothing | came back')

  def well(stage):
    # What failed does not go on beside it.
    assert all(job.process.poll() == -signal.SIGKILL for job in jobs)
    stage.folder('well')
    return outcome.Result('so', 'nothing', '0 s')

  monkeypatch.setattr(command, 'FAULTS', {'bad': fail, 'good': well})
  keep = tmp_path / 'kept'
  arguments = [f'--keep={keep}', '--seed=7']
  assert command.main(['good', *arguments]) == 0
  assert command.main(['all', *arguments]) == 1
  out = capsys.readouterr().out
  for words in (
    *('seed 7', 'good: ok', 'It always fails.'),
    'FAILED: nothing | came back',
  ):
    assert words in out
  assert len(list(keep.glob('*/well'))) == 2


def test_a_fault_that_is_not_there_is_one_sentence(capsys):
  with pytest.raises(SystemExit) as caught:
    command.main(['earthquake'])
  assert caught.value.code == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert re.search("no fault 'earthquake'.*slow-disk", error)


def test_a_signal_ends_what_goes_on_here(stage):
  for number in (signal.SIGTERM, signal.SIGINT):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, stage.ended_by_signals():
      signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) == before


def test_a_signal_also_ends_the_processes_that_were_started(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-m', 'scripts.chaos', 'stop', f'--keep={tmp_path}'],
    cwd=runs.ROOT,
    stdout=subprocess.DEVNULL,
  )
  children = psutil.Process(process.pid).children
  outcome.until(lambda: len(children()) == 2, 'two members')
  started = children()
  process.terminate()
  assert process.wait(outcome.LONG_S) == 128 + signal.SIGTERM
  gone, alive = psutil.wait_procs(started, timeout=outcome.LONG_S)
  assert (len(gone), alive) == (2, [])
