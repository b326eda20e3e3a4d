"""One command for all members: devices, restarts, signals, messages."""

import functools
import os
import shlex
import signal
import sys
import time
from unittest import mock

import psutil
import pytest
import stand_ins
from commands import DNN, ROOT, start_process
from stand_ins import Signals, console_of, lease, until

from codistill.exchange.folder.lease import read_lease
from experiments.ending import LOST_OTHERS
from experiments.errors import UserError
from experiments.processes import last_words
from experiments.record import Record, read_run
from scripts import jobset, status
from scripts.launch import __main__ as launch
from scripts.launch import devices, local, member
from scripts.launch.member import Member, Process

SMOKE = 'imagenet_codistill:smoke'
MEMORY = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


# Devices.


def test_gpus_go_round_evenly():
  keys = ('CUDA_VISIBLE_DEVICES', MEMORY)
  for gpus, members, per_member, processes, wanted in (
    (8, 2, None, 1, '0,1,2,3 | 4,5,6,7'),
    (8, 3, None, 1, '0,1 | 2,3 | 4,5'),
    (8, 3, 1, 1, '0 | 1 | 2'),
    (8, 2, None, 2, '0,1 2,3 | 4,5 6,7'),
    (8, 2, 2, 2, '0 1 | 2 3'),
    # The rest of a division stays free.
    (7, 2, None, 2, '0 1 | 2 3'),
    (1, 3, None, 1, '0@0.300 | 0@0.300 | 0@0.300'),
    (2, 4, None, 1, '0@0.450 | 1@0.450 | 0@0.450 | 1@0.450'),
    # One has a GPU of its own.
    (2, 3, None, 1, '0@0.450 | 1 | 0@0.450'),
    (3, 2, 2, 1, '0,1@0.450 | 2,0@0.450'),
    (2, 2, 2, 2, '0@0.450 1@0.450 | 0@0.450 1@0.450'),
  ):
    names = [str(gpu) for gpu in range(gpus)]
    found = ' | '.join(
      ' '.join('@'.join(own[key] for key in keys if key in own) for own in each)
      for each in devices.assign(names, members, per_member, processes, {})
    )
    assert found == wanted


def test_a_share_of_memory_stays_and_a_cpu_has_what_is_asked_for():
  [[own], _] = devices.assign(['0'], 2, None, 1, {MEMORY: '.2'})
  assert MEMORY not in own
  key = 'JAX_NUM_CPU_DEVICES'
  assert devices.assign([], 2, None, 2, {}) == [[{}, {}]] * 2
  assert devices.assign([], 2, 4, 2, {}) == [[{key: '2'}] * 2] * 2
  assert devices.describe([], [[{key: '2'}] * 2]) == 'with 4 CPU devices each'
  for gpus, per_member, processes, sentence in (
    (8, 3, 2, 'cannot be divided among 2'),
    (0, 3, 2, 'cannot be divided among 2'),
    (2, 4, 1, 'need 4 GPUs, but there are 2'),
    # Two processes of one world cannot share one.
    (1, None, 2, 'need 2 GPUs, but there are 1'),
  ):
    with pytest.raises(UserError, match=sentence):
      devices.assign(['0'] * gpus, 2, per_member, processes, {})


@pytest.fixture
def gpus(tmp_path, monkeypatch):
  """A machine with two GPUs and a jax for them, as it seems."""
  tool = tmp_path / 'tools' / 'nvidia-smi'
  tool.parent.mkdir()
  tool.write_text(
    '#!/bin/sh\n'
    '[ "$1" = -L ] || exit 1\n'
    'echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d0c)"\n'
    'echo "  MIG 1g.10gb     Device  0: (UUID: MIG-17)"\n'
    'echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-77e1)"\n'
  )
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', str(tool.parent), prepend=os.pathsep)
  (tool.parent / devices._PLUGINS[0]).mkdir()
  monkeypatch.syspath_prepend(tool.parent)
  monkeypatch.setenv('PYTHONPATH', str(tool.parent), prepend=os.pathsep)
  for name in ('CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS'):
    monkeypatch.delenv(name, raising=False)
  return tool


