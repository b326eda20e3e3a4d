"""The whole command, on configs that take seconds."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import warnings

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from tensorboardX.proto.event_pb2 import Event

from codistill import record
from codistill.checkpoint import Checkpoints
from codistill.record import read_rows, read_run
from experiments import run
from experiments.build import Experiment, build
from experiments.train import Trainer

# ml_collections loads config files with it.
pytestmark = pytest.mark.filterwarnings(
  r'ignore:the load_module\(\) method is deprecated:DeprecationWarning'
)
ROOT = pathlib.Path(__file__).parent.parent
CODISTILL = 'imagenet_codistill:smoke'
# Peers' copies outlive checkpoints: published at 0, 3, 6, 9 and seen 3 later.
STALE = (
  '--config.num_steps=10',
  '--config.codistill.burn_in_steps=3',
  '--config.codistill.reload_interval_steps=3',
  '--config.codistill.delay_steps=2',
  '--config.eval_interval_steps=4',
  '--config.checkpoint_interval_steps=100',
)
# What no program depends on, and so what experiments that share them may
# differ in.
NO_PROGRAM = {
  'config': (
    'seed',
    'num_steps',
    'eval_interval_steps',
    'checkpoint_interval_steps',
    'diversity',
  ),
  'codistill': (
    'members',
    'burn_in_steps',
    'exchange',
    'topology',
    'reload_interval_steps',
    'delay_steps',
    'immediate',
  ),
}
_alike = {}


def build_cheaply(config, member):
  """`build`, with the programs of an earlier experiment that is alike."""
  experiment = build(config, member)
  plain = config.to_dict()
  for key in NO_PROGRAM['config']:
    del plain[key]
  for key in NO_PROGRAM['codistill']:
    del plain['codistill'][key]
  first = _alike.setdefault(json.dumps(plain), experiment)
  return dataclasses.replace(
    experiment,
    model=first.model,
    optimizer=first.optimizer,
    updates=first.updates,
    evaluate=first.evaluate,
  )


def run_command(workdir, *arguments, config=CODISTILL, builder=build_cheaply):
  """`python -m experiments.run` in this process.

  Returns:
    Exit status, and the trainer and the experiment if it came to them.
  """
  outcome = types.SimpleNamespace(trainer=None, experiment=None)

  class Kept(Trainer):
    def __init__(self, experiment, workdir):
      super().__init__(experiment, workdir)
      outcome.trainer, outcome.experiment = self, experiment

  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, 'argv', line_of(workdir, *arguments, config=config)[2:])
    patch.setattr(run, 'build', builder)
    patch.setattr(run, 'Trainer', Kept)
    outcome.status = run.main(run.parse_flags(sys.argv))
  return outcome


def line_of(workdir, *arguments, config=CODISTILL):
  return [
    sys.executable,
    '-m',
    'experiments.run',
    f'--config={config}',
    f'--workdir={workdir}',
    '--config.num_devices=1',
    # The only number in a program that follows from num_steps.
    '--config.schedule.warmup_cosine.num_steps=100',
    *arguments,
  ]


def start_process(line):
  environment = {
    **os.environ,
    # As in this process, so that compiled programs are shared.
    'JAX_NUM_CPU_DEVICES': '8',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  return subprocess.Popen(
    line,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def on_row(act, **wanted):
  """Acts when the row that is wanted has been written."""
  real = Trainer._write

  def write(self, row):
    real(self, row)
    if all(row[key] == value for key, value in wanted.items()):
      act(self)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Trainer, '_write', write)
    yield


def stop_after(step, number=signal.SIGTERM):
  """A signal in the middle of the round that ends with `step`."""
  # Metrics are late: this row is written when member 1 has made that step.
  return on_row(
    lambda trainer: signal.raise_signal(number),
    step=step,
    member=0,
    kind='train',
  )


def untimed(rows):
  return [
    {
      k: v
      for k, v in row.items()
      if k not in ('seconds', 'examples_per_second')
    }
    for row in rows
  ]


def rows_of(workdir, name='rows.jsonl'):
  return untimed(read_rows(workdir / name))


def strict_rows(workdir):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  lines = (workdir / 'rows.jsonl').read_text(encoding='utf-8').splitlines()
  return [json.loads(line, parse_constant=refuse) for line in lines]


def leaves_of(outcome):
  """Everything that a run has in memory at its end, by path."""
  tree = {
    'members': {m.index: m.state for m in outcome.trainer.members},
    'publications': outcome.experiment.exchange.publications(),
  }
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_bit_for_bit(one, other):
  one, other = leaves_of(one), leaves_of(other)
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    assert leaf.dtype == other[path].dtype
    assert leaf.tobytes() == other[path].tobytes(), path


def contents(workdir):
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file()
  }


def error_sentence(capfd):
  """What the command complained of: one line, and no traceback."""
  err = capfd.readouterr().err
  lines = [line for line in err.splitlines() if 'experiments.run: ' in line]
  assert 'Traceback' not in err
  [line] = lines
  return line


@dataclasses.dataclass(frozen=True)
class Reference:
  """A run that nothing disturbed, and one that stopped half way."""

  arguments: tuple[str, ...]
  workdir: pathlib.Path
  whole: types.SimpleNamespace
  stopped: pathlib.Path

  @property
  def rows(self):
    return rows_of(self.workdir)

  def stopped_copy(self, folder):
    return pathlib.Path(shutil.copytree(self.stopped, folder / 'stopped'))


def make_reference(folder, members):
  arguments = (*STALE, f'--config.codistill.members={members}')
  whole = run_command(folder / 'whole', *arguments)
  assert whole.status == 0
  with stop_after(5):
    status = run_command(folder / 'half', *arguments).status
  assert status == 128 + signal.SIGTERM
  return Reference(arguments, folder / 'whole', whole, folder / 'half')


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  return make_reference(tmp_path_factory.mktemp('pair'), members=2)


@pytest.fixture(scope='module')
def triple(tmp_path_factory):
  return make_reference(tmp_path_factory.mktemp('triple'), members=3)


# Rows and provenance.


def test_rows_have_every_field_and_null_where_it_does_not_apply(pair):
  rows = read_rows(pair.workdir / 'rows.jsonl')
  assert strict_rows(pair.workdir) == rows
  for row in rows:
    assert list(row)[: len(record.FIELDS)] == list(record.FIELDS)
    assert row['seconds'] >= 0
    assert row['examples_seen'] == 16 * row['step']
    assert row['task_loss'] > 0
    assert 0 <= row['accuracy'] <= 1
  train = [row for row in rows if row['kind'] == 'train']
  assert [(row['step'], row['member']) for row in train] == [
    (step, member) for step in range(1, 11) for member in (0, 1)
  ]
  for row in train:
    step, other = row['step'], 1 - row['member']
    if step <= 3:
      assert row['distill_loss'] is None
      expected = (0, [], [], None)
    else:
      assert row['distill_loss'] > 0
      # Published at 0, 3, 6; seen from the third step after that on.
      age = step - 1 - 3 * ((step - 3) // 3)
      expected = (1, [other], [age], age)
    names = ('num_peers', 'peers', 'peer_ages', 'peer_age')
    assert tuple(row[name] for name in names) == expected
    assert (row['examples_per_second'] is None) == (step == 1)
  scored = [row for row in rows if row['kind'] != 'train']
  assert [(row['kind'], row['step'], row['member']) for row in scored] == [
    (kind, step, member)
    for kind, step in (('eval', 4), ('eval', 8), ('final', 10))
    for member in (0, 1, 'ensemble')
  ]
  for row in scored:
    for field in ('distill_loss', 'num_peers', 'peers', 'peer_ages'):
      assert row[field] is None
    assert row['peer_age'] is None
    assert row['examples_per_second'] is None
    assert (row['disagreement'] is None) == (row['member'] != 'ensemble')
  seconds = [row['seconds'] for row in rows]
  assert seconds == sorted(seconds)


def test_provenance_says_what_made_the_rows(pair):
  found = read_run(pair.workdir / 'run.json')
  config = pair.whole.experiment.config.to_dict()
  assert found['config'] == json.loads(json.dumps(config))
  assert found['config_hash'] == record.config_hash(found['config'])
  assert found['config']['codistill']['delay_steps'] == 2
  assert {key: found[key] for key in ('commit', 'dirty')}.keys() == (
    record.code_version(ROOT).keys()
  )
  assert found['packages']['jax'] == jax.__version__
  assert {'python', 'flax', 'optax', 'orbax-checkpoint', 'grain'} <= (
    found['packages'].keys()
  )
  assert found['device'] == {
    'platform': 'cpu',
    'kind': jax.devices()[0].device_kind,
    'count': len(jax.devices()),
  }
  assert f'--config={CODISTILL}' in found['argv']
  assert found['seed'] == 0
  assert found['status'] == 'done'


def test_a_finished_run_run_again_shows_its_table_and_trains_nothing(
  pair, capfd
):
  before = contents(pair.workdir)

  def refuse(config, member):
    raise AssertionError('it builds what it does not need')

  capfd.readouterr()
  outcome = run_command(pair.workdir, *pair.arguments, builder=refuse)
  shown = capfd.readouterr().out
  assert outcome.status == 0
  assert 'is finished' in shown
  for row in pair.rows:
    if row['kind'] == 'final':
      assert f'{100 * row["accuracy"]:.2f} %' in shown
      assert f'{row["task_loss"]:.4f}' in shown
  assert 'ensemble' in shown
  assert contents(pair.workdir) == before


def test_the_same_config_twice_gives_identical_rows(pair, tmp_path):
  again = run_command(tmp_path, *pair.arguments)
  assert again.status == 0
  assert rows_of(tmp_path) == pair.rows
  assert_bit_for_bit(again, pair.whole)


def test_another_seed_gives_other_rows(pair, tmp_path):
  run_command(tmp_path, *pair.arguments, '--config.seed=1')
  for one, other in zip(rows_of(tmp_path), pair.rows, strict=True):
    assert one['task_loss'] != other['task_loss']


@pytest.mark.parametrize(
  ('config', 'members', 'num_peers'),
  [
    ('imagenet_sync:smoke', 1, [0] * 8),
    ('imagenet_codistill:smoke', 2, [0] * 3 + [1] * 5),
    ('imagenet_ensemble:smoke', 2, [0] * 8),
    ('imagenet_label_smoothing:smoke', 1, [0] * 8),
  ],
)
def test_every_config_runs_to_its_end(tmp_path, config, members, num_peers):
  assert run_command(tmp_path, config=config).status == 0
  assert read_run(tmp_path / 'run.json')['status'] == 'done'
  rows = rows_of(tmp_path)
  whos = [*range(members)] + ['ensemble'] * (members > 1)
  assert [r['member'] for r in rows if r['kind'] == 'final'] == whos
  for member in range(members):
    mine = [r for r in rows if (r['member'], r['kind']) == (member, 'train')]
    assert [row['num_peers'] for row in mine] == num_peers
    taught = [row['distill_loss'] is not None for row in mine]
    smoothed = 'smoothing' in config
    assert taught == [smoothed or peers > 0 for peers in num_peers]


def test_one_member_alone_is_that_member_of_all(tmp_path):
  together, apart = tmp_path / 'together', tmp_path / 'apart'
  ensemble = 'imagenet_ensemble:smoke'
  assert run_command(together, config=ensemble).status == 0
  for member in (0, 1):
    status = run_command(apart, f'--member={member}', config=ensemble).status
    assert status == 0
    found = read_run(apart / f'run-{member}.json')
    assert (found['member'], found['status']) == (member, 'done')
    assert rows_of(apart, f'rows-{member}.jsonl') == [
      row for row in rows_of(together) if row['member'] == member
    ]
  assert not (apart / 'run.json').exists()
  assert not (apart / 'rows.jsonl').exists()


def events_of(path):
  """The events of a file, by the framing of TFRecord."""
  data, events = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


def test_tensorboard_shows_the_rows_without_tensorflow(pair, tmp_path):
  # Stopped and resumed, so that its rows come from two processes.
  with stop_after(5):
    run_command(tmp_path, *pair.arguments, '--tensorboard')
  time.sleep(1.1)  # The names of event files have seconds.
  outcome = run_command(tmp_path, *pair.arguments, '--tensorboard')
  assert outcome.status == 0
  for who in (0, 1, 'ensemble'):
    name = who if who == 'ensemble' else f'member-{who}'
    events = [
      event
      for path in sorted((tmp_path / 'tensorboard' / name).iterdir())
      for event in events_of(path)
    ]
    found = [
      (value.tag, event.step, value.simple_value)
      for event in events
      for value in event.summary.value
    ]
    # TensorBoard hides what an earlier process wrote from there on.
    starts = [event.step for event in events if event.HasField('session_log')]
    assert starts == [1, 6]
    losses = [f for f in found if f[0].endswith('/task_loss')]
    expected = [
      (f'{row["kind"]}/task_loss', row['step'], np.float32(row['task_loss']))
      for row in pair.rows
      if row['member'] == who
    ]
    assert losses == expected
    tags = {tag for tag, _, _ in found}
    assert ('train/distill_loss' in tags) == (who != 'ensemble')
    assert ('eval/disagreement' in tags) == (who == 'ensemble')
  assert 'tensorflow' not in sys.modules


# Resume.


@pytest.mark.parametrize('members', ['pair', 'triple'])
def test_ten_steps_are_five_and_five_bit_for_bit(
  members, tmp_path, request, capfd
):
  reference = request.getfixturevalue(members)
  workdir = reference.stopped_copy(tmp_path)
  assert read_run(workdir / 'run.json')['status'] == 'interrupted'
  half = rows_of(workdir)
  assert max(row['step'] for row in half) == 5
  outcome = run_command(workdir, *reference.arguments)
  assert outcome.status == 0
  assert outcome.trainer.start_step == 5
  assert 'goes on from step 5' in capfd.readouterr().out
  assert rows_of(workdir) == reference.rows
  assert_bit_for_bit(outcome, reference.whole)
  found = read_run(workdir / 'run.json')
  assert found['status'] == 'done'
  assert len(found['resumed']) == 1
  seconds = [row['seconds'] for row in read_rows(workdir / 'rows.jsonl')]
  assert seconds == sorted(seconds)


def test_the_states_that_are_compared_depend_on_the_past(pair):
  """The test above compares what it says: copies, statistics, the optimizer."""
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
  assert pair.whole.experiment.config.data.augmentation == 'shift'


def test_rows_after_the_restored_step_are_dropped(pair, tmp_path):
  workdir = pair.stopped_copy(tmp_path)
  with open(workdir / 'rows.jsonl', 'a') as rows:
    late = {'step': 6, 'member': 0, 'kind': 'train', 'task_loss': 99.0}
    rows.write(json.dumps(late) + '\n')
    rows.write(json.dumps({**late, 'step': 7})[:-9])
  assert run_command(workdir, *pair.arguments).status == 0
  assert rows_of(workdir) == pair.rows


@pytest.fixture
def handlers():
  """What handles the two signals in a program that has its own ideas."""
  mine = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: None}
  before = {number: signal.signal(number, mine[number]) for number in mine}
  yield mine
  for number, handler in before.items():
    signal.signal(number, handler)


def test_a_signal_stops_with_a_checkpoint_and_says_how_to_go_on(
  pair, tmp_path, capfd, handlers
):
  with stop_after(7, signal.SIGINT):
    outcome = run_command(tmp_path, *pair.arguments)
  assert outcome.status == 128 + signal.SIGINT
  captured = capfd.readouterr()
  assert 'Stopped at step 7 of 10; the same command goes on' in captured.out
  assert 'Stopping' in captured.err
  assert read_run(tmp_path / 'run.json')['status'] == 'interrupted'
  assert list((tmp_path / 'checkpoints').glob('*7*'))
  # Whoever handled the signal before handles it again.
  for number, handler in handlers.items():
    assert signal.getsignal(number) is handler
  assert run_command(tmp_path, *pair.arguments).status == 0
  assert rows_of(tmp_path) == pair.rows


def test_a_signal_in_the_last_step_is_too_late_to_stop_anything(pair, tmp_path):
  with stop_after(10):
    outcome = run_command(tmp_path, *pair.arguments)
  assert outcome.status == 0
  assert rows_of(tmp_path) == pair.rows


def wait_for_rows(process, workdir, number):
  rows = workdir / 'rows.jsonl'
  while not rows.exists() or rows.read_bytes().count(b'\n') < number:
    if process.poll() is not None:
      raise AssertionError(process.communicate()[1])
    time.sleep(0.002)


def test_a_signal_from_outside_stops_the_process(pair, tmp_path):
  process = start_process(line_of(tmp_path, *pair.arguments))
  # Before ψ is compiled, so that it has not finished yet.
  wait_for_rows(process, tmp_path, 1)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=100)
  assert process.returncode == 128 + signal.SIGTERM, err
  assert 'the same command goes on from there' in out
  assert 'Traceback' not in err
  assert read_run(tmp_path / 'run.json')['status'] == 'interrupted'
  outcome = run_command(tmp_path, *pair.arguments)
  assert outcome.status == 0
  assert outcome.trainer.start_step > 0
  assert rows_of(tmp_path) == pair.rows


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path):
  arguments = (
    '--config.num_steps=30',
    '--config.codistill.reload_interval_steps=3',
    '--config.eval_interval_steps=10',
    '--config.checkpoint_interval_steps=10',
  )
  killed, whole = tmp_path / 'killed', tmp_path / 'whole'
  moment = random.randrange(24, 50)  # Rows.
  print('killed after', moment, 'rows')
  process = start_process(line_of(killed, *arguments))
  wait_for_rows(process, killed, moment)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert run_command(whole, *arguments).status == 0
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # A cut last line is as good as any.
    rows = rows_of(killed)
  assert len(rows) >= moment
  assert rows == rows_of(whole)[: len(rows)]
  assert read_run(killed / 'run.json')['status'] == 'running'
  outcome = run_command(killed, *arguments)
  assert outcome.status == 0
  # The row of a step is written after the checkpoint of the one before.
  last = rows[-1]['step']
  assert outcome.trainer.start_step >= (last - 1) // 10 * 10 > 0
  assert rows_of(killed) == rows_of(whole)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(pair, tmp_path):
  class Killed(BaseException):
    pass

  def die(trainer):
    raise Killed

  with on_row(die, step=3, kind='train'), pytest.raises(Killed):
    run_command(tmp_path, *pair.arguments)
  assert rows_of(tmp_path)
  outcome = run_command(tmp_path, *pair.arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, 0)
  assert rows_of(tmp_path) == pair.rows


def test_a_run_killed_between_its_last_checkpoint_and_its_final_rows(
  pair, tmp_path
):
  class Killed(BaseException):
    pass

  def die(trainer):
    raise Killed

  with on_row(die, kind='final', member=1), pytest.raises(Killed):
    run_command(tmp_path, *pair.arguments)
  outcome = run_command(tmp_path, *pair.arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, 10)
  assert rows_of(tmp_path) == pair.rows


# Whose workdir this is.


def test_a_workdir_of_another_config_is_refused_with_what_differs(pair, capfd):
  before = contents(pair.workdir)
  outcome = run_command(
    pair.workdir,
    *pair.arguments,
    '--config.codistill.delay_steps=1',
    '--config.optimizer.sgd.momentum=0.5',
  )
  assert outcome.status == 2
  sentence = error_sentence(capfd)
  # These and nothing else.
  assert (
    '(codistill.delay_steps 2 there, 1 now; '
    'optimizer.sgd.momentum 0.9 there, 0.5 now)' in sentence
  )
  assert '--overwrite' in sentence
  assert contents(pair.workdir) == before


@pytest.fixture
def other_commit(monkeypatch):
  version = {'commit': 'c0ffee' * 6 + 'cafe', 'dirty': False}
  monkeypatch.setattr(record, 'code_version', lambda directory: version)
  return version


def test_a_workdir_of_another_commit_is_refused(
  pair, tmp_path, capfd, other_commit
):
  workdir = pair.stopped_copy(tmp_path)
  before = contents(workdir)
  assert run_command(workdir, *pair.arguments).status == 2
  sentence = error_sentence(capfd)
  assert other_commit['commit'][:12] in sentence
  assert str(read_run(workdir / 'run.json')['commit'])[:12] in sentence
  assert '--allow-code-change' in sentence
  assert contents(workdir) == before


def test_a_code_change_that_is_allowed_is_recorded(
  pair, tmp_path, other_commit
):
  workdir = pair.stopped_copy(tmp_path)
  first = read_run(workdir / 'run.json')['commit']
  with stop_after(7):
    allowed = run_command(workdir, *pair.arguments, '--allow-code-change')
  assert allowed.status == 128 + signal.SIGTERM
  # The commit that came last may go on without asking.
  assert run_command(workdir, *pair.arguments).status == 0
  found = read_run(workdir / 'run.json')
  assert found['commit'] == first
  resumed = [
    (entry['commit'], entry['dirty'], entry['allow_code_change'])
    for entry in found['resumed']
  ]
  assert resumed == [
    (other_commit['commit'], False, True),
    (other_commit['commit'], False, False),
  ]
  assert rows_of(workdir) == pair.rows


def test_a_finished_run_is_shown_whatever_the_commit(pair, other_commit):
  assert run_command(pair.workdir, *pair.arguments).status == 0


def test_overwrite_begins_anew(pair, tmp_path, other_commit):
  workdir = pair.stopped_copy(tmp_path)
  (workdir / 'mine.txt').write_text('kept')
  arguments = (*pair.arguments, '--config.seed=1', '--overwrite')
  outcome = run_command(workdir, *arguments)
  assert (outcome.status, outcome.trainer.start_step) == (0, 0)
  found = read_run(workdir / 'run.json')
  assert found['commit'] == other_commit['commit']
  assert found['config']['seed'] == 1
  assert 'resumed' not in found
  rows = rows_of(workdir)
  assert len(rows) == len(pair.rows)
  assert rows[0]['task_loss'] != pair.rows[0]['task_loss']
  assert (workdir / 'mine.txt').read_text() == 'kept'


def test_overwrite_with_bad_input_loses_nothing(pair, tmp_path, capfd):
  workdir = pair.stopped_copy(tmp_path)
  before = contents(workdir)
  outcome = run_command(
    workdir, *pair.arguments, '--overwrite', '--config.codistill.members=0'
  )
  assert outcome.status == 2
  assert 'codistill.members' in error_sentence(capfd)
  assert contents(workdir) == before


def test_checkpoints_that_nobody_owns_are_refused(pair, tmp_path, capfd):
  workdir = pair.stopped_copy(tmp_path)
  (workdir / 'run.json').unlink()
  assert run_command(workdir, *pair.arguments).status == 2
  assert 'without run.json' in error_sentence(capfd)


# Bad input.


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--config.codistill.members=0'], ['codistill.members is 0', '1']),
    (
      ['--member=2', '--config.codistill.exchange=none'],
      ['--member=2 is out of range', '2 members'],
    ),
    (['--member=-1'], ['--member=-1 is out of range']),
    (['--member=one'], ["'one'", 'all']),
    (['--member=0'], ['--member=0', 'memory', '--member=all']),
    (
      ['--config.batch_size=20', '--config.num_devices=8'],
      ['batch_size 20', 'not divisible by 8 devices'],
    ),
    (['--config.num_devices=9999'], ['num_devices is 9999']),
    (['--config.codistill.exchange=pigeon'], ["'pigeon'", 'memory, none']),
    (['--config.codistill.topology=star'], ["'star'", 'ring']),
    (['--config.num_steps=0'], ['num_steps is 0']),
    (['--config.data.augmentation=blur'], ["'blur'", 'shift']),
  ],
)
def test_bad_input_is_one_sentence_and_makes_no_run(
  tmp_path, capfd, arguments, said
):
  assert run_command(tmp_path, *arguments).status == 2
  sentence = error_sentence(capfd)
  for words in said:
    assert words in sentence
  assert contents(tmp_path) == {}


def test_an_unprepared_data_set_says_how_to_prepare_it(tmp_path, capfd):
  outcome = run_command(
    tmp_path / 'run',
    '--config.data.name=cifar10',
    '--config.data.image_shape=(32, 32, 3)',
    f'--config.data.data_dir={tmp_path}',
  )
  assert outcome.status == 2
  sentence = error_sentence(capfd)
  assert 'python -m scripts.prepare_images cifar10' in sentence
  assert 'TFDS_DATA_DIR' in sentence


def test_a_workdir_that_cannot_be_written_is_one_sentence(tmp_path, capfd):
  (tmp_path / 'file').write_text('in the way')
  assert run_command(tmp_path / 'file' / 'below').status == 2
  sentence = error_sentence(capfd)
  assert f'cannot write to {tmp_path / "file" / "below"}' in sentence
  assert '--workdir' in sentence


def test_the_process_ends_with_one_line_and_status_2(tmp_path):
  process = start_process(line_of(tmp_path, '--config.codistill.membrs=2'))
  out, err = process.communicate(timeout=100)
  assert process.returncode == 2
  assert out == ''
  assert err.count('\n') == 1
  assert 'did you mean codistill.members' in err


def full(*arguments, **keywords):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_for_rows(patch):
  class Full:
    def __init__(self, raw):
      self._raw, self._room = raw, 3000

    def write(self, data):
      if not self._room:
        full()
      taken = bytes(data[: self._room])
      self._room -= len(taken)
      return self._raw.write(taken)

    def close(self):
      self._raw.close()

  def open_full(path, mode='r', **keywords):
    wrap = Full if mode == 'ab' else lambda raw: raw
    return wrap(open(path, mode, **keywords))

  patch.setattr(record, 'open', open_full, raising=False)


def full_disk_for_checkpoints(patch):
  # What TensorStore says, seen on a file system of 200 kB.
  def save(*arguments, **keywords):
    try:
      raise ValueError(
        'RESOURCE_EXHAUSTED: Error writing "d/0": Failed to write to local '
        'file [OS error 28: ENOSPC No space left on device]'
      )
    except ValueError as error:
      raise RuntimeError('could not save') from error

  patch.setattr(Checkpoints, 'save', save)


def full_disk_for_provenance(patch):
  real, calls = os.fsync, []

  def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) > 1:
      full()
    return real(descriptor)

  patch.setattr(os, 'fsync', fsync)


@pytest.mark.parametrize(
  'fill',
  [
    full_disk_for_rows,
    full_disk_for_checkpoints,
    full_disk_for_provenance,
  ],
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(
  pair, tmp_path, capfd, fill
):
  with pytest.MonkeyPatch.context() as patch:
    fill(patch)
    assert run_command(tmp_path, *pair.arguments).status == 1
  sentence = error_sentence(capfd)
  assert 'disk is full' in sentence
  assert 'same command' in sentence
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of a line that had room in part.
    rows = rows_of(tmp_path)
  assert rows
  assert rows == pair.rows[: len(rows)]
  assert run_command(tmp_path, *pair.arguments).status == 0
  assert rows_of(tmp_path) == pair.rows


# As a process in which no folder for a checkpoint can be made.
NO_FOLDER = """
import errno, os, runpy, sys

