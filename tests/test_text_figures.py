"""Figures of the language model: computing, batches, two phases, staleness."""

import dataclasses
import functools
import json

import pytest
from collected import (
  lines_of,
  make_run,
  make_seeds,
  panels_of,
  rows_in,
  split_table,
  table_of,
)

from experiments import config as config_lib
from scripts.figures import cost
from scripts.figures.arms import LM_ALONE, LM_CODISTILL, LM_SYNC, LM_TWO_PHASE
from scripts.figures.catalog import FIGURES

# Where a pair reaches the baseline's best, 4/50: linear between 30 and 40.
AT = 30 + 10 * (3.6 / 40 - 4 / 50) / (3.6 / 40 - 3.6 / 50)
# Text of 4 tokens a lane, 8 lanes a batch.
TOKENS = 32
ALIKE = {'diversity.partition': 'same'}
ASYNC = {'codistill.members': 1, 'codistill.exchange': 'none', **ALIKE}
APART = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40, **ALIKE}


def loss(step, who, scale):
  return (0.9 if who == 'ensemble' else 1.0) * scale * 4 / (step + 10)


LITTLE = {'data.max_train_tokens': 136_533}
WHOLE = {'data.max_document_tokens': 9}
FAST = {'schedule.constant.rate': 0.5}
LARGE = {'batch_size': 16}
TAUGHT = {'codistill.exchange': 'frozen', 'codistill.burn_in_steps': 0}
FROZEN = {**TAUGHT, 'two_phase.num_steps': 20}
WEIGHTS = {'codistill.task_weight': 0.9, 'codistill.distill_weight': 0.1}
UNTAUGHT = {'codistill.members': 1, 'codistill.burn_in_steps': 0}
SMOOTH = {**UNTAUGHT, 'codistill.teacher': 'uniform', **WEIGHTS}
STALE = {**ASYNC, 'num_async_workers': 8}
NARROW = {'model.lstm.hidden_size': 4}
FALLS = {'schedule.name': 'warmup_cosine'}
# Experiment, point, seeds, members, and its loss over that of one network.
RUNS = (
  ('lm_sync', {}, 3, 1, 1.0),
  ('lm_sync', LARGE, 1, 1, 0.8),
  ('lm_sync', {'batch_size': 4}, 1, 1, 1.2),
  ('lm_sync', {'schedule.constant.rate': 0.25}, 1, 1, 1.1),
  ('lm_codistill', {}, 3, 2, 0.9),
  ('lm_same_data', {}, 2, 2, 0.8),
  ('lm_ensemble', {'codistill.exchange': 'none'}, 1, 2, 1.0),
  ('lm_two_phase', FROZEN, 1, 1, 0.9),
  ('lm_regime', LARGE, 2, 2, 0.75),
  ('lm_regime', {**LARGE, **APART}, 2, 2, 0.8),
  ('lm_regime', LITTLE, 1, 2, 0.9),
  ('lm_regime', {**LITTLE, **APART}, 1, 2, 1.2),
  ('lm_regime', {**LITTLE, **ALIKE}, 1, 2, 0.7),
  ('lm_regime', {**LITTLE, **APART, **SMOOTH}, 1, 1, 1.1),
  ('lm_regime', WHOLE, 1, 2, 0.6),
  ('lm_regime', {**WHOLE, **APART}, 1, 2, 0.7),
  ('lm_regime', FAST, 1, 2, 0.88),
  ('lm_regime', {**FAST, **APART}, 1, 2, 0.98),
  ('lm_regime', {'codistill.distill_weight': 2.0}, 1, 2, 0.95),
  ('lm_regime', {'codistill.burn_in_steps': 20}, 1, 2, 0.97),
  ('lm_width', NARROW, 2, 2, 1.05),
  ('lm_width', {**NARROW, **APART}, 2, 2, 1.1),
  ('lm_width', {**NARROW, 'schedule.constant.rate': 1.0}, 1, 2, 0.5),
  ('lm_width', {**NARROW, **APART, 'schedule.constant.rate': 1.0}, 1, 2, 1.2),
  ('lm_average', {}, 2, 2, 0.9),
  ('lm_average', APART, 2, 2, 1.0),
  ('lm_average', {**APART, **FALLS}, 1, 2, 0.95),
  ('staleness_contrast', {'codistill.delay_steps': 6}, 1, 2, 0.9),
  ('staleness_contrast', {}, 2, 2, 0.85),
  ('staleness_contrast', STALE, 1, 1, 1.5),
  ('staleness_contrast', {**STALE, 'schedule.constant.rate': 0.125}, 1, 1, 1.3),
)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  for number, (experiment, point, seeds, members, scale) in enumerate(RUNS):
    keys = {'members': members, 'named': {'data.sequence_length': 4}}
    keys['named'] |= {'model.lstm.hidden_size': 8}
    if experiment == 'lm_average':
      keys['named']['average_decay'] = 0.5
    keys['loss'] = functools.partial(loss, scale=scale)
    if experiment in ('lm_ensemble', 'lm_same_data', 'lm_two_phase'):
      keys['named'] |= point
      point = {}
    make_seeds(folder / str(number), seeds, experiment, point, **keys)
  return rows_in(folder)