def test_gpus_are_those_that_jax_would_find(gpus, monkeypatch):
  for environment, found in (
    ({}, ['0', '1']),
    ({'CUDA_VISIBLE_DEVICES': '1'}, ['1']),
    ({'CUDA_VISIBLE_DEVICES': ' 1, 0'}, ['1', '0']),
    ({'CUDA_VISIBLE_DEVICES': '0,7,1'}, ['0']),
    ({'CUDA_VISIBLE_DEVICES': 'MIG-17,MIG-18'}, ['MIG-17', 'MIG-18']),
    ({'CUDA_VISIBLE_DEVICES': ''}, []),
    ({'CUDA_VISIBLE_DEVICES': '-1'}, []),
    ({'JAX_PLATFORMS': 'cpu'}, []),
    ({'JAX_PLATFORMS': 'cuda,cpu'}, ['0', '1']),
  ):
    assert devices.nvidia_gpus(environment) == found, environment
  with monkeypatch.context() as patch:
    patch.setattr(devices, '_PLUGINS', ('jax_cuda_of_nobody',))
    assert devices.nvidia_gpus({}) == []
  # A driver that does not work shows no GPUs.
  gpus.write_text('#!/bin/sh\necho "GPU 0: none"; exit 9\n')
  assert devices.nvidia_gpus({}) == []


class Fakes:
  """Members that do what they are told, and a record of it.

  `wait/die` is a member of two processes.
  """

  def __init__(self, folder, *words, max_restarts=3):
    self.folder = folder
    self.members = []
    for index, word in enumerate(words):
      start = functools.partial(self._processes, index, word.split('/'))
      self.members.append(Member(index, folder, start, max_restarts))
    self.picture = local.Picture('some', self.members, folder, 10)
    self.console = console_of(300)

  def _processes(self, index, words):
    return [
      Process(
        stand_ins.command(self.folder, word, index, k),
        self.folder / f'log-{index}.{k}.txt',
        {**os.environ, 'PYTHONUNBUFFERED': '1'},
      )
      for k, word in enumerate(words)
    ]

  def run(self, stop=(), watch=lambda: None, **keywords):
    """Exit status, ends and output; `watch` is called at each look."""
    look = self.picture.look
    self.picture.look = lambda: (look(), watch())
    status = local.run_locally(
      self.picture, self.members, self.console, stop, **keywords
    )
    return status, [one.end for one in self.members], self.said()

  def said(self):
    return self.console.export_text(clear=False)

  def starts(self):
    return ' '.join(sorted((self.folder / 'starts').read_text().split()))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(local, '_POLL_SECONDS', 0.01)
  monkeypatch.setattr(local, '_LOOK_SECONDS', 0.02)
  monkeypatch.setattr(member, '_PAUSE_S', 0.01)
  monkeypatch.setattr(member, '_GRACE_S', 0.2)


@pytest.mark.parametrize(
  ('words', 'max_restarts', 'ends', 'starts', 'sentences'),
  [
    # The others do not notice.
    (
      *(['done', 'die once'], 3, ['done', 'done'], '0.0 1.0 1.0'),
      'member 1 died: killed by signal 9; the first word|restart 1 of 3 in '
      '0.01 s|restarts|member 0: done, step 10/10|2 done, 100% of 20 steps',
    ),
    # Brackets stay brackets.
    (
      *(['done', 'fail'], 0, ['done', 'dead'], '0.0 1.0'),
      'member 1 is dead: ValueError: [/bold] (all of it|'
      'The same command goes on with members that are not done',
    ),
    (
      *(['done', 'diverge'], 3, ['done', 'diverged'], '0.0 1.0'),
      'member 1 diverged: try a lower learning rate',
    ),
    (
      *(['done', 'terminated'], 3, ['done', 'stopped'], '0.0 1.0'),
      'member 1 was stopped by signal 15',
    ),
    # It restarts after growing pauses; its log has the words of all its lives.
    (
      *(['die', 'done'], 3, ['dead', 'done'], '0.0 0.0 0.0 0.0 1.0'),
      'the first word|restart 1 of 3 in 0.01 s|restart 2 of 3 in 0.02 s|'
      'restart 3 of 3 in 0.04 s|'
      'member 0 is dead: killed by signal 9; the last word',
    ),
    # A world fails as a whole. The reason is that of the process that died
    # first, not of the one that was killed for it.
    (
      *(['hang/die beside', 'done/done'], 1, ['dead', 'done']),
      '0.0 0.0 0.1 0.1 1.0 1.1',
      'member 0 died: killed by signal 9; the first word|log-0.1.txt',
    ),
  ],
)
def test_a_killed_member_restarts_so_often_and_other_ends_are_final(
  tmp_path, words, max_restarts, ends, starts, sentences
):
  fakes = Fakes(tmp_path, *words, max_restarts=max_restarts)
  status, found, said = fakes.run()
  assert (status, found) == (int(ends != ['done'] * 2), ends)
  assert fakes.starts() == starts
  for sentence in sentences.split('|'):
    assert sentence in said
  assert said.count('the first word') <= 1


