"""Language models through the whole command: every arm, resumed exactly."""

import json
import signal

import jax
import numpy as np
import pytest
from commands import (
  assert_bit_for_bit,
  error_sentence,
  on_row,
  rows_of,
  run_command,
  stop_after,
)

from experiments import config as config_lib
from experiments.build import build
from experiments.record import read_run
from experiments.stored import load_teachers
from scripts import evaluate, export

SMALL = (
  '--config.num_steps=6',
  '--config.eval_interval_steps=3',
  '--config.checkpoint_interval_steps=100',
  # Shorter than the 512 tokens that a lane's memory_gap needs.
  '--config.data.max_test_tokens=1000',
)
RESETS = '--config.model.memory_reset_probability=0.5'
TWO_PHASES = (*SMALL, '--config.two_phase.num_steps=6')


@pytest.fixture(scope='module')
def two_phases(tmp_path_factory):
  """Nothing disturbed it: its workdir, and what was in memory at its end."""
  workdir = tmp_path_factory.mktemp('two_phases')
  outcome = run_command(workdir, *TWO_PHASES, config='lm_two_phase:smoke')
  assert outcome.status == 0
  return workdir, outcome


def kinds(rows, kind, member=0):
  return [r for r in rows if r['kind'] == kind and r['member'] == member]


def test_members_teach_each_other_and_every_held_out_token_counts(tmp_path):
  outcome = run_command(
    tmp_path,
    '--config.eval_interval_steps=8',
    # As below, so that compiled programs are shared.
    RESETS,
    config='lm_codistill:smoke',
  )
  assert outcome.status == 0
  rows = rows_of(tmp_path)
  for row in kinds(rows, 'train'):
    assert row['examples_seen'] == row['step'] * 8 * 8
    assert row['peers'] == ([1] if row['step'] > 3 else [])
  [final] = kinds(rows, 'final')
  # Untrained, but for a few steps.
  assert final['task_loss'] == pytest.approx(np.log(512), abs=0.2)
  # The network is fresh, and so is its memory.
  assert abs(final['memory_gap']) < 0.05
  [ensemble] = kinds(rows, 'final', 'ensemble')
  assert 'memory_gap' not in ensemble
  fingerprint = read_run(tmp_path / 'run.json')['data']['fingerprint']
  assert fingerprint == outcome.experiment.dataset.fingerprint


@pytest.mark.parametrize(
  ('config', 'arguments'),
  [
    ('lm_codistill:smoke', [RESETS]),
    (
      'lm_async:smoke',
      [
        '--config.codistill.members=2',
        '--config.codistill.exchange=memory',
        '--config.codistill.burn_in_steps=2',
        '--config.codistill.reload_interval_steps=2',
      ],
    ),
  ],
)
def test_carries_and_old_weights_resume_bit_for_bit(
  tmp_path, config, arguments
):
  arguments = (*SMALL, *arguments)
  whole = run_command(tmp_path / 'whole', *arguments, config=config)
  assert whole.status == 0
  with stop_after(4):
    status = run_command(tmp_path / 'half', *arguments, config=config).status
  assert status == 128 + signal.SIGTERM
  rest = run_command(tmp_path / 'half', *arguments, config=config)
  assert (rest.status, rest.trainer.start_step) == (0, 4)
  assert rows_of(tmp_path / 'half') == rows_of(tmp_path / 'whole')
  assert_bit_for_bit(rest, whole)