def test_an_update_costs_three_forward_passes_and_one_for_each_teacher(rows):
  [alone, *_], [pair, *_] = LM_SYNC.runs(rows), LM_CODISTILL.runs(rows)
  assert cost.trained_on(alone, 40) == 40 * TOKENS
  assert cost.forward_passes(alone, 40) == 3 * 40 * TOKENS
  assert cost.trained_on(pair, 40) == 2 * 40 * TOKENS
  # A burn-in of 10.
  assert cost.forward_passes(pair, 10) == 2 * 3 * 10 * TOKENS
  assert cost.forward_passes(pair, 40) == 2 * (3 * 40 + 30) * TOKENS
  # A first phase is paid for; two frozen teachers from the start.
  [student] = LM_TWO_PHASE.runs(rows)
  steps = 2 * 20 + 40
  assert cost.total_steps(student, 40) == 60
  assert cost.trained_on(student, 40) == steps * TOKENS
  assert cost.forward_passes(student, 40) == (3 * steps + 2 * 40) * TOKENS


def test_cost_of_a_level(rows):
  found = table_of('cost', rows)
  steps = 'steps to the baseline’s best'
  computing = 'computing to it, over the baseline’s'
  sync, pair = (found[arm.label] for arm in (LM_SYNC, LM_CODISTILL))
  wanted = ['40', '1.00', '0.0']
  assert [sync[key] for key in (steps, computing, 'tokens to it (M)')] == wanted
  assert pair[steps] == f'{AT:.0f}'
  assert pair[computing] == f'{2 * (3 * AT + AT - 10) / 120:.2f}'
  # The last row before it is of step 30: half a second a step.
  assert pair['seconds to it, as measured'] == f'{0.5 * AT:.0f}'
  assert found['synchronous SGD, half the batch'][steps] == 'not reached'


def test_equal_computing_is_where_twice_the_batch_ends(rows):
  found = table_of('equal_compute', rows)
  assert found['synchronous SGD, twice the batch']['step'] == '40'
  # 2 · 3 · 40 batches: two that codistil have 2 (3 · 30 + 20) at step 30.
  pair = found[LM_CODISTILL.label]
  assert pair['step'] == '30'
  assert pair['there: cross-entropy (nats)'].startswith(f'{3.6 / 40:.4f}')
  assert found['ensemble of two']['step'] == '40'
  alone = found['one of two that never meet']
  assert alone['networks served'] == '1'
  assert alone['there: cross-entropy (nats)'] == f'{4 / 50:.4f}'


def test_all_steps_of_two_phases_count(rows):
  found = table_of('two_phase', rows)
  student = found[LM_TWO_PHASE.label]
  assert student['steps of a first phase'] == '20'
  assert student['all steps to codistillation’s best'] == '60'
  assert int(student['all steps to the baseline’s best']) == 20 + round(AT)
  assert student['paper: all steps to 4.0 nats'] == '27,000'
  never = found[LM_SYNC.label]['all steps to codistillation’s best']
  assert never == 'not reached'


