"""Language models through the whole command, resumed exactly."""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from commands import (
  DNN,
  ROOT,
  assert_bit_for_bit,
  error_sentence,
  rows_of,
  run_command,
  stop_command,
)
from in_process import complaint, run_script
from rebuilt import cheap_builds

from codistill.optim import averaged
from data.text import builtin
from data.text.dataset import TextSet
from experiments import config as config_lib
from experiments import run as run_lib
from experiments.build import build
from experiments.errors import UserError
from experiments.record import read_run
from experiments.stored import load_teachers
from experiments.workdir import Workdir, follow_workdir
from scripts import evaluate, export
from scripts import sample as sample_script

SMALL = (
  '--config.num_steps=6',
  '--config.eval_interval_steps=3',
  '--config.checkpoint_interval_steps=100',
  # One layer takes half as long to compile.
  '--config.model.lstm.num_layers=1',
  # A memory_gap needs lanes of more than 512 tokens: one of all 600.
  '--config.eval_batch_size=1',
)

cheap = pytest.fixture(scope='module', autouse=True)(cheap_builds)


@pytest.fixture(scope='module')
def short(short_text):
  return (*SMALL, f'--config.data.data_dir={short_text}')


@pytest.fixture(scope='module')
def two_phases(short, tmp_path_factory):
  """The workdir of a run that nothing disturbed, and its state at the end."""
  workdir = tmp_path_factory.mktemp('two_phases')
  arguments = (*short, '--config.two_phase.num_steps=6')
  outcome = run_command(workdir, *arguments, config='lm_two_phase:smoke')
  assert outcome.status == 0
  return arguments, workdir, outcome


def kinds(rows, kind, member=0):
  return [r for r in rows if r['kind'] == kind and r['member'] == member]


def test_carries_and_old_weights_resume_bit_for_bit(short, tmp_path):
  peers = ('members=2', 'exchange=memory', 'burn_in_steps=2')
  arguments = (*short, '--config.model.memory_reset_probability=0.5')
  for one in (*peers, 'reload_interval_steps=2'):
    arguments += (f'--config.codistill.{one}',)
  options = {'config': 'lm_async:smoke'}
  whole = run_command(tmp_path / 'whole', *arguments, **options)
  assert whole.status == 0
  stop_command(4, tmp_path / 'half', *arguments, **options)
  rest = run_command(tmp_path / 'half', *arguments, **options)
  assert (rest.status, rest.trainer.start_step) == (0, 4)
  assert rows_of(tmp_path / 'half') == rows_of(tmp_path / 'whole')
  assert_bit_for_bit(rest, whole)


