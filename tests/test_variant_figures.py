"""Figures on images: one budget, transfer sets, a teacher's ages."""

import functools

import pytest
from collected import make_seeds, rows_in, table_of

from experiments import config as config_lib
from scripts.figures.catalog import FIGURES

APART = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40}
ALONE = {'codistill.members': 1}
LESS = {'optimizer.sgd.weight_decay_drop_at_steps': [10]}
DOUBLE = {'batch_size': 16, 'schedule.warmup_cosine.peak_rate': 0.2}
FROZEN = {'codistill.exchange': 'frozen', 'codistill.burn_in_steps': 0}
UNSEEN = {'data.train_split': 'train[50%:]'}
BOTH = 'top-1 (%) / cross-entropy (nats)'
GAIN = 'better than the baseline, seed for seed: top-1 (%)'
GAINS = f'{GAIN} / cross-entropy (nats)'
# Experiment, point, seeds, members, and 1 − accuracy at the end.
RUNS = (
  ('imagenet_sync', {}, 3, 1, 0.10),
  ('imagenet_equal_compute', {}, 2, 2, 0.20),
  ('imagenet_equal_compute', LESS, 1, 2, 0.15),
  ('imagenet_equal_compute', {'diversity.partition': 'own'}, 1, 2, 0.30),
  ('imagenet_equal_compute', APART, 1, 2, 0.24),
  ('imagenet_equal_compute', {**APART, **DOUBLE, **ALONE}, 1, 1, 0.40),
  ('imagenet_two_phase', {}, 1, 1, 0.35),
  ('imagenet_two_phase', UNSEEN, 1, 1, 0.25),
  ('imagenet_two_phase', {**UNSEEN, 'codistill.task_weight': 0.0}, 1, 1, 0.28),
  ('imagenet_two_phase', {'data.unlabelled_split': 'train[50%:]'}, 1, 1, 0.22),
  ('imagenet_two_phase', APART, 1, 1, 0.30),
  ('teacher_fit', {}, 2, 1, 0.35),
  ('teacher_fit', {'two_phase.num_steps': 10}, 1, 1, 0.25),
  ('teacher_fit', APART, 1, 1, 0.30),
)


def loss(seed, step, who, end):
  share = 0.5 if who == 'ensemble' else 1 + 0.1 * who
  return (end + 0.01 * seed) * (2 - step / 40) * share


def teachers(age):
  """The older, the better on what it has learnt from and the worse on other."""
  return {
    'num_steps': age,
    'train': {'accuracy': 0.5 + age / 80, 'task_loss': 1 - age / 40},
    'held_out': {'accuracy': 0.9 - age / 400, 'task_loss': 1 + age / 40},
  }


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp('variants')
  for number, (experiment, point, seeds, members, end) in enumerate(RUNS):
    keys = {'members': members, 'loss_of': functools.partial(loss, end=end)}
    two_phases = experiment in ('imagenet_two_phase', 'teacher_fit')
    if two_phases and 'codistill.exchange' not in point:
      keys['named'] = FROZEN | {'two_phase.num_steps': 40}
      keys['teachers'] = teachers(point.get('two_phase.num_steps', 40))
    make_seeds(folder / str(number), seeds, experiment, point, **keys)
  return rows_in(folder)


def firsts(lines, column):
  """The accuracies in a column that has losses, too."""
  return [line[column].split(' / ')[0] for line in lines]


def test_each_way_to_spend_a_budget_has_its_own_runs(rows):
  found = table_of('half_the_steps', rows)
  assert {label: line['runs'] for label, line in found.items()} == {
    'one, all of the steps': '3',
    'one with twice the batch': '1',
    'two codistil, same data': '2',
    'the same, less weight decay': '1',
    'two codistil, half of the data each': '1',
    'two that never meet, averaged': '1',
    'one of these': '1',
  }
  ends = dict(zip(found, firsts(found.values(), BOTH), strict=True))
  assert ends['one with twice the batch'] == '60.00'
  assert ends['the same, less weight decay'] == '85.00'
  # Seeds 0 and 1 are at 80 and 79, the baseline's at 90 and 89.
  assert found['two codistil, same data'][GAIN] == '−10.00 ± 0.00'
  # Member 1 is at 1.1 times the error of member 0.
  both = 'mean of both members: top-1 (%)'
  assert found['two codistil, half of the data each'][both] == '68.50'
  assert found['one with twice the batch'][both] == '–'
  # One of two that never meet is an ensemble's half.
  pair, one = 'two that never meet, averaged', 'one of these'
  assert (ends[pair], ends[one]) == ('88.00', '76.00')


def test_students_are_measured_against_one_without_a_teacher(rows):
  found = table_of('transfer', rows)
  alone = found.pop('no teacher')
  assert (alone[GAINS], alone['all steps']) == ('–', '40')
  gains = firsts(found.values(), GAINS)
  assert gains == ['−5.00', '+5.00', '+2.00', '+8.00']
  other = found['other images']
  assert other['all steps'] == '80'
  assert other['its teachers, mean of two: top-1 (%)'] == '80.00'


def test_a_teacher_s_ages_come_in_order_with_what_it_knew_then(rows):
  found = table_of('teacher_fit', rows)
  assert list(found) == ['10', '40', 'no teacher']
  assert [line['runs'] for line in found.values()] == ['1', '2', '1']
  known = firsts(found.values(), f'teacher, on its training set: {BOTH}')
  assert known == ['62.50', '100.00 ± 0.00', '–']
  assert firsts(found.values(), GAINS) == ['+5.00', '−5.00', '–']
  assert firsts([found['no teacher']], f'student: {BOTH}') == ['70.00']


def test_each_network_of_a_pair_is_shown_in_each_way_it_was_trained(tmp_path):
  def loss(seed, step, who, number):
    # Every end is another number.
    return number + (0.5 if who == 'ensemble' else 0.1 * who)

  named = {'codistill.member_models': ['large', 'small'], 'average_decay': 0.5}
  for number, point in enumerate(config_lib.points('mixed_members:laptop')):
    keys = {'members': point.get('codistill.members', 2), 'named': named}
    keys['loss_of'] = functools.partial(loss, number=number)
    make_seeds(tmp_path / str(number), 1, 'mixed_members', point, **keys)
  rows = rows_in(tmp_path)
  nats = 'cross-entropy (nats)'
  ends = f'{nats} / top-1 (%) / averaged: {nats}'
  lines = list(FIGURES['mixed_members'].lines(rows))
  numbers = [line[ends].split(' / ') for line in lines]
  # Averaged weights have half of the loss.
  assert all(float(last) == float(one) / 2 for one, _, last in numbers)
  assert lines[1][f'better than the baseline, seed for seed: {ends}'].endswith(
    ' / −0.5000'
  )
  assert [
    (line['network'], line['trained'], one)
    for line, (one, *_) in zip(lines, numbers, strict=True)
  ] == [
    ('small', 'alone', '1.1000'),
    ('small', 'with small', '2.1000'),
    ('small', 'with large', '0.1000'),
    ('small', 'with large, no burn-in', '5.1000'),
    ('small', 'with frozen large', '4.0000'),
    ('large', 'alone', '1.0000'),
    ('large', 'with large', '3.0000'),
    ('large', 'with small', '0.0000'),
    ('large', 'with small, no burn-in', '5.0000'),
  ]
  small, large = FIGURES['mixed_members'].panels(rows)[0]
  assert (len(small.content), len(large.content)) == (5, 4)