def test_a_command_that_makes_no_sense_stops_all_at_once(tmp_path):
  fakes = Fakes(tmp_path, 'wait', 'refuse')
  with pytest.raises(UserError, match='member 1 was refused: it is too hot'):
    fakes.run()
  assert all(one.is_over for one in fakes.members)
  assert fakes.starts().count('1.0') == 1
  assert fakes.said() == ''


def test_later_the_others_go_on_without_one_that_is_refused(tmp_path):
  fakes = Fakes(tmp_path, 'work', 'refuse late')

  def watch():
    one = fakes.picture.statuses[0]
    if one.state == 'running':
      (tmp_path / 'seen').touch()
    if one.step:
      (tmp_path / 'moved').touch()
    if fakes.members[1].end == 'refused':
      (tmp_path / 'enough').touch()

  status, ends, said = fakes.run(watch=watch)
  assert (status, ends) == (2, ['done', 'refused'])
  assert 'member 1 was refused: it is too hot' in said


@pytest.mark.parametrize(
  ('words', 'waits', 'num_signals', 'end'),
  [
    (['wait', 'wait', 'fail'], '0.0 1.0', 1, 'stopped'),
    # A second signal kills, however soon it comes.
    (['stubborn'], '0.0', 2, 'killed'),
    # Half of this world has ended.
    (['wait/stubborn'], '0.0 0.1', 1, 'stopped'),
  ],
)
def test_a_signal_stops_all_with_checkpoints_and_what_will_not_stop_is_killed(
  tmp_path, words, waits, num_signals, end
):
  fakes = Fakes(tmp_path, *words, max_restarts=100)
  began = time.monotonic()
  waits = [tmp_path / f'waits-{process}' for process in waits.split()]
  status, ends, said = fakes.run(Signals(*[waits] * num_signals))
  assert time.monotonic() - began < 30
  assert status == 128 + signal.SIGINT
  for index in range(len(words) - ('fail' in words)):
    assert ends[index] == end
    run = read_run(tmp_path / f'run-{index}.json')
    assert (run['status'] == 'interrupted') == (end == 'stopped')
  assert 'Stopping the members' in said
  assert 'the same command goes on' in said
  assert ('Killing the members' in said) == (num_signals == 2)
  # It was asked to stop.
  assert 'member 0 is dead' not in said


def test_a_member_that_waits_for_its_restart_is_not_started_any_more(tmp_path):
  [one] = Fakes(tmp_path, 'die').members
  one.step()
  one.wait()
  assert 'restart 1' in one.step()
  assert one.is_waiting
  one.stop(kill=False)
  assert (one.is_over, one.end) == (True, 'stopped')


def test_an_error_of_the_launcher_stops_the_members(tmp_path):
  fakes = Fakes(tmp_path, 'wait')

  def watch():
    if (tmp_path / 'waits-0').exists():
      raise BrokenPipeError

  with pytest.raises(BrokenPipeError):
    fakes.run(watch=watch)
  assert read_run(tmp_path / 'run-0.json')['status'] == 'interrupted'


def test_a_process_that_only_lost_the_others_does_not_say_why():
  for first in (-signal.SIGKILL, 1):
    for then in (LOST_OTHERS, -signal.SIGABRT):
      assert member._rank(first) < member._rank(then)
    assert member._rank(2) < member._rank(143) < member._rank(first)


def test_a_world_has_time_to_end_by_itself(tmp_path, monkeypatch):
  monkeypatch.undo()  # Use the real patience.
  Fakes(tmp_path, 'die/done', max_restarts=0).run()
  assert read_run(tmp_path / 'run-0.json')['status'] == 'done'
  # If it is refused, no death is reported.
  [one] = Fakes(tmp_path, 'fail/refuse').members
  one.step()
  one.wait()
  assert one.step().startswith('member 0 was refused: it is too hot')


