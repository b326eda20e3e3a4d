"""Distillation in two phases on images: transfer sets, and teachers' ages."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from commands import (
  DNN,
  assert_bit_for_bit,
  error_sentence,
  rows_of,
  run_command,
  stop_command,
)
from stand_ins import lease

from data.images.dataset import UNLABELLED
from experiments import config as config_lib
from experiments import results
from experiments.build import build
from experiments.errors import UserError
from experiments.record import Record, read_rows, read_run
from experiments.runs import fit_of, read_runs
from scripts import collect
from scripts.status import phase_of

SHORT = (
  *DNN,
  '--config.num_steps=4',
  '--config.two_phase.num_steps=4',
  '--config.eval_interval_steps=2',
)
UNSEEN = 'train[50%:]'


def kinds(rows, kind):
  return [row for row in rows if row['kind'] == kind]


@pytest.fixture(scope='module')
def student(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('student')
  outcome = run_command(
    workdir,
    *SHORT,
    f'--config.data.unlabelled_split={UNSEEN}',
    config='imagenet_two_phase:smoke',
  )
  assert outcome.status == 0
  return workdir, outcome


def test_a_student_is_nobody_s_twin(student):
  workdir, outcome = student
  seed = read_run(workdir / 'ensemble' / 'run.json')['seed']
  assert seed != outcome.experiment.seed
  # As many members as its teachers were.
  alike = {'networks': 2 * outcome.experiment.networks}
  first, *twins = (
    jax.tree.leaves(
      dataclasses.replace(outcome.experiment, seed=s, **alike)
      .init(member)
      .variables
    )
    for s, member in ((outcome.experiment.seed, 0), (seed, 0), (seed, 1))
  )
  for twin in twins:
    assert any(map(np.any, map(np.not_equal, first, twin)))


def test_examples_without_a_label_are_learnt_from_by_their_teachers(student):
  workdir, outcome = student
  # The teachers have learnt from their own split and from labels.
  data = read_run(workdir / 'ensemble' / 'run.json')['config']['data']
  assert data['train_split'] == 'train[:50%]'
  assert data['unlabelled_split'] is None
  dataset = outcome.experiment.dataset
  assert dataset.num_train > dataset.num_examples('train')
  batch = next(outcome.experiment.batches(0, 0))
  labels = np.asarray(batch['labels'])
  assert (labels == UNLABELLED).any()
  assert (labels != UNLABELLED).any()
  first = kinds(rows_of(workdir), 'train')[0]
  # At the start all classes are equally likely; φ is 0 for the others.
  known = (labels != UNLABELLED).mean()
  classes = outcome.config.data.num_classes
  assert first['task_loss'] == pytest.approx(known * np.log(classes), rel=0.05)
  assert first['distill_loss'] == pytest.approx(np.log(classes), rel=0.05)


def test_a_run_says_how_well_its_teachers_know_what_they_learnt(
  student, tmp_path
):
  workdir, _ = student
  fit = read_run(workdir / 'run.json')['teachers']
  assert fit == fit_of(workdir / 'ensemble')
  assert fit['num_steps'] == 4
  assert 0 < fit['seconds'] < 600
  rows = read_rows(workdir / 'ensemble' / 'rows.jsonl')
  finals = {row['member']: row for row in kinds(rows, 'final')}
  assert fit['held_out']['accuracy'] == pytest.approx(
    (finals[0]['accuracy'] + finals[1]['accuracy']) / 2
  )
  losses = [row['task_loss'] for row in kinds(rows, 'train')]
  assert len(losses) == 8  # Members have fewer than 20 rows, so all count.
  assert fit['train']['task_loss'] == pytest.approx(np.mean(losses))
  # Without rows nothing is known about them.
  shutil.copy(workdir / 'ensemble' / 'run.json', tmp_path)
  assert fit_of(tmp_path) is None


def test_a_first_phase_is_collected_with_its_student(student, tmp_path):
  workdir, _ = student
  written, refused = collect.collect(
    [workdir], tmp_path, allow=('dirty', 'no-commit'), replace=False
  )
  assert (list(written.values()), refused) == ([1], [])
  [path] = written
  [result] = results.read(path)
  assert result.point['data.unlabelled_split'] == UNSEEN
  assert result.run['teachers'] == fit_of(workdir / 'ensemble')


def test_a_first_phase_alone_is_no_result(student, tmp_path):
  workdir, _ = student
  half = tmp_path / 'half'
  (half / 'ensemble').mkdir(parents=True)
  for name in ('run.json', 'rows.jsonl'):
    shutil.copy(workdir / 'ensemble' / name, half / 'ensemble')

  def refusals():
    return collect.collect(
      [half], tmp_path, allow=('dirty', 'no-commit'), replace=False
    )

  written, [refused] = refusals()
  assert not written
  assert f'{half}/ensemble is left out: it is the first of two' in refused
  with pytest.raises(UserError, match='has only its first phase so far'):
    read_runs(half)
  # The second failed before it began.
  (half / 'log.txt').touch()
  written, [refused] = refusals()
  assert not written
  assert f'{half} is left out: it failed' in refused
  # The first is still at work, or was stopped.
  with lease(half / 'ensemble/lease.json'):
    assert 'it is at work' in refusals()[1][0]
  stopped = read_run(half / 'ensemble/run.json') | {'status': 'interrupted'}
  Record(half / 'ensemble').write_run(stopped)
  assert 'it has not finished its first phase; let' in refusals()[1][0]


def test_students_of_other_data_have_the_same_first_phase(student, tmp_path):
  workdir, _ = student
  shutil.copytree(workdir / 'ensemble', tmp_path / 'ensemble')
  outcome = run_command(
    tmp_path,
    *SHORT,
    f'--config.data.train_split={UNSEEN}',
    '--config.codistill.task_weight=0.0',
    config='imagenet_two_phase:smoke',
  )
  assert outcome.status == 0
  rows = (folder / 'ensemble' / 'rows.jsonl' for folder in (workdir, tmp_path))
  assert len({path.read_text() for path in rows}) == 1


def test_a_first_phase_has_no_ramps():
  config = config_lib.load('imagenet_two_phase:smoke')
  ramp = 'linear_ramp(num_steps=4)'
  config.codistill.task_schedule = config.codistill.distill_schedule = ramp
  build(config_lib.first_phase(config), None)


def test_a_schedule_is_as_long_as_the_longer_of_two_phases():
  config = config_lib.load('teacher_fit:smoke')
  schedule = config.schedule[config.schedule.name]
  for steps in (config.num_steps // 2, 3 * config.num_steps):
    config.two_phase.num_steps = steps
    first = config_lib.first_phase(config).schedule[config.schedule.name]
    assert first.num_steps == max(config.num_steps, steps)
  assert schedule.num_steps == config.num_steps


def test_a_younger_teacher_is_the_same_teacher_earlier(tmp_path):
  outcomes, rows = [], []
  for age in (2, 4):
    outcome = run_command(
      tmp_path / str(age),
      '--config.checkpoint_interval_steps=2',
      '--config.eval_interval_steps=2',
      '--config.two_phase.members=1',
      f'--config.two_phase.num_steps={age}',
      *DNN,
      '--config.two_phase.model=dnn',
      config='teacher_fit:smoke',
    )
    assert outcome.status == 0
    outcomes.append(outcome)
    steps = kinds(rows_of(tmp_path / str(age) / 'ensemble'), 'train')
    rows.append([row for row in steps if row['step'] <= 2])
  assert rows[0] == rows[1]
  assert len(rows[0]) == 2
  # The students differ, because their teachers do.
  with pytest.raises(AssertionError):
    assert_bit_for_bit(*outcomes)


def test_the_ages_of_a_teacher_end_with_its_whole_training():
  for variant in ('', ':reduced', ':laptop'):
    config = config_lib.load(f'teacher_fit{variant}')
    base, *ages, alone = config_lib.points(f'teacher_fit{variant}')
    assert base == {}
    assert config.two_phase.num_steps == config.num_steps
    steps = [age['two_phase.num_steps'] for age in ages]
    assert steps == sorted(steps, reverse=True)
    assert 0 < steps[-1] <= steps[0] == config.num_steps // 2
    assert alone['codistill.burn_in_steps'] == config.num_steps


def test_the_paper_s_pair_are_the_networks_it_names():
  config = config_lib.load('cifar100_offline')
  wide = config.model.wide_resnet
  config.two_phase.num_steps = 1
  assert config_lib.first_phase(config).model.name == 'wide_resnet'
  assert (wide.depth, wide.widening) == (28, 10)
  assert (config.model.name, config.model.resnet.depth) == ('resnet', 32)


def test_half_of_the_steps_are_half_of_the_whole_schedule():
  for variant in ('', ':reduced', ':laptop'):
    whole = config_lib.load(f'imagenet_codistill{variant}')
    half = config_lib.load(f'imagenet_equal_compute{variant}')
    # At the paper's scale the window of Figure 3 is longer than the schedule.
    steps = whole.num_steps if variant else 7_038
    assert half.num_steps == steps // 2
    assert half.codistill.burn_in_steps == whole.codistill.burn_in_steps // 2
    *_, twice = config_lib.points(f'imagenet_equal_compute{variant}')
    assert twice['batch_size'] == 2 * half.batch_size
    assert twice['codistill.burn_in_steps'] == half.num_steps
    if half.schedule.name == 'warmup_piecewise':
      drops = half.schedule.warmup_piecewise.drop_at_steps
      theirs = whole.schedule.warmup_piecewise.drop_at_steps
      assert drops == tuple(step // 2 for step in theirs)
    else:
      assert half.schedule.warmup_cosine.num_steps == half.num_steps


def test_a_teacher_is_as_it_was_at_its_end_or_none(student, tmp_path, capfd):
  workdir = shutil.copytree(student[0], tmp_path / 'student')
  stopped = {**read_run(workdir / 'run.json'), 'status': 'interrupted'}
  Record(workdir).write_run(stopped)
  newest = workdir / 'ensemble' / 'checkpoints' / '4'
  shutil.copytree(newest, newest.with_name('2'))
  shutil.rmtree(newest / 'state')
  config = 'imagenet_two_phase:smoke'
  unseen = f'--config.data.unlabelled_split={UNSEEN}'
  assert run_command(workdir, *SHORT, unseen, config=config).status == 2
  sentence = error_sentence(capfd)
  assert f'{newest} is damaged' in sentence
  assert 'after 2 of 4 updates; put back a copy' in sentence


def test_an_old_student_does_not_pass_for_that_of_new_teachers(
  student, tmp_path, capfd
):
  workdir = shutil.copytree(student[0], tmp_path / 'student')
  config = 'imagenet_two_phase:smoke'
  bad = ('--config.two_phase.train_split=train[:2', '--overwrite')
  assert run_command(workdir, *SHORT, *bad, config=config).status == 2
  assert (workdir / 'run.json').exists()
  # It is said to be at work on the teachers, and goes on with them.
  stop_command(2, workdir, *SHORT, '--overwrite', config=config)
  assert phase_of(workdir)[0] == workdir / 'ensemble'
  assert not (workdir / 'rows.jsonl').exists()


def test_what_makes_no_sense_is_one_sentence(tmp_path, capfd):
  for name, argument, said in (
    ('imagenet_sync', f'data.unlabelled_split={UNSEEN}', 'no teacher'),
    ('imagenet_local_sgd', f'data.unlabelled_split={UNSEEN}', 'no teacher'),
    ('lm_two_phase', 'two_phase.train_split=train', 'only images have splits'),
    ('imagenet_two_phase', 'two_phase.train_split=train[:2', "'train[:2'"),
  ):
    argument, config = f'--config.{argument}', f'{name}:smoke'
    assert run_command(tmp_path, argument, config=config).status == 2
    assert said in error_sentence(capfd)


def test_a_student_is_refused_before_its_teachers_are_trained(
  student, tmp_path, capfd
):
  workdir = tmp_path / 'run'

  def refusal(*arguments):
    config = 'imagenet_two_phase:smoke'
    assert run_command(workdir, *SHORT, *arguments, config=config).status == 2
    assert not (workdir / 'ensemble').exists()
    return error_sentence(capfd)

  assert 'evaluate_soup is True' in refusal('--config.evaluate_soup=True')
  split = '--config.data.unlabelled_split=trian'
  assert "'trian'" in refusal(split)
  assert not workdir.exists()
  with lease(workdir / 'lease.json'):
    assert 'another process is at work' in refusal('--overwrite')
  shutil.copy(student[0] / 'run.json', workdir)
  assert 'holds a run of another config' in refusal()


def test_a_student_goes_on_with_its_own_teachers(student, tmp_path, capfd):
  workdir = shutil.copytree(student[0], tmp_path / 'student')
  stopped = {**read_run(workdir / 'run.json'), 'status': 'interrupted'}
  Record(workdir).write_run(stopped)
  teachers = read_run(workdir / 'ensemble' / 'run.json')
  again = {**teachers, 'started': '2030-01-01T00:00:00+00:00'}
  Record(workdir / 'ensemble').write_run(again)
  arguments = (*SHORT, f'--config.data.unlabelled_split={UNSEEN}')
  config = 'imagenet_two_phase:smoke'
  assert run_command(workdir, *arguments, config=config).status == 2
  sentence = error_sentence(capfd)
  assert f'teachers that began on {teachers["started"]}' in sentence
  assert f'these began on {again["started"]}' in sentence
  assert read_run(workdir / 'run.json') == stopped
  # Without them it trains no others; once it has finished it needs none.
  shutil.rmtree(workdir / 'ensemble')
  assert run_command(workdir, *arguments, config=config).status == 2
  assert 'ensemble, which is gone; put it back' in error_sentence(capfd)
  Record(workdir).write_run({**stopped, 'status': 'done'})
  assert run_command(workdir, *arguments, config=config).status == 0
  assert not (workdir / 'ensemble').exists()