def test_a_fresh_student_learns_from_the_frozen_pair(two_phases):
  _, workdir, outcome = two_phases
  first, second = rows_of(workdir / 'ensemble'), rows_of(workdir)
  assert not any(row['peers'] for row in kinds(first, 'train'))
  assert {row['member'] for row in first} == {0, 1, 'ensemble'}
  assert {row['member'] for row in second} == {0}
  for row in kinds(second, 'train'):
    assert row['peers'] == [0, 1]
    # The copies stay the same, so they get older with every step.
    assert row['peer_ages'] == [row['step'] - 1 - 6] * 2
    assert row['distill_loss'] > 0
  assert kinds(second, 'train')[0]['step'] == 1
  teachers, _ = load_teachers(workdir / 'ensemble', outcome.config.data)
  shown = outcome.experiment.exchange.freshest(0, 1)
  for one, other in zip(teachers, shown, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_teachers_of_another_architecture(tmp_path):
  name, eight = DNN
  short = (name, '--config.num_steps=2', '--config.eval_interval_steps=2')
  options = {'config': 'imagenet_sync:smoke'}
  teacher, student = tmp_path / 'teacher', tmp_path / 'student'
  five = '--config.model.dnn.hidden=(5,)'
  assert run_command(teacher, *short, five, **options).status == 0
  taught = (
    '--config.codistill.exchange=frozen',
    f'--config.codistill.frozen_dir={teacher}',
    '--config.codistill.burn_in_steps=0',
  )
  outcome = run_command(student, *short, eight, *taught, **options)
  assert outcome.status == 0
  assert kinds(rows_of(student), 'train')[0]['distill_loss'] > 0
  # The student descends the predictions of that network.
  [peer] = outcome.experiment.exchange.freshest(0, 1)
  assert peer.variables['params']['Dense_0']['kernel'].shape == (768, 5)


def test_runs_that_cannot_teach_are_one_sentence(two_phases, tmp_path, capfd):
  teachers = tmp_path / 'teachers'
  shutil.copytree(two_phases[1] / 'ensemble', teachers)
  run = read_run(teachers / 'run.json')
  frozen = (
    '--config.codistill.exchange=frozen',
    f'--config.codistill.frozen_dir={teachers}',
  )
  for student, status, said in (
    ('imagenet_sync', 'done', 'kind is text, and here data.kind is images'),
    ('lm_two_phase', 'interrupted', 'only a finished run can be opened'),
  ):
    (teachers / 'run.json').write_text(json.dumps({**run, 'status': status}))
    workdir, config = tmp_path / student, f'{student}:smoke'
    assert run_command(workdir, *frozen, config=config).status == 2
    assert said in error_sentence(capfd)


def test_two_phases_go_on_from_any_step(two_phases, tmp_path):
  (arguments, whole, at_once), halves = two_phases, tmp_path / 'halves'
  options = {'config': 'lm_two_phase:smoke'}
  # It stops in the first phase, and then in the second, after step 3 of both.
  stop_command(3, halves, *arguments, **options)
  stop_command(3, halves, *arguments, **options)
  rest = run_command(halves, *arguments, **options)
  assert rest.status == 0
  assert rest.trainer.start_step > 0
  assert rows_of(halves) == rows_of(whole)
  assert rows_of(halves / 'ensemble') == rows_of(whole / 'ensemble')
  assert_bit_for_bit(rest, at_once)


def test_what_makes_no_sense_is_one_sentence(tmp_path, capfd):
  for argument, said in (
    ('two_phase.num_steps=0', 'there is no teacher'),
    ('codistill.frozen_dir=/nowhere', '/nowhere holds no run'),
    ('data.vocab_size=7', 'has 512 pieces'),
    ('data.name=prepared', '--config.data.data_dir=DIR'),
    ('data.kind=sound', 'data.kind is'),
    ('num_async_workers=0', 'num_async_workers is 0'),
    ('model.memory_reset_probability=2.0', 'must be in [0, 1]'),
    ('model.lstm.hidden_size=0', 'model.lstm.hidden_size is 0'),
  ):
    options = {'config': 'lm_two_phase:smoke'}
    outcome = run_command(tmp_path, f'--config.{argument}', **options)
    assert outcome.status == 2, argument
    assert said in error_sentence(capfd)


def test_the_transformer_is_a_key_away(short, tmp_path, capsys):
  transformer = ('name=transformer', 'transformer.num_layers=1')
  arguments = [one for one in short if 'lstm' not in one]
  arguments.append('--config.num_steps=2')
  arguments += [f'--config.model.{one}' for one in transformer]
  arguments.append('--config.average_decay=0.5')
  outcome = run_command(tmp_path, *arguments, config='lm_sync:smoke')
  assert outcome.status == 0
  capsys.readouterr()
  [final] = kinds(rows_of(tmp_path), 'final')
  assert 'memory_gap' not in final
  # It has no memory, and is sampled from and exported all the same.
  assert run_script(sample_script, tmp_path, '--prompt=the', '--tokens=9') == 0
  shown = capsys.readouterr()
  assert shown.out.startswith('the')
  assert 'takes their running average' in shown.err
  [member] = outcome.trainer.members
  with mock.patch.object(sample_script, 'draw', return_value=()) as draw:
    assert run_script(sample_script, tmp_path, '--averaged') == 0
  mean = averaged(member.state.variables, member.state.opt_state)
  jax.tree.map(np.testing.assert_array_equal, draw.call_args.args[1], mean)
  assert capsys.readouterr().err == ''
  out = tmp_path / 'out'
  assert run_script(export, tmp_path, '--member=0', f'--out={out}') == 0
  predict = jax.export.deserialize((out / 'predict.bin').read_bytes())
  begin = jax.export.deserialize((out / 'memory.bin').read_bytes())
  tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
  memory = begin.call(tokens)
  assert jax.tree.leaves(memory) == []
  found, _ = jax.jit(predict.call)(member.state.variables, tokens, memory)
  model = outcome.experiment.networks[0].model
  expected, _ = model.predict(member.state.variables, tokens, ())
  expected = jax.nn.log_softmax(expected.logits)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_workers_of_asynchronous_sgd_read_lanes_of_their_own():
  config = config_lib.load('lm_async:smoke')
  config.num_devices = 1
  experiment = build(config, None)
  stream = experiment.batches(0, start=0)
  read = list(itertools.islice(stream, 9))
  batches, labels = (
    [np.asarray(batch[key]) for batch in read] for key in ('inputs', 'labels')
  )
  later = experiment.batches(0, start=5)
  np.testing.assert_array_equal(next(later)['inputs'], batches[5])
  # A worker's lane goes on in its next batch: the labels of one are the
  # inputs of the other.
  for step in range(5):
    np.testing.assert_array_equal(labels[step][:, -1], batches[step + 4][:, 0])
    assert not np.array_equal(labels[step][:, -1], batches[step + 1][:, 0])


def test_a_language_model_is_scored(two_phases, tmp_path, capsys):
  _, workdir, _ = two_phases
  [final] = kinds(rows_of(workdir), 'final')
  scores = tmp_path / 'scores.json'
  assert evaluate.main([str(workdir), f'--json={scores}']) == 0
  found = json.loads(scores.read_text())['members']['0']
  assert found['task_loss'] == pytest.approx(final['task_loss'], rel=1e-5)
  assert evaluate.main([str(workdir), '--split=validation[:10%]']) == 1
  assert 'these data have train and test' in capsys.readouterr().err


# Of each folder: its README's lines, and then the rest of the text.
_SERVE = """
import os, pathlib, re, sys, numpy
both = numpy.load('tokens.npy')
for folder in ('1', 'ensemble'):
  os.chdir(folder)
  tokens = both[:, :4]
  readme = pathlib.Path('README.md').read_text(encoding='utf-8')
  exec(re.search('```python\\n(.*?)```', readme, re.DOTALL)[1])
  rest, _ = predict(variables, both[:, 4:], memory)
  numpy.save('logits.npy', numpy.concatenate([logits, rest], 1))
  os.chdir('..')
ours = {'codistill', 'data', 'experiments', 'scripts', 'flax'}
assert not ours & {name.split('.')[0] for name in sys.modules}
"""


def test_teachers_of_other_pieces_are_refused(two_phases, monkeypatch):
  _, workdir, outcome = two_phases
  # As many pieces, but no two texts have the same.
  pieces = itertools.count()
  hashes = property(lambda _: str(next(pieces)))
  monkeypatch.setattr(TextSet, 'vocabulary', hashes)
  with pytest.raises(UserError, match='ensemble learnt other pieces; choose'):
    load_teachers(workdir / 'ensemble', outcome.config.data)


def test_what_is_exported_goes_on_with_a_text_without_this_project(
  two_phases, short_text, tmp_path, capsys
):
  _, workdir, outcome = two_phases
  for member in ('1', 'ensemble'):
    arguments = (workdir / 'ensemble', f'--member={member}')
    out = tmp_path / member
    assert run_script(export, *arguments, f'--out={out}') == 0
    assert {path.name for path in out.iterdir()} == {
      *('README.md', 'config.json', 'memory.bin', 'predict.bin', 'variables'),
      'tokenizer.model',
    }
  copied, there = (
    (folder / 'tokenizer.model').read_bytes() for folder in (out, short_text)
  )
  assert copied == there
  assert 'tokens`: int32 [batch, time]' in (out / 'README.md').read_text(
    'utf-8'
  )
  tokens = np.random.default_rng(0).integers(64, size=(3, 9), dtype=np.int32)
  np.save(tmp_path / 'tokens.npy', tokens)
  paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
  elsewhere = [path for path in paths if path and pathlib.Path(path) != ROOT]
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(elsewhere)}
  line = [sys.executable, '-c', _SERVE]
  subprocess.run(line, cwd=tmp_path, env=env, check=True)
  teachers, models = load_teachers(workdir / 'ensemble', outcome.config.data)
  model = models[0]
  each = [
    jax.nn.log_softmax(
      model.predict(one.variables, jnp.array(tokens), model.memory(3))[0].logits
    )
    for one in teachers
  ]
  mean = np.log(np.exp(each).mean(0))
  for name, expected in (('1', each[1]), ('ensemble', mean)):
    found = np.load(tmp_path / name / 'logits.npy')
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  # One that is alone is no ensemble.
  capsys.readouterr()
  command = (workdir, '--member=ensemble', f'--out={tmp_path / "new"}')
  assert 'export it with --member=0' in complaint(capsys, export, *command)