def test_batches_and_rates(rows):
  at_end, to_level = panels_of('batch', rows)
  wanted = ['learning rate 0.25', 'learning rate 0.5']
  assert list(lines_of(at_end)) == wanted
  # Where twice the batch is worth half of the steps: 40 at 8 lanes.
  [*_, ideal] = to_level.lines
  assert ideal.points == {4: [80], 8: [40], 16: [20]}
  _, *lines = split_table(FIGURES['batch'].table(rows, 'laptop'))
  found = {tuple(line[:2]): line[2:] for line in lines}
  at_half, at_less = [(size, '0.5') for size in ('4', '8', '16')], ('8', '0.25')
  assert list(found) == [at_half[0], at_less, *at_half[1:]]
  assert found['8', '0.5'][1:4:2] == ['40', '3']
  assert found['8', '0.25'][1] == 'not reached'
  assert int(found['16', '0.5'][1]) == 30


def test_delays_of_teachers_and_of_gradients_have_one_axis(rows):
  _, *lines = split_table(FIGURES['staleness_contrast'].table(rows, 'laptop'))
  assert [line[:2] for line in lines] == [
    ['synchronous SGD', '0'],
    ['stale teachers', '1'],
    ['stale teachers', '7'],
    ['stale gradients', '7'],
    ['stale gradients, a quarter of the rate', '7'],
  ]
  assert [line[4] for line in lines[-2:]] == ['0.5', '0.125']
  assert lines[1][5] == '2'
  oldest, at_end = map(lines_of, panels_of('staleness_contrast', rows))
  teachers = at_end['stale teachers']
  assert (list(teachers.points), teachers.seeds) == ([1, 7], 1)
  assert len(oldest) == 4


def test_where_codistillation_gains(rows):
  found = table_of('regime', rows)
  gains = 'codistillation gains'
  # Against the two that never meet on as much text, seed for seed: of the named
  # config one. A run ends at 4/50 of its scale.
  wanted = {
    'nothing': 0.1,
    'the same data for both': 0.2,
    'whole documents': 0.1,
    '16 lanes a batch': 0.05,
    '136,533 tokens of text': 0.3,
    '136,533 tokens of text, the same for both': 0.5,
    'learning rate 0.5': 0.1,
    'ψ weighs 2': 0.05,
    'burn-in of 20 steps': 0.03,
  }
  assert list(found) == list(wanted)
  for name, gain in wanted.items():
    seeds = f' ± {0:.4f}' if name == '16 lanes a batch' else ''
    assert found[name][gains] == f'+{gain * 4 / 50:.4f}{seeds}', name
  large = found['16 lanes a batch']
  assert large['the ensemble gains'] == f'+{0.08 * 4 / 50:.4f} ± {0:.4f}'
  together, _ = panels_of('regime', rows)
  assert [dots.label for dots in together.content] == list(found)
  # One a seed, condition by condition.
  numbers = [len(dots.values) for dots in together.content]
  assert numbers == [1, 1, 1, 2, 1, 1, 1, 1, 1]
  few = [run for run in rows['lm_regime'] if 'batch_size' in run.point]
  assert not FIGURES['regime'].panels({**rows, 'lm_regime': few})


def test_gains_over_widths_are_those_at_each_widths_own_rate(rows):
  found = table_of('width', rows)
  assert list(found) == ['2 × 4', '2 × 8']
  narrow, wide = found.values()
  # At twice the rate a pair ends lower still; but not two that are alone.
  assert narrow['learning rate, best alone'] == '0.5 (2 tried)'
  gain, _ = panels_of('width', rows)
  assert [list(line.points) for line in gain.lines] == [[4, 8]] * 2
  end = 4 / 50
  steps = 'steps to the best of one alone: alone / codistilled'
  for line, codistilled, ensemble, share, to_level in (
    (narrow, 0.05, 0.11, '45 %', '40 / 38'),
    (wide, 0.1, 0.1, '100 %', '40 / 36'),
  ):
    assert line['codistillation gains'].startswith(f'+{codistilled * end:.4f}')
    assert line['the ensemble gains'].startswith(f'+{ensemble * end:.4f}')
    assert line['share'] == share
    assert line[steps] == to_level
  assert not FIGURES['width'].panels({**rows, 'lm_width': []})