real = os.mkdir

def mkdir(path, *arguments, **keywords):
  if 'checkpoints/' in str(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return real(path, *arguments, **keywords)

os.mkdir = mkdir
sys.argv = sys.argv[1:]
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


def test_a_checkpoint_that_failed_does_not_keep_the_process(tmp_path):
  """Orbax's threads would, for five minutes."""
  sync = 'imagenet_sync:smoke'
  line = line_of(tmp_path, config=sync)
  process = start_process([sys.executable, '-c', NO_FOLDER, *line[2:]])
  err = process.communicate(timeout=100)[1]
  assert process.returncode == 1
  assert 'disk is full' in err.splitlines()[-1]
  assert 'experiments.run: ' in err.splitlines()[-1]
  assert 'future.py' not in err  # What Orbax logs.
  assert max(row['step'] for row in rows_of(tmp_path)) == 4
  assert run_command(tmp_path, config=sync).status == 0
  assert read_run(tmp_path / 'run.json')['status'] == 'done'


# A loss that is not finite.


@contextlib.contextmanager
def sick(step, *members):
  """From that step on these members' examples are not numbers."""
  real = Experiment.batches

  def batches(self, member, start):
    for number, batch in enumerate(real(self, member, start), start + 1):
      if member in members and number >= step:
        batch = {**batch, 'inputs': batch['inputs'] * math.nan}
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Experiment, 'batches', batches)
    yield


