"""Scores of a stored run: the same numbers again, and nothing touched."""

import contextlib
import json
import math
import shutil
from unittest import mock

import pytest
from commands import DNN, contents, on_row, run_command
from in_process import complaint, run_script
from rebuilt import cheap_builds, ruin

from codistill.exchange.folder.lease import Lease
from codistill.storage import checkpoint
from codistill.storage.step_folders import UnreadableError
from experiments import config as configs
from experiments import stored
from experiments.errors import UserError
from experiments.record import read_rows, read_run
from scripts import evaluate

cheap = pytest.fixture(scope='module', autouse=True)(cheap_builds)


@pytest.fixture(scope='module')
def apart(tmp_path_factory):
  """Two members that ran one after the other and met in a folder."""
  workdir = tmp_path_factory.mktemp('apart')
  for member in (0, 1):
    assert run_command(workdir, f'--member={member}', *DNN).status == 0
  return workdir


@pytest.fixture
def copy(apart, tmp_path):
  return shutil.copytree(apart, tmp_path / 'copy')


def numbers_of(workdir, *arguments):
  """The JSON that the command writes."""
  file = workdir.parent / 'numbers.json'
  assert run_script(evaluate, workdir, f'--json={file}', *arguments) == 0
  return json.loads(file.read_text())


def final_rows(workdir):
  return {
    str(row['member']): row
    for path in workdir.glob('rows*.jsonl')
    for row in read_rows(path)
    if row['kind'] == 'final'
  }


def scores(rows_or_numbers):
  keys = ('step', 'accuracy', 'task_loss')
  return {
    who: tuple(one[key] for key in keys)
    for who, one in rows_or_numbers.items()
    if who != 'ensemble'
  }


def test_members_and_ensemble_score_what_they_scored_at_the_end(small, capsys):
  found = numbers_of(small.workdir)
  final = final_rows(small.workdir)
  assert scores(found['members']) == scores(final)
  assert (found['num_examples'], found['left_out']) == (32, {})
  both = {name: final['ensemble'][name] for name in ('accuracy', 'task_loss')}
  assert found['ensemble'] == both
  assert found['disagreement'] == final['ensemble']['disagreement']
  assert 0 < found['total_variation'] < 1
  shown = capsys.readouterr().out
  for who, row in final.items():
    [line] = [one for one in shown.splitlines() if one.split()[:1] == [who]]
    assert line.split()[1] == '10'
    assert f'{100 * row["accuracy"]:.2f} %' in line
    assert f'{row["task_loss"]:.4f}' in line
  assert f'{found["total_variation"]:.4f}' in line


def test_members_of_several_processes_are_one_table(apart, capsys):
  found = numbers_of(apart)
  assert scores(found['members']) == scores(final_rows(apart))
  assert found['ensemble'] is not None
  assert 'ensemble' in capsys.readouterr().out
  # One member alone.
  found = numbers_of(apart, '--member', '1')
  assert found['members'].keys() == {'1'}
  for name in ('ensemble', 'disagreement', 'total_variation'):
    assert found[name] is None
  assert 'ensemble' not in capsys.readouterr().out


def test_nothing_is_changed_where_jobs_are_at_work(copy, capsys):
  half = copy / 'checkpoints-0' / '9.orbax-checkpoint-tmp'
  (half / 'states').mkdir(parents=True)
  (half / 'states' / 'part').write_text('being written')
  # Members may be at different steps.
  shutil.rmtree(copy / 'checkpoints-1' / '8')
  with contextlib.ExitStack() as stack:
    for path in (copy / 'lease-0.json', copy / 'exchange/0/lease.json'):
      lease = Lease(path, timeout_s=60.0, what='here')
      lease.acquire()
      stack.callback(lease.release)
    before = contents(copy), sorted(copy.rglob('*'))
    found = numbers_of(copy)
    assert (contents(copy), sorted(copy.rglob('*'))) == before
  steps = {who: one['step'] for who, one in found['members'].items()}
  assert steps == {'0': 8, '1': 4}
  assert 'ensemble  4 to 8' in capsys.readouterr().out


def test_a_member_without_a_checkpoint_is_left_out(copy, capsys):
  shutil.rmtree(copy / 'checkpoints-0')
  found = numbers_of(copy)
  assert found['members'].keys() == {'1'}
  said = 'member 0 has no checkpoint yet'
  assert found['left_out'] == {'0': said}
  assert capsys.readouterr().err == f'scripts.evaluate: {said}; left out\n'
  assert not (copy / 'checkpoints-0').exists()
  # It need not have begun, either.
  for path in (*copy.glob('*-0.json*'), *copy.glob('*-0')):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert numbers_of(copy)['left_out'] == {'0': said}
  assert said in complaint(capsys, evaluate, copy, '--member', '0')
  # Of a damaged checkpoint, the one before counts; without any it is an error.
  shutil.rmtree(copy / 'checkpoints-1' / '8' / 'state')
  assert numbers_of(copy)['members']['1']['step'] == 4
  said = capsys.readouterr().err
  assert f'{copy / "checkpoints-1" / "8"} is damaged' in said
  assert 'taking that of step 4' in said
  shutil.rmtree(copy / 'checkpoints-1' / '4' / 'state')
  damaged = complaint(capsys, evaluate, copy)
  assert f'no checkpoint in {copy / "checkpoints-1"} can be read' in damaged
  assert read_run(copy / 'run-1.json')['commit'][:12] in damaged
  shutil.rmtree(copy / 'checkpoints-1')
  assert f'nothing to evaluate in {copy}' in complaint(capsys, evaluate, copy)