def test_averages_and_falling_rates_stand_beside_peers(rows):
  found = table_of('average', rows)
  alone, falls, pair = (
    found[name] for name in ('alone', 'alone, rate falls', 'codistilled')
  )
  losses = [f'{kind}: cross-entropy (nats)' for kind in ('one', 'ensemble')]
  one, ensemble = (name.replace(':', ', weights:') for name in losses)
  averaged = losses[0].replace(':', ', averaged:')
  gain = 'weights gain over alone, seed for seed'
  assert alone[one] == '0.0800 ± 0.0000'
  assert (alone[averaged], alone[ensemble]) == (
    '0.0400 ± 0.0000',
    '0.0720 ± 0.0000',
  )
  assert (falls[one], falls[gain], falls['runs']) == ('0.0760', '+0.0040', '1')
  assert pair[gain] == '+0.0080 ± 0.0000'
  assert alone[gain] == '–'
  # A line of dashes would look like a failure.
  assert len(found) == 3
  assert FIGURES['average'].table(rows, 'laptop').splitlines()[-1] == (
    'No finished runs yet: alone, twice the rate falls; codistilled, rate '
    'falls; codistilled, averages teach.'
  )
  assert not FIGURES['average'].panels({})
  # What other configs' runs are is taken from them, if they averaged.
  averaged_there = rows['lm_average']
  alone_there, falling, pair_there = (
    [run for run in averaged_there if run.point.items() == point.items()]
    for point in (APART, {**APART, **FALLS}, {})
  )
  assert not FIGURES['average'].panels({**rows, 'lm_average': falling})
  instead = {
    'lm_average': falling,
    'lm_ensemble': [
      dataclasses.replace(run, run={**run.run, 'overrides': {}})
      for run in alone_there
    ],
    'lm_codistill': pair_there,
  }
  assert table_of('average', instead).keys() == found.keys()
  assert table_of('average', instead)['alone'][one] == alone[one]
  assert table_of('average', instead)['codistilled'][gain] == pair[gain]


def test_a_network_alone_is_the_one_with_more_seeds(rows):
  # One of lm_ensemble, three of lm_sync; of as many the former's, in the mean.
  for instead, config in ((3, 'lm_sync'), (1, 'lm_ensemble')):
    some = {**rows, 'lm_sync': rows['lm_sync'][:instead]}
    runs = LM_ALONE.runs(some)
    assert {run.run['experiment'] for run in runs} == {config}
    assert len(runs) == instead


def test_the_arms_of_figure_2_where_one_network_over_fits(rows):
  found = table_of('over_fitting', rows)
  gain = 'better than the baseline, seed for seed: cross-entropy (nats)'
  assert {name: line[gain] for name, line in found.items()} == {
    'synchronous SGD': '–',
    'label smoothing, uniform, 0.1': f'+{0.1 * 4 / 50:.4f}',
    'codistilled, partitioned data': f'+{0.3 * 4 / 50:.4f}',
    'codistilled, same data': f'+{0.5 * 4 / 50:.4f}',
    'ensemble of two': f'+{0.12 * 4 / 50:.4f}',
  }