THREE = (
  '--config.num_steps=10',
  '--config.codistill.members=3',
  '--config.codistill.reload_interval_steps=1',
  '--config.eval_interval_steps=4',
  '--config.checkpoint_interval_steps=100',
)


@pytest.mark.parametrize('patient', [0, 2])
def test_a_member_that_diverges_falls_silent_and_the_others_go_on(
  tmp_path, capfd, patient
):
  with sick(5, patient):
    outcome = run_command(tmp_path, *THREE)
  assert outcome.status == 1
  assert f'member {patient} diverged at step 5' in error_sentence(capfd)
  found = read_run(tmp_path / 'run.json')
  assert found['status'] == 'diverged'
  assert found['diverged'].keys() == {str(patient)}
  assert found['diverged'][str(patient)]['step'] == 5
  rows = untimed(strict_rows(tmp_path))
  well = [member for member in range(3) if member != patient]
  # The last member's row comes one report late, when the next round began.
  last = [row['step'] for row in rows if row['member'] == patient][-1]
  assert last == (6 if patient == 2 else 5)
  for row in rows:
    if row['kind'] == 'train' and row['member'] != patient and row['step'] > 3:
      ages = dict(zip(row['peers'], row['peer_ages'], strict=True))
      # Its last copy is that of step 4.
      assert ages[patient] == max(0, row['step'] - 5)
      [other] = set(well) - {row['member']}
      assert ages[other] == 0
      assert row['peer_age'] == ages[patient]
      assert math.isfinite(row['task_loss'])
      assert math.isfinite(row['distill_loss'])
  for row in rows:
    if row['member'] == patient:
      assert (row['task_loss'] is None) == (row['step'] >= 5)
  final = [row for row in rows if row['kind'] == 'final']
  assert [row['member'] for row in final] == [*well, 'ensemble']
  assert all(row['task_loss'] is not None for row in final)
  # Shown again, it has still diverged.
  assert run_command(tmp_path, *THREE).status == 1
  assert 'diverged at step 5' in error_sentence(capfd)