def test_a_text_is_continued(two_phases, tmp_path, capsys):
  _, workdir, _ = two_phases

  def sample(*arguments):
    command = (workdir, '--tokens=30', *arguments)
    assert run_script(sample_script, *command) == 0
    return capsys.readouterr().out

  said = sample('--prompt=the work')
  assert said.startswith('the work')
  assert len(said) > len('the work\n')
  assert sample('--prompt=the work', '--seed=1') != said
  assert sample('--tokens=0') == '\n'


def test_what_cannot_be_continued_is_one_sentence(
  two_phases, small, short_text, tmp_path, capsys
):
  _, workdir, _ = two_phases
  copy = shutil.copytree(short_text, tmp_path / 'text')
  run = read_run(workdir / 'run.json')
  moved = shutil.copytree(workdir, tmp_path / 'moved')
  run['config']['data']['data_dir'] = str(copy)
  (moved / 'run.json').write_text(json.dumps(run))
  for folder, argument, said in (
    (small.workdir, '--seed=0', 'is no language model: its data are images'),
    (tmp_path, '--seed=0', 'holds no run'),
    (workdir, '--member=7', 'there is no member 7'),
    (workdir, '--tokens=-1', '--tokens is -1; it must be at least 0'),
    (workdir, '--temperature=nan', '--temperature is nan'),
    (workdir, '--prompt=\udcff', 'surrogates not allowed'),
  ):
    assert said in complaint(capsys, sample_script, folder, argument)
  for another in (b'no model', builtin.TOKENIZER.read_bytes()):
    (copy / 'tokenizer.model').write_bytes(another)
    damaged = complaint(capsys, sample_script, moved)
    assert f'{copy / "tokenizer.model"} is gone or damaged' in damaged

  def export_without_it(name):
    out = tmp_path / name
    assert run_script(export, moved, '--member=0', f'--out={out}') == 0
    assert 'no tokenizer.model, because' in capsys.readouterr().out
    assert not (out / 'tokenizer.model').exists()

  export_without_it('out-damaged')
  manifest = json.loads((copy / 'manifest.json').read_text())
  (copy / 'manifest.json').write_text(
    json.dumps({**manifest, 'fingerprint': 'another'})
  )
  for script in (sample_script, evaluate):
    assert 'put back the data' in complaint(capsys, script, moved)
  shutil.rmtree(copy)
  gone = complaint(capsys, sample_script, moved)
  assert f'There is no prepared text in {copy}' in gone
  export_without_it('out')