def test_last_words(tmp_path):
  log, before = tmp_path / 'log.txt', 'experiments.run: before\n'
  for text, words in (
    ('experiments.run: no\nlater', 'no'),
    ('ValueError: no\n----\nJAX has removed frames.', 'ValueError: no'),
    ('jax.errors.JaxRuntimeError: OOM\nno', 'jax.errors.JaxRuntimeError: OOM'),
    ('step 3\n\n', 'step 3'),
    (
      'F1121 15:19:10.411228   26485 client.h:80] Terminating process\n'
      '*** Check failure stack trace: ***\nExtension modules: a, b\n',
      'Terminating process',
    ),
    ('ValueError: ' + 300 * 'no', f'ValueError: {144 * "no"} …'),
    (
      'step 3\nresource_tracker.py:254: UserWarning: resource_tracker: 5\n'
      "  warnings.warn('resource_tracker: There appear to be %d '\n",
      'step 3',
    ),
    ('', 'nothing'),
  ):
    log.write_text(before + text)
    for code, died in ((1, ''), (-6, 'killed by signal 6; ')):
      said = f'{died}{words} (all of it: {log})'
      assert last_words(log, code, since=len(before)) == said
    # It did not see it coming; its last line is no reason.
    killed = last_words(log, -9, since=len(before))
    assert killed.startswith('killed by signal 9; '), text
    is_short = 'memory is short' in killed
    assert is_short == (words in ('step 3', 'nothing')), text


# The display.


def status_of(index, state, step, **changes):
  nothing = dict.fromkeys(status.Status._fields)
  fields = {'member': index, 'state': state, 'step': step, 'num_steps': 100}
  return status.Status(**nothing | fields | changes)