def test_a_member_that_diverged_stays_out_when_resumed(tmp_path):
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  with sick(5, 1):
    assert run_command(whole, *THREE).status == 1
    with stop_after(7):
      status = run_command(halves, *THREE).status
    assert status == 128 + signal.SIGTERM
  # In good health again, and still not asked.
  assert run_command(halves, *THREE).status == 1
  assert rows_of(halves) == rows_of(whole)
  one, other = (read_run(w / 'run.json') for w in (whole, halves))
  assert one['diverged'] == other['diverged']
  assert one['status'] == other['status'] == 'diverged'


def test_a_divergence_after_the_last_checkpoint_may_not_happen_again(
  pair, tmp_path
):
  class Killed(BaseException):
    pass

  def die(trainer):
    raise Killed

  workdir = pair.stopped_copy(tmp_path)
  with (
    sick(7, 1),
    on_row(die, step=9, kind='train'),
    pytest.raises(Killed),
  ):
    run_command(workdir, *pair.arguments)
  assert read_run(workdir / 'run.json')['diverged']
  assert run_command(workdir, *pair.arguments).status == 0
  found = read_run(workdir / 'run.json')
  assert (found['status'], found['diverged']) == ('done', {})
  assert rows_of(workdir) == pair.rows


@pytest.mark.parametrize('step', [5, 8])
def test_when_all_have_diverged_the_run_ends(tmp_path, capfd, step):
  with sick(step, 0):
    outcome = run_command(tmp_path, config='imagenet_sync:smoke')
  assert outcome.status == 1
  assert f'member 0 diverged at step {step}' in error_sentence(capfd)
  assert read_run(tmp_path / 'run.json')['status'] == 'diverged'
  rows = strict_rows(tmp_path)
  assert max(row['step'] for row in rows) == min(step + 1, 8)
  assert not [row for row in rows if row['kind'] == 'final']