def test_text_that_was_prepared_anew_is_not_gone_on_with(
  short, short_text, tmp_path, capfd
):
  folder = shutil.copytree(short_text, tmp_path / 'text')
  arguments = (*short, f'--config.data.data_dir={folder}')
  config = {'config': 'lm_sync:smoke'}
  stop_command(3, tmp_path / 'run', *arguments, **config)
  manifest = json.loads((folder / 'manifest.json').read_text())
  before = (tmp_path / 'run/run.json').read_bytes()
  manifest['fingerprint'] = 'another'
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  capfd.readouterr()
  assert run_command(tmp_path / 'run', *arguments, **config).status == 2
  assert 'began on data whose fingerprint is' in error_sentence(capfd)
  assert (tmp_path / 'run/run.json').read_bytes() == before
  # Nor may members that are jobs of their own differ in it.
  (tmp_path / 'run-1.json').write_bytes(before)
  first = follow_workdir(tmp_path, {}, member=0, resumes=False)
  first.check_data(json.loads(before)['data']['fingerprint'])
  with pytest.raises(UserError, match='another one; give it those'):
    first.check_data('another')


def test_members_that_begin_together_on_different_text_are_refused(
  short, tmp_path, monkeypatch, capfd
):
  write_run, others = Workdir.write_run, tmp_path / 'run-1.json'

  def write_beside_another(workdir, **changes):
    write_run(workdir, **changes)
    if 'data' in changes:
      other = {**workdir.run, 'member': 1, 'data': {'fingerprint': 'another'}}
      others.write_text(json.dumps(other))

  monkeypatch.setattr(Workdir, 'write_run', write_beside_another)
  arguments = (tmp_path, *short, '--member=0')
  assert run_command(*arguments, config='lm_codistill:smoke').status == 2
  assert 'remove run-1.json to begin anew' in error_sentence(capfd)
  # It learnt nothing, so its text stands in nobody's way.
  found = read_run(tmp_path / 'run-0.json')
  assert (found['status'], 'data' in found) == ('interrupted', False)


def test_processes_of_a_member_have_the_same_data(monkeypatch):
  data = types.SimpleNamespace(fingerprint='mine')
  workdir = mock.Mock()
  described = run_lib._describe_data(data, workdir)
  assert described == {'fingerprint': 'mine'}
  workdir.check_data.assert_called_once_with('mine')
  # Where the first has other data, and where another process has.
  for name, first in (('tell', 'another'), ('gather', np.array([[0], [1]]))):
    with monkeypatch.context() as patch:
      patch.setattr(run_lib.hosts, name, lambda _, first=first: first)
      with pytest.raises(UserError, match='this member have different data'):
        run_lib._describe_data(data, workdir)
