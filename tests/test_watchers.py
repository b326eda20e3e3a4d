"""TensorBoard, Weights & Biases, the profiler: what they get, what is said."""

import errno
import gzip
import itertools
import json
import sys
import types

import pytest
from commands import error_sentence, rows_of, run_command, stop_command
from rich.console import Console
from tensorboardX import record_writer

from experiments.record import read_run
from experiments.watchers.tensorboard import TensorBoard


class StandIn(types.ModuleType):
  """The client of Weights & Biases, as far as it is used; keeps its calls."""

  class Error(Exception):
    pass

  def __init__(self):
    super().__init__('wandb')
    self.runs, self.starting_step, self.refuses = [], 0, None

  def init(self, **keywords):
    if self.refuses:
      raise self.Error(self.refuses)
    run = types.SimpleNamespace(
      keywords=keywords,
      project=keywords['project'],
      id=keywords['id'] or f'k{len(self.runs)}',
      starting_step=self.starting_step,
      logged=[],
      exits=[],
    )
    run.log = lambda numbers, step: run.logged.append((step, numbers))
    run.finish = lambda exit_code: run.exits.append(exit_code)
    self.runs.append(run)
    return run


@pytest.fixture
def wandb(monkeypatch):
  standing_in = StandIn()
  monkeypatch.setitem(sys.modules, 'wandb', standing_in)
  monkeypatch.delitem(sys.modules, 'experiments.watchers.wandb', False)
  monkeypatch.delenv('WANDB_PROJECT', False)
  yield standing_in
  sys.modules.pop('experiments.watchers.wandb', None)


def numbers_of(rows):
  """What of rows is logged, in order."""
  names = ('task_loss', 'gradient_norm', 'learning_rate', 'disagreement')
  for row in rows:
    who = (
      row['member']
      if row['member'] == 'ensemble'
      else f'member-{row["member"]}'
    )
    found = {
      f'{row["kind"]}/{name}/{who}': row[name]
      for name in names
      if row.get(name) is not None
    }
    if row['kind'] != 'exchange':
      yield row['step'], found


def test_wandb_gets_rows_and_config_and_goes_on_with_its_run(
  wandb, small, tmp_path, monkeypatch
):
  workdir, arguments = tmp_path / 'runs/one', (*small.arguments, '--wandb')
  monkeypatch.setenv('WANDB_PROJECT', 'mine')
  stop_command(5, workdir, *arguments)
  monkeypatch.delenv('WANDB_PROJECT')
  # That many steps it has already.
  wandb.starting_step = 8
  assert run_command(workdir, *arguments).status == 0
  first, second = wandb.runs
  found = read_run(workdir / 'run.json')
  assert found['wandb'] == {'project': 'mine', 'id': 'k0'}
  assert first.keywords['id'] is None
  for run in (first, second):
    assert run.keywords['resume'] == 'allow'
    assert run.keywords['name'] == 'runs/one'
    assert run.keywords['group'] is None
    about = {key: found[key] for key in ('experiment', 'variant', 'commit')}
    config = json.loads(json.dumps(run.keywords['config']))
    assert config == {**found['config'], **about}
  assert (first.exits, second.exits) == ([1], [0])
  assert (second.project, second.id) == ('mine', 'k0')
  rows = rows_of(workdir)
  assert rows == small.rows
  for run, steps in ((first, range(1, 6)), (second, range(8, 11))):
    wanted = list(numbers_of(row for row in rows if row['step'] in steps))
    assert [step for step, _ in run.logged] == [step for step, _ in wanted]
    for (_, numbers), (_, least) in zip(run.logged, wanted, strict=True):
      assert numbers.items() >= least.items()
      assert not any('/seconds/' in name for name in numbers)


@pytest.fixture
def alone(wandb, tmp_path):
  """Member 1 that is a job of its own, as its watcher sees it; what is said."""
  from experiments.watchers.wandb import WeightsAndBiases

  run = {'member': 1, 'config': {}, 'experiment': 'a', 'variant': 'b'}
  run |= {'status': 'done'}
  workdir = types.SimpleNamespace(
    path=tmp_path / 'runs/one',
    run={**run, 'commit': 'c'},
    write_run=lambda **changes: None,
  )
  return WeightsAndBiases(workdir, 0, Console())


def test_members_of_processes_of_their_own_are_a_group(wandb, alone):
  with alone:
    [run] = wandb.runs
  assert run.keywords['name'] == 'runs/one member 1'
  assert run.keywords['group'] == 'runs/one'