def test_progress_rate_and_time_left_of_all(tmp_path, monkeypatch):
  now, found = [0.0], []
  monkeypatch.setattr(local.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(local, 'read_status', lambda workdir: found)
  fakes = Fakes(tmp_path, 'a', 'b', 'c')
  picture = local.Picture('some', fakes.members, tmp_path, 100)

  def look(second, *statuses):
    now[0], found[: len(statuses)] = second, statuses
    picture.look()

  assert picture.line() == '3 starting, 0% of 300 steps'
  # Compiling takes a minute; the first goes on from step 20.
  for second, first, other in ((0, 20, 0), (60, 20, 0), (70, 40, 5)):
    one = status_of(1, 'running', other, rate=100.0, task_loss=0.5)
    look(second, status_of(0, 'running', first), one)
    assert picture.has_moved == (second == 70)
  # The third has no pace of its own, so it counts as the second, with half a
  # step a second.
  assert picture.line().endswith('about 0:03:20 left')
  monkeypatch.setattr(Member, 'is_waiting', False)
  fakes.members[2].end = 'dead'
  fakes.members[1].restarts = 2
  look(70)
  said = '2 running, 1 dead, 15% of 300 steps, 100 ex/s, about 0:03:10 left'
  assert picture.line() == said
  said = 'member 1: running, step 5/100, 100 ex/s, loss 0.5000, 2 restarts'
  assert picture.plain(1) == said
  # It resumes from a checkpoint before the rows that it showed at first.
  look(70, status_of(0, 'running', 10))
  look(80, status_of(0, 'running', 20))
  fakes.members[1].end = 'dead'
  assert '0:01:20 left' in picture.line()
  # The seconds in which it was dead are not slow steps, either.
  look(1_000, status_of(0, 'dead', 20))
  assert 'left' not in picture.line()
  look(1_000, status_of(0, 'running', 20))
  look(1_010, status_of(0, 'running', 30))
  assert '0:01:10 left' in picture.line()


def test_a_terminal_shows_all_members_and_plain_lines_tell_of_them(tmp_path):
  (tmp_path / 'seen').touch()
  (tmp_path / 'enough').touch()
  fakes = Fakes(tmp_path, 'work', 'work')
  fakes.console = console_of(80, force_terminal=True)
  assert fakes.run()[0] == 0
  shown = fakes.console.file.getvalue()
  assert '2 starting, 0% of 20 steps' in shown
  assert 'lease' not in shown
  (tmp_path / 'enough').unlink()
  fakes = Fakes(tmp_path, 'work', 'done')

  def watch():
    if fakes.said().count('member 0: running') > 2:
      (tmp_path / 'enough').touch()

  _, _, said = fakes.run(watch=watch, plain_interval_seconds=0.1)
  assert 'member 0: running, step 4/10, 4 ex/s, loss 0.5000' in said
  assert 'member 0: done, step 10/10' in said


def test_a_first_phase_is_shown_while_it_is_at_work(tmp_path):
  first = Record(tmp_path / 'ensemble')
  first.workdir.mkdir()
  codistill = {'members': 2, 'exchange': 'none'}
  run = {'experiment': 'a', 'variant': 'b', 'status': 'running'}
  run['config'] = {'num_steps': 8, 'codistill': codistill}
  first.write_run(run)
  first.write_row({'step': 3, 'member': 0, 'kind': 'train'})
  first.close()
  with lease(first.workdir / 'lease.json'):
    fakes = Fakes(tmp_path, 'work')
    assert [*local.members_at_work(tmp_path, 1)] == [0]
  picture = fakes.picture
  said = 'member 0: running, step 3/8, the first of two phases'
  assert picture.plain(0) == said
  console = console_of(300)
  console.print(picture.table(console))
  assert 'some, the first of two phases' in console.export_text()
  # This is no end of the member.
  first.write_run(run | {'status': 'done'})
  picture.look()
  assert picture.statuses[0].state == 'starting'
  # But no restart helps teachers that diverged.
  assert not fakes.members[0]._has_diverged()
  first.write_run(run | {'diverged': {'1': {'step': 3}}})
  assert fakes.members[0]._has_diverged()


def wide_picture(tmp_path, members):
  """A picture of members with much to show."""
  picture = Fakes(tmp_path, *['work'] * members).picture
  much = {'rate': 12_345.6, 'task_loss': 2.3456, 'failed_loads': 12}
  much |= {'incarnation': 7, 'published': '17,950, 59 s', 'num_steps': 18_000}
  for at in range(members):
    peers = [f'{peer}: {250 + peer}' for peer in range(members) if peer != at]
    much['peers'] = ', '.join([*peers[1:], '99: old'])
    picture.statuses[at] = status_of(at, 'running', 17_950, **much)
  # The last one, which a low terminal would cut off.
  picture.statuses[-1] = picture.statuses[-1]._replace(state='restarting')
  picture._members[-1].restarts = 2
  return picture


@pytest.mark.parametrize(
  ('members', 'width'), [(3, 80), (3, 120), (8, 40), (8, 120), (40, 80)]
)
def test_nothing_that_matters_is_cut_in_a_terminal(tmp_path, width, members):
  picture = wide_picture(tmp_path, members)
  console = console_of(width, height=24)
  console.print(picture.table(console, is_live=True))
  lines = console.export_text().splitlines()
  # One line is for the cursor.
  assert len(lines) < 24
  said = ' '.join(' '.join(lines).split())
  assert f'of {18_000 * members:,} steps' in said
  if width == 40:
    return
  last = next(line for line in lines if 'restarting' in line)
  assert last.split()[0] == str(members - 1)
  for cell in ('17,950/18,000', '12,346', '2.3456', ' 2 '):
    assert cell in last
  assert '1 old' in last or '99: old' in last
  assert '251…' in last or '1: 251' in last
  assert ('more members' in said) == (members == 40)
  # The table that stays at the end has all of them.
  console.print(picture.table(console))
  assert console.export_text().count('17,950/18,000') == members


def test_a_wide_terminal_shows_each_peer_and_a_narrow_one_ages(tmp_path):
  console = console_of(160)
  console.print(wide_picture(tmp_path, 3).table(console))
  said = console.export_text()
  for cell in ('1: 251, 99: old', '17,950, 59 s', 'failed', 'life'):
    assert cell in said
  for peers, ages in (
    ('', ''),
    ('1: 7', '7'),
    ('0: 3, 2: -1, 3: 12', '-1…12'),
    ('0: old, 2: 5, 3: old', '5, 2 old'),
    ('2: absent', '1 absent'),
  ):
    assert local._ages(peers) == ages


# The command.


def refusal(capsys, workdir, *arguments):
  """The sentence with which the command is refused."""
  where = [f'--config={SMOKE}', f'--workdir={workdir}']
  assert launch.main([*where, *arguments]) == 2
  out, err = capsys.readouterr()
  assert err.startswith('scripts.launch: ')
  assert (out, err.count('\n')) == ('', 1)
  return err


def test_what_makes_no_sense_is_one_sentence(capsys):
  for words, sentence in {
    '--config=imagenet_sinc': 'did you mean imagenet_sync',
    '--members=0': '--members must be at least 1',
    '--max-restarts=-1': '--max-restarts must be at least 0',
    '--config.codistill.members=x': "1 or more, not 'x'",
    '--config.codistill.members=2 --members=2': 'give one of them',
    '--config.num_step=3': 'did you mean num_step',
    '--member=0': "what is '--member=0'",
    '--overwrite': 'anew at each restart',
    '--workdir=': '--workdir is empty',
    '--slurm=time=3': 'with --launcher=slurm',
    '--launcher=jobset --jobset=image': 'give it as KEY=VALUE',
    '--launcher=jobset': 'give --jobset image=',
    '--launcher=jobset --jobset=cpu=1 --jobset=cpu=2': 'cpu is there twice',
    '--launcher=slurm --slurm=time=1 --slurm=time=2': 'time is there twice',
    '--config.codistill.exchange=frozen': 'make the teacher first',
    '--launcher=slurm --max-restarts=1': 'is for --launcher=local',
    '--launcher=jobset --processes-per-member=2': 'local or print',
    '--launcher=slurm --slurm=tim=3': 'did you mean time',
    '--workdir=/dev/null': 'is a file; choose another --workdir',
    '--workdir=/dev/null/a': 'Not a directory); choose another --workdir',
  }.items():
    said = refusal(capsys, '/shared/never', *words.split())
    assert sentence in said, words


def test_two_launchers_do_not_share_out_members(tmp_path, capsys):
  for _ in range(2):  # The first one releases it.
    with local.alone(tmp_path):
      said = refusal(capsys, tmp_path)
    assert f'another scripts.launch is at work in {tmp_path}; stop it' in said


@pytest.fixture
def one_at_work(tmp_path):
  """This process holds member 0."""
  with lease(tmp_path / 'lease-0.json'):
    yield tmp_path


def test_members_that_are_at_work_are_not_started_again(one_at_work, capsys):
  slurm = ('--launcher=slurm', '--slurm=time=3')
  for arguments in ((), ('--members=1', *slurm)):
    said = refusal(capsys, one_at_work, *arguments)
    assert f'still at work in {one_at_work}: member 0;' in said
    assert f'python -m scripts.status {one_at_work}' in said
    assert f'kill {os.getpid()}, on ' in said
  assert [path.name for path in one_at_work.glob('[!.]*')] == ['lease-0.json']


def printed(capsys, *arguments):
  """A line for each process: its environment and its command."""
  assert launch.main([f'--config={SMOKE}', *arguments, '--launcher=print']) == 0
  return capsys.readouterr().out.splitlines()


def test_print_prints_what_would_be_started(tmp_path, gpus, capsys):
  given = (f'--workdir={tmp_path}', '--config.batch_size=64', '--tensorboard')
  shared = f'CUDA_VISIBLE_DEVICES=0 {MEMORY}=0.450'
  lines = printed(capsys, '--members=3', *given)
  for index, environment in enumerate(
    (shared, 'CUDA_VISIBLE_DEVICES=1', shared)
  ):
    command = (
      *(sys.executable, '-m', 'experiments.run', f'--config={SMOKE}', given[0]),
      *('--config.codistill.members=3', *given[1:], f'--member={index}'),
    )
    assert lines[index] == f'{environment} {shlex.join(command)}'
  assert len(lines) == 3


def test_a_path_is_meant_from_where_the_command_is_given(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for given, meant in (
    ('codistill.exchange_dir=x', f'codistill.exchange_dir={tmp_path}/x'),
    ('codistill.exchange_dir=gs://x', 'codistill.exchange_dir=gs://x'),
    ('codistill.exchange_dir=None', 'codistill.exchange_dir=None'),
    ('data.data_dir=~/x', f'data.data_dir={os.path.expanduser("~")}/x'),
  ):
    [line, _] = printed(capsys, '--members=2', f'--config.{given}')
    assert f'--config.{meant}' in shlex.split(line)


def test_members_are_worlds_of_their_own(capsys, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  numbers = ('--processes-per-member=2', '--devices-per-member=4')
  members = '--config.codistill.members=2'
  workdir = ROOT / 'runs/imagenet_codistill-smoke-members'
  ports = set()
  for at, line in enumerate(printed(capsys, members, *numbers)):
    environment, *shared, one, address, count, process = shlex.split(line)
    assert environment == 'JAX_NUM_CPU_DEVICES=2'
    assert shared[-2:] == [f'--workdir={workdir}', members]
    assert (one, count) == (f'--member={at // 2}', '--num-processes=2')
    assert process == f'--process-id={at % 2}'
    assert address.startswith('--coordinator-address=127.0.0.1:')
    ports.add((one, address))
  assert (at, len(ports)) == (3, 2)


def test_slurm_gets_all_members_at_a_time(one_at_work, monkeypatch, capsys):
  submit = mock.Mock(return_value=['4711_0', '4711_1'])
  monkeypatch.setattr(launch, 'submit', submit)
  where = [f'--config={SMOKE}', f'--workdir={one_at_work}']
  slurm = ['--launcher=slurm', '--slurm', 'time=30', '--slurm=nodes=2']
  slurm += ['--slurm=setup=module load cuda', '--slurm=setup=export A=1']
  assert launch.main([*where, *slurm, '--members=3']) == 0
  commands, *others = submit.call_args.args
  # They are the members that are not at work.
  assert [line[-1] for line in commands] == ['--member=1', '--member=2']
  setup = ['module load cuda', 'export A=1']
  asked = {'time': '30', 'nodes': '2', 'setup': setup}
  assert others == [2, one_at_work, asked]
  out = capsys.readouterr().out
  assert 'member 2: job 4711_1' in out
  assert 'member 0: still at work, and not submitted' in out
  assert f'python -m scripts.status {one_at_work} --watch 30' in out


def test_jobset_gets_the_command_of_a_member(capsys):
  config = [f'--config={SMOKE}', '--workdir=/shared/x']
  given = ['--members=3', '--jobset=image=a=b', '--jobset=claim=c']
  assert launch.main([*config, *given, '--launcher=jobset']) == 0
  command = ['python', '-m', 'experiments.run', *config]
  assert capsys.readouterr().out == jobset.manifest(
    name='imagenet_codistill-smoke',
    members=3,
    command=[*command, '--config.codistill.members=3'],
    parameters={'image': 'a=b', 'claim': 'c'},
  )


# A real member.


def test_one_is_killed_and_goes_on_and_is_stopped(tmp_path, gpus):
  workdir = tmp_path / 'run'
  line = (
    *(sys.executable, '-m', 'scripts.launch', f'--config={SMOKE}'),
    *(f'--workdir={workdir}', '--members=1', '--devices-per-member=1', *DNN),
    '--config.num_devices=1',
    # This takes longer than the test.
    '--config.num_steps=100000',
    '--config.eval_interval_steps=100000',
    '--config.checkpoint_interval_steps=10',
    # It publishes rarely, because publications take longer than these steps.
    '--config.codistill.reload_interval_steps=100',
  )

  def holder():
    found = read_lease(workdir / 'lease-0.json')
    return found['pid'] if found.get('held') else None

  def steps():
    rows = status.last_rows(workdir / 'rows-0.jsonl', 1 << 20)
    return [row['step'] for row in rows if row['kind'] == 'train']

  with start_process(line) as process:
    until(holder, process)
    pid = holder()
    environment = psutil.Process(pid).environ()
    until(lambda: list(workdir.glob('checkpoints-0/[1-9]*0')), process)
    os.kill(pid, signal.SIGKILL)
    until(lambda: holder() not in (None, pid), process)
    killed_at = max(steps())
    until(lambda: max(steps()) > killed_at, process)
    assert read_run(workdir / 'run-0.json')['resumed']
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
  assert (process.returncode, err) == (128 + signal.SIGINT, '')
  assert environment['CUDA_VISIBLE_DEVICES'] == '0'
  # It has all of this process's environment.
  assert environment['JAX_NUM_CPU_DEVICES'] == '8'
  assert 'member 0 died: killed by signal 9' in out
  assert 'the same command goes on' in out
  assert holder() is None
  assert read_run(workdir / 'run-0.json')['status'] == 'interrupted'
  found = steps()
  assert found == list(range(found[0], found[-1] + 1))
  assert list((workdir / 'checkpoints-0').glob(f'*{found[-1]}*'))
  assert (workdir / 'log-0.txt').stat().st_size > 0