def test_a_fresh_student_learns_from_the_frozen_pair(two_phases):
  workdir, outcome = two_phases
  first, second = rows_of(workdir / 'ensemble'), rows_of(workdir)
  assert not any(row['peers'] for row in kinds(first, 'train'))
  assert {row['member'] for row in first} == {0, 1, 'ensemble'}
  assert {row['member'] for row in second} == {0}
  for row in kinds(second, 'train'):
    assert row['peers'] == [0, 1]
    # Always the same copies: older with every step of the student.
    assert row['peer_ages'] == [row['step'] - 1 - 6] * 2
    assert row['distill_loss'] > 0
  assert kinds(second, 'train')[0]['step'] == 1
  teachers, _ = load_teachers(workdir / 'ensemble', outcome.config.data)
  shown = outcome.experiment.exchange.freshest(0, 1)
  for one, other in zip(teachers, shown, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_teachers_of_another_architecture(tmp_path):
  teacher, student = tmp_path / 'teacher', tmp_path / 'student'
  arguments = ['--config.num_steps=2', '--config.eval_interval_steps=2']
  assert not run_command(
    teacher,
    *arguments,
    '--config.model.name=dnn',
    '--config.model.dnn.hidden=(5,)',
    config='imagenet_sync:smoke',
  ).status
  taught = [
    *arguments,
    '--config.codistill.exchange=frozen',
    f'--config.codistill.frozen_dir={teacher}',
    '--config.codistill.burn_in_steps=0',
  ]
  outcome = run_command(student, *taught, config='imagenet_sync:smoke')
  assert outcome.status == 0
  assert kinds(rows_of(student), 'train')[0]['distill_loss'] > 0
  # What the student descends is what that network says.
  [peer] = outcome.experiment.exchange.freshest(0, 1)
  assert peer.variables['params']['Dense_0']['kernel'].shape == (768, 5)


def test_teachers_of_other_data_are_one_sentence(two_phases, tmp_path, capfd):
  (workdir, _) = two_phases
  status = run_command(
    tmp_path,
    '--config.codistill.exchange=frozen',
    f'--config.codistill.frozen_dir={workdir / "ensemble"}',
    config='imagenet_sync:smoke',
  ).status
  assert status == 2
  assert 'whose kind is text, and here data.kind is images' in (
    capfd.readouterr().err
  )


def test_two_phases_go_on_from_wherever_they_stopped(two_phases, tmp_path):
  (whole, at_once), halves = two_phases, tmp_path / 'halves'
  for member in (1, 0):  # The ensemble has a member 1, the student has not.
    stop = on_row(
      lambda trainer: signal.raise_signal(signal.SIGTERM),
      step=3,
      member=member,
      kind='train',
      num_peers=2 * (member == 0),
    )
    with stop:
      status = run_command(
        halves, *TWO_PHASES, config='lm_two_phase:smoke'
      ).status
    assert status == 128 + signal.SIGTERM
  rest = run_command(halves, *TWO_PHASES, config='lm_two_phase:smoke')
  assert rest.status == 0
  assert rest.trainer.start_step > 0
  assert rows_of(halves) == rows_of(whole)
  assert rows_of(halves / 'ensemble') == rows_of(whole / 'ensemble')
  assert_bit_for_bit(rest, at_once)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--config.two_phase.num_steps=0'], 'say whom to learn from'),
    (['--config.codistill.frozen_dir=/nowhere'], '/nowhere holds no run'),
    (['--config.data.vocab_size=7'], 'has 512 pieces'),
    (['--config.data.name=prepared'], '--config.data.data_dir=DIR'),
    (['--config.data.kind=sound'], 'data.kind is'),
    (['--config.num_async_workers=0'], 'num_async_workers is 0'),
    (['--config.model.memory_reset_probability=2.0'], 'must be in [0, 1]'),
    (['--config.model.lstm.hidden_size=0'], 'model.lstm.hidden_size is 0'),
  ],
)
def test_what_makes_no_sense_is_one_sentence(arguments, said, tmp_path, capfd):
  status = run_command(
    tmp_path / 'run', *arguments, config='lm_two_phase:smoke'
  ).status
  assert status == 2
  assert said in error_sentence(capfd)


def test_an_unfinished_run_teaches_nobody(tmp_path, capfd):
  workdir = tmp_path / 'pair'
  with stop_after(2):
    run_command(workdir, *SMALL, config='lm_ensemble:smoke')
  status = run_command(
    tmp_path / 'student',
    f'--config.codistill.frozen_dir={workdir}',
    config='lm_two_phase:smoke',
  ).status
  assert status == 2
  assert 'learn from a finished run' in error_sentence(capfd)


def test_the_transformer_is_a_key_away(tmp_path):
  arguments = (
    *SMALL,
    '--config.num_steps=3',
    '--config.model.name=transformer',
  )
  assert run_command(tmp_path, *arguments, config='lm_sync:smoke').status == 0
  [final] = kinds(rows_of(tmp_path), 'final')
  assert 'memory_gap' not in final


def test_workers_of_asynchronous_sgd_read_lanes_of_their_own():
  config = config_lib.load('lm_async:smoke')
  config.num_devices = 1
  experiment = build(config, None)
  stream = experiment.batches(0, start=0)
  batches = [np.asarray(next(stream)['inputs']) for _ in range(9)]
  later = experiment.batches(0, start=5)
  np.testing.assert_array_equal(next(later)['inputs'], batches[5])
  # A worker's lane goes on in its next batch: the labels of one are the
  # inputs of the other.
  stream = experiment.batches(0, start=0)
  labels = [np.asarray(next(stream)['labels']) for _ in range(9)]
  for step in range(5):
    np.testing.assert_array_equal(labels[step][:, -1], batches[step + 4][:, 0])
    assert not np.array_equal(labels[step][:, -1], batches[step + 1][:, 0])


def test_a_language_model_is_scored_and_not_exported(tmp_path, capsys):
  workdir = tmp_path / 'run'
  arguments = (*SMALL, '--config.num_steps=3')
  assert run_command(workdir, *arguments, config='lm_sync:smoke').status == 0
  [final] = kinds(rows_of(workdir), 'final')
  scores = tmp_path / 'scores.json'
  assert evaluate.main([str(workdir), f'--json={scores}']) == 0
  found = json.loads(scores.read_text())['members']['0']
  assert found['task_loss'] == pytest.approx(final['task_loss'], rel=1e-5)
  assert evaluate.main([str(workdir), '--split=validation[:10%]']) == 1
  assert 'text has train and test' in capsys.readouterr().err
  out = tmp_path / 'out'
  assert export.main([str(workdir), '--member=0', f'--out={out}']) == 1
  assert 'only image classifiers are exported' in capsys.readouterr().err