def test_a_wandb_that_breaks_down_is_said_once_and_costs_no_run(
  wandb, alone, capsys
):
  def log(numbers, step):
    raise ConnectionResetError('Connection lost')

  with alone:
    [run] = wandb.runs
    run.log = log
    for step in (1, 2):
      alone.write(
        {'step': step, 'kind': 'train', 'member': 1, 'task_loss': 1.0}
      )
  assert run.exits == []
  [line] = capsys.readouterr().out.splitlines()
  assert 'Connection lost' in line
  assert 'training' in line


def test_a_tensorboard_that_breaks_down_is_said_once_and_costs_no_run(
  tmp_path, monkeypatch, capsys
):
  written = []

  def write(self, data):
    written.append(data)
    if len(written) > 9:
      raise OSError(errno.EIO, 'Input/output error')

  run = {'config': {}, 'status': 'done'}
  workdir = types.SimpleNamespace(tensorboard=tmp_path, run=run)
  monkeypatch.setattr(record_writer.RecordWriter, 'write', write)
  # More rows than a queue of tensorboardX's thread takes.
  with TensorBoard(workdir, 0, Console(width=200)) as watcher:
    for step in range(1, 30):
      watcher.write(
        {'step': step, 'kind': 'train', 'member': 0, 'task_loss': 1.0}
      )
  assert len(written) == 10
  watcher._writers['member-0'].close()
  [line] = capsys.readouterr().out.splitlines()
  assert 'TensorBoard' in line
  assert 'Input/output error' in line
  assert 'training' in line


def test_what_wandb_lacks_is_one_sentence(
  wandb, small, tmp_path, capfd, monkeypatch
):
  arguments = (*small.arguments, '--wandb')
  wandb.refuses = 'No API key configured.\nmore'
  assert run_command(tmp_path / 'refused', *arguments).status == 2
  assert '(No API key configured.)' in (line := error_sentence(capfd))
  assert 'WANDB_MODE=offline' in line
  assert read_run(tmp_path / 'refused/run.json')['status'] == 'interrupted'
  # Not installed: nothing is written.
  monkeypatch.setitem(sys.modules, 'wandb', None)
  monkeypatch.delitem(sys.modules, 'experiments.watchers.wandb')
  assert run_command(tmp_path / 'missing', *arguments).status == 2
  assert 'pip install wandb' in error_sentence(capfd)
  assert not (tmp_path / 'missing').exists()


def traced_steps(workdir):
  """How often each step is in the only trace."""
  [trace] = (workdir / 'profile').rglob('*.trace.json.gz')
  with gzip.open(trace) as file:
    events = json.load(file)['traceEvents']
  steps = sorted(
    int(event['args']['step_num'])
    for event in events
    if event.get('name') == 'step'
  )
  return {step: len([*group]) for step, group in itertools.groupby(steps)}


def test_the_steps_that_are_asked_for_are_profiled(small, tmp_path, capfd):
  arguments = small.arguments
  assert run_command(tmp_path / 'a', *arguments, '--profile=4:6').status == 0
  assert 'Steps 4 to 6 are profiled in' in capfd.readouterr().out
  # Of each of two members.
  assert traced_steps(tmp_path / 'a') == {4: 2, 5: 2, 6: 2}
  assert rows_of(tmp_path / 'a') == small.rows
  # What is left of them.
  resumed = small.stopped_copy(tmp_path)
  assert run_command(resumed, *arguments, '--profile=4:7').status == 0
  assert traced_steps(resumed) == {6: 2, 7: 2}


def test_steps_that_are_not_profiled_are_said(small, tmp_path, capfd):
  resumed = small.stopped_copy(tmp_path)
  assert run_command(resumed, *small.arguments, '--profile=2:5').status == 0
  assert 'Nothing is profiled: the run is past' in capfd.readouterr().out
  assert run_command(resumed, *small.arguments, '--profile=2:5').status == 0
  assert 'runs it again. Nothing is profiled.' in capfd.readouterr().out
  assert not (resumed / 'profile').exists()
  for steps, why in (
    ('9:11', 'goes beyond the run, which has 10 steps'),
    ('7', 'takes FIRST:LAST'),
    ('7:5', 'takes FIRST:LAST'),
    ('0:5', 'takes FIRST:LAST'),
  ):
    arguments = (*small.arguments, f'--profile={steps}')
    assert run_command(tmp_path / 'no', *arguments).status == 2
    assert why in error_sentence(capfd)
  assert not (tmp_path / 'no').exists()