def test_weights_that_a_last_update_ruined_are_found_at_the_end(
  tmp_path, capfd
):
  def ruin(trainer):
    """As a rate far too high does, between the loss and the next one."""
    member = trainer.members[0]
    member.state = dataclasses.replace(
      member.state,
      variables=jax.tree.map(
        lambda leaf: leaf * math.nan, member.state.variables
      ),
    )

  with on_row(ruin, step=8, kind='train'):
    outcome = run_command(tmp_path, config='imagenet_sync:smoke')
  assert outcome.status == 1
  assert 'member 0 diverged at step 8' in error_sentence(capfd)
  assert read_run(tmp_path / 'run.json')['status'] == 'diverged'
  assert strict_rows(tmp_path)[-1]['task_loss'] is None


# Metrics, one report late.


class Watched:
  """A metric on the device: to ask it for its value, however, is taped."""

  def __init__(self, value, ask):
    self._value, self._ask = value, ask

  def __array__(self, dtype=None, copy=None):
    self._ask()
    return np.asarray(self._value, dtype)

  def __float__(self):
    return float(self.__array__())

  def __bool__(self):
    return bool(self.__array__())

  def item(self):
    return self.__array__().item()

  def block_until_ready(self):
    self._ask()
    return self


def test_metrics_are_fetched_one_report_late(tmp_path):
  tape = []

  class WatchedUpdates:
    """The updates, and a tape of what is asked of them and of their metrics."""

    def __init__(self, updates):
      self._updates = updates

    def burn_in(self, state, batch):
      return self._watch(self._updates.burn_in(state, batch))

    def codistill(self, state, batch, peers):
      return self._watch(self._updates.codistill(state, batch, peers))

    def _watch(self, result):
      state, metrics = result
      number = sum(event == 'dispatch' for event, _ in tape)
      tape.append(('dispatch', number))

      def ask():
        tape.append(('fetch', number))

      return state, {name: Watched(v, ask) for name, v in metrics.items()}

  def build_watched(config, member):
    experiment = build_cheaply(config, member)
    return dataclasses.replace(
      experiment, updates=WatchedUpdates(experiment.updates)
    )

  outcome = run_command(
    tmp_path,
    '--config.num_steps=10',
    '--config.eval_interval_steps=4',
    '--config.checkpoint_interval_steps=6',
    builder=build_watched,
  )
  assert outcome.status == 0
  fetched = [
    event for position, event in enumerate(tape) if event not in tape[:position]
  ]
  # Two reports a step; before evaluations at 4 and 8, the checkpoint at 6 and
  # the end at 10 there is nothing to wait for.
  caught_up = {2 * step - 1 for step in (4, 6, 8, 10)}
  expected = []
  for number in range(20):
    expected.append(('dispatch', number))
    if number and number - 1 not in caught_up:
      expected.append(('fetch', number - 1))
    if number in caught_up:
      expected.append(('fetch', number))
  assert fetched == expected