def test_a_member_that_has_diverged_is_left_out(tmp_path, capsys):
  with on_row(ruin(1), step=3, member=0, kind='train'):
    assert run_command(tmp_path / 'run', *DNN).status == 1
  found = numbers_of(tmp_path / 'run')
  assert found['members'].keys() == {'0'}
  assert math.isfinite(found['members']['0']['task_loss'])
  assert 'member 1 has diverged; left out' in capsys.readouterr().err


def test_the_training_split_is_all_of_it(apart):
  found = numbers_of(apart, '--split=train')
  assert (found['num_examples'], found['split']) == (512, 'train')
  assert scores(found['members']) != scores(final_rows(apart))
  # The set interprets any other split.
  assert numbers_of(apart, '--split=train[:100]')['num_examples'] == 100


def test_what_makes_no_sense_is_one_sentence(apart, tmp_path, capsys):
  nowhere = tmp_path / 'none' / 'file'
  no_two = 'there is no member 2: this run has 2, numbered from 0'
  for sentence, *arguments in (
    (f'{tmp_path} holds no run', tmp_path),
    (no_two, apart, '--member', '0', '2'),
    ('its average_decay is 0; leave out --averaged', apart, '--averaged'),
    (f'{nowhere.parent} is not a folder', apart, f'--json={nowhere}'),
    ("train and validation, no 'holdout'", apart, '--split=holdout'),
  ):
    assert sentence in complaint(capsys, evaluate, *arguments)


def test_a_run_of_more_devices_than_there_are_here(copy):
  for path in copy.glob('run-*.json'):
    run = read_run(path)
    # Its batches divide among four of the eight devices here.
    run['config'] |= {'num_devices': 4_096, 'eval_batch_size': 36}
    path.write_text(json.dumps(run))
  found = numbers_of(copy)
  assert found['num_examples'] == 32
  for member, (step, accuracy, loss) in scores(final_rows(copy)).items():
    near = {'accuracy': accuracy, 'task_loss': pytest.approx(loss, rel=1e-5)}
    assert found['members'][member] == {'step': step, **near}


def test_the_config_is_the_runs_and_not_todays(small):
  runs = evaluate.read_runs(small.workdir)
  config = runs[None]['config']
  assert config['num_steps'] == 10  # The named config has 8.
  config['a_key_of_former_days'] = 17
  del config['data']['padding']
  experiment = evaluate.rebuild(runs)
  assert experiment.num_steps == 10
  assert experiment.task.padding == 1
  assert isinstance(experiment.task.image_shape, tuple)


def test_what_a_run_had_to_train_with_is_not_needed_to_look_at_it(small):
  runs = evaluate.read_runs(small.workdir)
  # A slow member has a process of its own; here are both of them.
  config = runs[None]['config']
  config['fault'] = {'kind': 'slow', 'member': 1, 'step': 1}
  # All devices that there were: parts of its batch divide among no more.
  config |= {'num_devices': None, 'num_microbatches': 16}
  assert runs[None]['device']['count'] == 1
  assert evaluate.rebuild(runs).mesh.size == 1


def test_clicks_have_no_other_splits(small):
  runs = evaluate.read_runs(small.workdir)
  run = dict(runs[None], experiment='criteo_codistill', variant='smoke')
  run['config'] = configs.load('criteo_codistill:smoke').to_dict()
  with pytest.raises(UserError, match='these data have train and test'):
    evaluate.rebuild({None: run}, eval_split='foo')


def test_a_member_that_died_has_not_diverged(small):
  runs = evaluate.read_runs(small.workdir)
  runs[None]['config']['fault'] = {'kind': 'death', 'member': 1, 'step': 5}
  experiment = evaluate.rebuild(runs)
  real = stored.read_newest

  def read_newest(*arguments):
    found = real(*arguments)
    found.extra['active'].remove(1)
    return found

  with mock.patch.object(stored, 'read_newest', read_newest):
    there, missing = stored.load_members(
      small.workdir, runs, experiment, [0, 1], print
    )
  assert (there.keys(), missing) == ({0}, {1: 'member 1 has died'})


def test_a_checkpoint_that_goes_meanwhile_is_not_believed(copy, monkeypatch):
  real, read = checkpoint._load, []

  def load(path, step, *rest):
    read.append(step)
    if len(read) == 3:
      return real(path, step, *rest)
    restored = real(path, step, *rest) if len(read) == 2 else None
    # The job is faster: it writes two newer ones, and removes this one.
    for newer in (step + 4, step + 8):
      shutil.copytree(path, path.with_name(str(newer)))
    shutil.rmtree(path)
    if restored is None:
      raise UnreadableError(path)
    return restored._replace(states={})

  monkeypatch.setattr(checkpoint, '_load', load)
  found = numbers_of(copy, '--member', '0')
  assert read == [8, 16, 24]
  assert found['members']['0']['step'] == 24