def test_rivals_are_drawn_by_what_a_member_sends(tmp_path):
  never = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40}
  local, diloco = (
    {'codistill.method': method} for method in ('local_sgd', 'diloco')
  )
  often = {'codistill.reload_interval_steps': 10}
  int8 = {'codistill.publish_precision': 'int8'}
  tuned = {'codistill.outer_learning_rate': 0.4}
  for number, (point, members, sent, end) in enumerate(
    (
      (never, 2, 0, 1.0),
      ({**never, 'codistill.members': 1, 'batch_size': 16}, 1, 0, 0.5),
      # A network of 1,000 bytes, at 0, 10, 20, 30 and 40.
      (often, 2, 5_000, 0.9),
      ({}, 2, 1_000, 0.95),
      (local | often, 2, 5_000, 0.7),
      (local, 2, 1_000, 0.75),
      (diloco | often | tuned, 2, 5_000, 0.6),
      (diloco | often | int8, 2, 1_500, 0.65),
    )
  ):
    where = tmp_path / str(number)
    named = {'codistill.publish_precision': 'float32'}
    named |= {'codistill.method': 'codistillation'}
    named |= {'codistill.group_size': None, 'codistill.burn_in_steps': 20}
    keys = {'members': members, 'loss': functools.partial(loss, scale=end)}
    workdir = make_run(where, 'lm_rivals', point, **keys, named=named)
    for member in range(members) if sent else ():
      event = {'kind': 'exchange', 'event': 'publish', 'bytes': sent}
      with open(workdir / 'rows.jsonl', 'a') as rows:
        rows.write(json.dumps({'step': 40, 'member': member, **event}) + '\n')
  rows = rows_in(tmp_path)
  panel, computing = panels_of('rivals', rows)
  ends = {
    name: {x: pytest.approx(y[0]) for x, y in line.points.items()}
    for name, line in lines_of(panel).items()
  }
  assert ends == {
    'codistillation': {0.025: 4 * 0.95 / 50, 0.125: 4 * 0.9 / 50},
    'local SGD': {0.025: 4 * 0.75 / 50, 0.125: 4 * 0.7 / 50},
    'DiLoCo': {0.125: 4 * 0.6 / 50},
    'DiLoCo, int8': {0.0375: 4 * 0.65 / 50},
    'synchronous SGD, twice the batch': {1.0: 4 * 0.5 / 50},
    'members that never meet': dict.fromkeys((0.025, 0.125), 4 / 50),
    'ensemble of two that never meet': dict.fromkeys((0.025, 0.125), 3.6 / 50),
  }
  # Three forward passes a token, for both; a fourth while ψ is on.
  passes = {
    name: max(line.points) * 1e6 / (2 * 40 * 8)
    for name, line in lines_of(computing).items()
  }
  assert passes == {
    'members that never meet': 3,
    'synchronous SGD, twice the batch': 3,
    'codistillation': 3.5,
    'local SGD': 3,
  }
  table = FIGURES['rivals'].table(rows, 'laptop')
  _, *lines = split_table(table)
  assert len(lines) == 8
  gain = f'+{0.35 * 4 / 50:.4f}'
  assert ['DiLoCo, int8', '10', '0.04', '1.00', '0.0520', gain, '0.0468'] in [
    line[:7] for line in lines
  ]
  assert not FIGURES['rivals'].panels({})


def test_each_choice_of_psi_is_beside_members_that_never_meet(tmp_path):
  choices = config_lib.points('psi_choices:laptop')
  apart = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40}
  apart |= {'schedule.constant.rate': 0.008}
  for number, point in enumerate((apart, {}, *choices)):
    config = 'psi_choices' if number > 1 else 'lm_rivals'

    def loss(seed, step, who, end=1 - 0.05 * number):
      return end

    make_seeds(tmp_path / str(number), 1, config, point, loss_of=loss)
  rows = rows_in(tmp_path)
  lines = list(FIGURES['psi_choices'].lines(rows))
  assert [line['runs'] for line in lines] == ['1'] * (2 + len(choices))
  gain = 'better than the baseline, seed for seed: cross-entropy (nats)'
  # Choices are shown in the order of the sweep.
  assert [line[gain] for line in lines] == [
    '–',
    *(f'+{0.05 * number:.4f}' for number in range(1, len(lines))),
  ]
  [[panel]] = FIGURES['psi_choices'].panels(rows)
  assert len(panel.content) == len(lines)
  assert not FIGURES['psi_choices'].panels({})


def test_what_a_fault_costs_is_beside_members_that_are_well(tmp_path):
  never = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40}
  local, dead = {'codistill.method': 'local_sgd'}, {'fault.kind': 'death'}
  slow = {'fault.kind': 'slow', 'codistill.exchange': 'checkpoints'}
  forgets = {'codistill.max_age_steps': 10}
  named = {
    'codistill.method': 'codistillation',
    'codistill.publish_precision': 'float32',
    'fault.kind': 'none',
  }
  for number, (config, point) in enumerate(
    (
      ('lm_rivals', never),
      ('lm_rivals', {}),
      ('lm_rivals_faults', dead),
      ('lm_rivals_faults', dead | forgets),
      ('lm_rivals', local),
      ('lm_rivals_faults', local | slow),
      # Every 10 steps instead of 50, and none of the table.
      ('lm_rivals', {'codistill.reload_interval_steps': 10}),
    )
  ):

    def loss(seed, step, who, end=1 - 0.05 * number):
      return end + seed if who == 0 else 5

    keys = {'named': named, 'loss_of': loss}
    make_seeds(tmp_path / str(number), 2, config, point, **keys)
  rows = rows_in(tmp_path)
  lines = list(FIGURES['rivals_faults'].lines(rows))
  assert [[*line.values()][:3] for line in lines] == [
    ['members that never meet', '1.5000 ± 0.5000', '–'],
    ['codistillation, well', '1.4500 ± 0.5000', '+0.0500 ± 0.0000'],
    ['codistillation, dies half-way', '1.4000 ± 0.5000', '+0.1000 ± 0.0000'],
    [
      'codistillation, dies half-way, old weights are left out',
      *('1.3500 ± 0.5000', '+0.1500 ± 0.0000'),
    ],
    ['local SGD, well', '1.3000 ± 0.5000', '+0.2000 ± 0.0000'],
    ['local SGD, ten times slower', '1.2500 ± 0.5000', '+0.2500 ± 0.0000'],
  ]
  [[panel]] = FIGURES['rivals_faults'].panels(rows)
  assert len(panel.content) == len(lines)
  # Nothing is compared with the first that happens to have rows.
  faults = {'lm_rivals_faults': rows['lm_rivals_faults']}
  gain = 'better than the baseline, seed for seed: cross-entropy (nats)'
  alone = FIGURES['rivals_faults'].lines(faults)
  assert {line[gain] for line in alone} == {'–'}
  assert not FIGURES['rivals_faults'].panels({'lm_rivals': rows['lm_rivals']})


def test_more_members_are_beside_as_many_that_never_meet(tmp_path):
  never = {'codistill.exchange': 'none', 'codistill.burn_in_steps': 40}
  local = {'codistill.method': 'local_sgd'}
  pairs = {'codistill.group_size': 2}
  named = {
    'codistill.method': 'codistillation',
    'codistill.publish_precision': 'float32',
    'codistill.topology': 'all',
    'codistill.group_size': None,
  }
  four = {'codistill.members': 4}
  for number, (config, members, point) in enumerate(
    (
      ('lm_rivals', 2, never),
      ('lm_rivals', 1, never | {'codistill.members': 1, 'batch_size': 16}),
      ('lm_rivals', 2, {}),
      ('lm_rivals', 2, local),
      ('lm_rivals_members', 4, four | never),
      (
        'lm_rivals_members',
        1,
        never | {'codistill.members': 1, 'batch_size': 32},
      ),
      ('lm_rivals_members', 4, four),
      ('lm_rivals_members', 4, four | {'codistill.topology': 'ring'}),
      ('lm_rivals_members', 4, four | local),
      ('lm_rivals_members', 4, four | local | pairs),
    )
  ):
    keys = {'members': members, 'named': named}
    keys['loss'] = lambda step, who, end=1 - 0.05 * number: end
    make_run(tmp_path / str(number), config, point, **keys)
  rows = rows_in(tmp_path)
  lines = list(FIGURES['rivals_members'].lines(rows))
  # Of 30 of 40 steps a peer costs a forward pass, where an update costs three.
  taught = 30 / 40 / 3
  assert [[*line.values()][:5] for line in lines] == [
    ['2', 'members that never meet', '1.00', '1.0000', '–'],
    [
      *('2', 'one network, so many times the batch'),
      *('1.00', '0.9500', '+0.0500'),
    ],
    [
      *('2', 'codistillation, all teach all'),
      *(f'{1 + taught:.2f}', '0.9000', '+0.1000'),
    ],
    ['2', 'local SGD', '1.00', '0.8500', '+0.1500'],
    ['4', 'members that never meet', '1.00', '0.8000', '–'],
    [
      *('4', 'one network, so many times the batch'),
      *('1.00', '0.7500', '+0.0500'),
    ],
    [
      *('4', 'codistillation, all teach all'),
      *(f'{1 + 3 * taught:.2f}', '0.7000', '+0.1000'),
    ],
    [
      *('4', 'codistillation in a ring'),
      *(f'{1 + taught:.2f}', '0.6500', '+0.1500'),
    ],
    ['4', 'local SGD', '1.00', '0.6000', '+0.2000'],
    [
      *('4', 'local SGD in pairs that codistil'),
      *(f'{1 + taught:.2f}', '0.5500', '+0.2500'),
    ],
  ]
  [[panel]] = FIGURES['rivals_members'].panels(rows)
  ends = {name: line.points for name, line in lines_of(panel).items()}
  assert ends['local SGD'] == {
    2: [pytest.approx(0.85)],
    4: [pytest.approx(0.6)],
  }
  assert not FIGURES['rivals_members'].panels({'lm_rivals': rows['lm_rivals']})
