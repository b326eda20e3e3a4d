"""Figures and tables from rows: the right numbers, the same bytes, no jax."""

import dataclasses
import itertools
import pathlib
import re
import statistics

import matplotlib.pyplot as plt
import pytest
from collected import (
  cells,
  lines_of,
  make_all,
  make_retrains,
  panels_of,
  rows_in,
  table_of,
)
from in_process import complaint

from experiments import results
from scripts import markdown
from scripts.figures import __main__ as figures
from scripts.figures import arms, draw
from scripts.figures.catalog import FIGURES
from scripts.figures.curves import Curves
from scripts.figures.figure import COMMAND, command, hours_table
from scripts.figures.metric import LOSS, MEMBERS, TOP_1, crossing, together
from scripts.figures.panel import Dots, Line, Panel

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module', autouse=True)
def no_pixels():
  """No PNG, at which no test looks."""
  save = plt.Figure.savefig

  def savefig(self, path, **keywords):
    if keywords['format'] == 'svg':
      save(self, path, **keywords)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plt.Figure, 'savefig', savefig)
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return make_all(tmp_path_factory.mktemp('collected'))


@pytest.fixture(scope='module')
def rows(folder):
  return results.read_folder(folder, 'laptop')


def test_the_papers_headline_and_table_1_come_out_of_it():
  # 4.040 nats at 14.3K steps, and 6.8K steps to it when codistilled.
  table = cells(FIGURES['fig2a'].table({}, 'reduced'))
  column = 'paper: at the end / steps to its baseline’s best'
  assert table['synchronous SGD'][column] == '4.04 / 14,326'
  assert table['codistilled, partitioned data'][column] == '3.912 / 6,820'
  assert table['label smoothing, uniform'][column] == '4.067 / not reached'
  # 75 % top-1 at step 5,250.
  table = cells(FIGURES['fig3'].table({}, 'reduced'))
  assert table['two-way codistilled'][column] == '75.596 / 5,271'
  assert table['synchronous SGD, twice the batch'][column].endswith('reached')
  table = cells(FIGURES['table1'].table({}, 'reduced'))
  [paper] = [key for key in table['DNN'] if key.startswith('paper')]
  assert table['DNN'][paper].endswith(' / 0.029 ± 0.001')
  assert table['two-way codistilled DNN'][paper].endswith(' / 0.019 ± 0.002')
  ensemble = table['ensemble of two DNNs'][paper]
  assert ensemble == '0.4461 ± 0.0002 / 0.022 ± 0.002'


def test_hours_are_steps_times_the_papers_seconds():
  timed = ((arms.LM_HALF, 4), (arms.LM_SYNC, 4.55), (arms.LM_DOUBLE, 10))
  for arm, seconds in timed:
    assert arm.seconds_per_step == seconds
    steps, hours = (arm.paper_curve([name]) for name in ('fig1a', 'fig1b'))
    for (step, loss), (hour, same) in zip(steps, hours, strict=True):
      assert same == loss
      assert hour == pytest.approx(step * seconds / 3_600, rel=0.002, abs=0.02)


def test_every_curve_of_the_paper_is_found_and_an_arm_has_one_colour():
  looks = {}
  for name, figure in FIGURES.items():
    if not isinstance(figure, Curves):
      continue
    found = {arm.paper for arm in figure.arms if arm.paper_curve(figure.paper)}
    assert found == {arm.paper for arm in figure.arms if arm.paper}
    if name in arms.PAPER:
      assert set(arms.PAPER[name]['curves']) <= found
    own = [(arm.color, arm.line) for arm in figure.arms]
    # And no other arm of a figure has it.
    assert len(set(own)) == len(own)
    for arm, look in zip(figure.arms, own, strict=True):
      assert looks.setdefault(arm.label, look) == look


def test_the_first_crossing_of_2_by_linear_interpolation():
  for curve, best, wanted in (
    ([(0, 4.0), (10, 3.0), (20, 1.0)], min, 15),
    ([(0, 4.0), (10, 2.0), (20, 5.0)], min, 10),
    ([(7, 1.5), (10, 2.5)], min, 7),
    ([(0, 4.0), (10, 3.0)], min, None),
    ([(0, 0.0), (10, 1.0), (20, 5.0)], max, 12.5),
    ([(0, 0.0), (10, 1.0)], max, None),
    ([], min, None),
  ):
    assert crossing(curve, 2.0, best) == wanted, curve


def test_a_mean_curve_has_the_steps_that_all_have():
  curves = [[(1, 1.0), (2, 4.0), (3, 0.0)], [(1, 3.0), (2, 5.0)]]
  assert together(curves) == {1: [1, 3], 2: [4, 5]}
  assert Line('', '', together(curves)).mean == [2, 4.5]
  # Mean and half the range.
  assert LOSS.text([1.0, 2.0, 1.5]) == '1.5000 ± 0.5000'
  assert (LOSS.text([]), TOP_1.text([98.765])) == ('–', '98.77')
  signed = [LOSS.text([value], sign='+') for value in (-0.5, 0.5)]
  assert signed == ['−0.5000', '+0.5000']


def test_the_best_on_the_way_may_be_before_the_end():
  rows = tuple(
    {'step': step, 'member': 0, 'kind': kind, 'task_loss': loss}
    for step, kind, loss in ((0, 'eval', 3), (9, 'eval', 1), (20, 'final', 2))
  )
  # Without an end it does not count.
  runs = [results.Result({'seed': 0}, some) for some in (rows, rows[:2])]
  assert LOSS.bests(runs, 0) == [1.0]
  assert LOSS.ends(runs, 0) == [2.0]


def test_gains_are_seed_for_seed_and_positive_where_better(rows):
  # Seed for seed 0.3/50 better, though seeds differ; a share, so in per cent.
  for metric, scale in ((LOSS, 1), (TOP_1, 100)):
    gains = metric.gains(arms.CODISTILL.runs(rows), 0, arms.SYNC.runs(rows), 0)
    assert gains == pytest.approx([scale * 0.3 / 50] * 3)
  assert len(LOSS.gains(arms.SAME.runs(rows), 0, arms.SYNC.runs(rows), 0)) == 1
  assert LOSS.gains([], 0, arms.SYNC.runs(rows), 0) == []


def test_a_seed_in_which_a_member_has_no_end_has_no_gain(rows):
  runs = list(arms.CODISTILL.runs(rows))
  apart = arms.ENSEMBLE.runs(rows)
  whole = LOSS.gains(runs, MEMBERS, apart, MEMBERS)
  kept = (
    row for row in runs[1].rows if (row['member'], row['step']) != (1, 40)
  )
  runs[1] = dataclasses.replace(runs[1], rows=tuple(kept))
  for pair in ((runs, apart), (apart, runs)):
    gains = LOSS.gains(pair[0], MEMBERS, pair[1], MEMBERS)
    assert len(gains) == len(whole) - 1 == 2
  # One member alone has its gain.
  assert len(LOSS.gains(runs, 0, apart, 0)) == 3


# make_run's loss of a member at a step is (4 − gain) / (step + 10), gain 0.3
# for two members, 0.01 a seed, 0.1 a key of its point.


def test_a_table_of_curves(rows):
  table = table_of('controls', rows)
  end = 'cross-entropy (nats) / top-1 (%)'
  steps = 'steps to the baseline’s best'
  sync, ours = table['synchronous SGD'], table['codistilled, partitioned data']
  wanted = [f'{loss / 50:.4f} ± {0.01 / 50:.4f}' for loss in (3.99, 3.69)]
  assert [line[end].split(' / ')[0] for line in (sync, ours)] == wanted
  assert sync[steps] == '40'
  assert sync['best on the way: cross-entropy (nats)'] == wanted[0]
  # Linear between its steps 30 and 40, whose means are 3.69/40 and 3.69/50.
  at = 30 + 10 * (3.69 / 40 - 3.99 / 50) / (3.69 / 40 - 3.69 / 50)
  assert ours[steps] == f'{at:.0f}'
  assert table['ensemble of two'][end].startswith(f'{0.9 * 3.69 / 50:.4f}')
  assert table['codistilled, same data'][end].startswith(f'{3.6 / 50:.4f} / ')
  assert ours['runs'] == '3'
  assert table['label smoothing, uniform']['runs'] == '1'
  wanted = '`--config=imagenet_codistill:laptop --seeds=3`'
  assert ours[COMMAND] == wanted
  whole = command('imagenet_codistill', 'laptop', 3)
  assert whole == f'{COMMAND.split("`")[1]} {wanted.strip("`")}'
  # A text that everybody prepares for themselves.
  gpu = command('lm_sync', 'gpu', 3)
  assert gpu.endswith('lm_sync:gpu --seeds=3 --config.data.data_dir=DIR')


def test_our_panel_shows_the_mean_and_all_seeds(rows):
  paper, ours = panels_of('controls', rows)
  line = lines_of(ours)['codistilled, partitioned data']
  assert (line.color, line.seeds) == (arms.CODISTILL.color, 3)
  assert list(line.points) == [10, 20, 30, 40]
  assert line.mean[-1] == pytest.approx(3.69 / 50)
  assert min(line.points[40]) == pytest.approx(3.68 / 50)
  assert lines_of(ours)['label smoothing, uniform'].seeds == 1
  assert ours.marks == {10: 'burn-in ends'}
  assert {line.seeds for line in paper.lines} == {None}


def draw_one(panel):
  """Its axes and legend, and the names at its lines."""
  canvas = draw.draw('title', [[panel]], 'laptop')
  [axes] = canvas.axes
  plt.close(canvas)
  return axes, canvas.legends, axes.texts


def test_lines_are_named_where_they_end_and_one_seed_is_thin():
  lines = [
    Line(name, color, {1: [1, 3], 9: [end, end + 0.1]}, seeds=seeds)
    for name, color, end, seeds in (
      ('three', '#000000', 2.0, 3),
      ('one', '#ff0000', 2.0, 1),
      ('low', '#0000ff', 1.0, 3),
    )
  ]
  axes, [legend], names = draw_one(Panel('ours, {}', lines, 'step', 'loss'))
  assert axes.get_title(loc='left') == 'ours, :laptop, 3 seeds (thin: 1)'
  three, one, _ = axes.get_lines()
  assert three.get_linewidth() > 1.5 * one.get_linewidth()
  assert len(axes.collections) == 3
  # Right of the axes, in the order of the ends, and without touching.
  assert not legend.get_texts()
  low, *others = sorted(name.xyann[1] for name in names)
  assert min(name.xyann[0] for name in names) > 1
  assert names[2].xyann[1] == low
  assert others[1] - others[0] > 0.07
  # A line that ends early has no room for its name beside others.
  short = Line('short', '#00ff00', {1: [1], 3: [2]})
  _, [legend], names = draw_one(Panel('', [*lines, short], 'step'))
  found = [text.get_text() for text in legend.get_texts()]
  assert (found, len(names)) == (['three', 'one', 'low', 'short'], 0)


def test_labels_are_near_where_they_are_wanted_and_never_touch():
  assert draw.spread([0.9, 0.2], [0.1, 0.1]) == [0.9, 0.2]
  for wanted in ([0.5] * 5, [1.0, 0.99, 0.0], [0.3, 0.31, 0.29]):
    places = draw.spread(wanted, [0.2] * len(wanted))
    inner = sorted(places)
    gaps = [b - a for a, b in itertools.pairwise(inner)]
    assert min(gaps) > 0.199
    assert (inner[0] >= 0.1, inner[-1] <= 0.9) == (True, True)


def test_scales_show_all_that_is_named():
  def line(*values, **look):
    points = {step: [y] for step, y in enumerate(values, start=1)}
    return Line(str(values), '#000000', points, **look)

  for values, scale in (((2.0, 0.3, 0.01), 'log'), ((9.0, 2.0, 1.9), 'linear')):
    panel = Panel('', [line(*values)], '', yscale='auto', early=0.5)
    axes, _, _ = draw_one(panel)
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < values[-1] < values[1] < high
  # A level that is far away would squeeze what is compared with it.
  near, far = (line(y, y, level=True) for y in (1.4, 7.0))
  panel = Panel('', [line(1.0, 1.2), near, far], '')
  axes, _, [note, *_] = draw_one(panel)
  assert axes.get_ylim()[1] < 2
  assert note.get_text() == '↑ (7.0, 7.0): 7'


def test_dots_are_named_once_and_share_the_scale_of_one_measure():
  rows = [Dots('a', '#000000', [1, 2, 6]), Dots('b', '#ff0000', [1])]
  other = [Dots('a', '#000000', [20]), Dots('b', '#ff0000', [30])]
  panels = [Panel('ours', some, 'nats', zero=3) for some in (rows, other)]
  canvas = draw.draw('title', [panels], '')
  left, right = canvas.axes
  plt.close(canvas)
  assert [text.get_text() for text in left.get_yticklabels()] == ['a', 'b']
  assert left.get_xlim() == right.get_xlim()
  # A bar for the mean of more than one.
  [bar] = left.collections
  assert bar.get_segments()[0][0][0] == 3
  assert bar.get_segments()[0][0][1] < 0 < bar.get_segments()[0][1][1]


def test_a_note_says_what_lines_bars_and_dots_are():
  dots = 4 * [Dots('a', '#000000', [1, 2])]
  lines = [Line('a', '#000000', {1: [1, 2], 2: [3, 4]})]
  paper, ours, pairs = (
    Panel(title, dots, 'nats')
    for title in ('the paper', 'ours', 'ours, a dot a pair')
  )
  median = Panel('a machine', dots, '%', middle=statistics.median)
  curves, other = (
    Panel('ours', lines, 'step', over=over) for over in ('seeds', 'pairs')
  )
  band = 'band: from the least to the greatest'
  for panels, said in (
    ([paper, ours], 'a dot a seed, bar: their mean'),
    ([ours, pairs], 'bar: mean'),
    ([pairs, median], 'bar: mean, on the right median'),
    ([curves, curves], f'line: mean over seeds, {band}'),
    ([curves, other], f'line: mean over seeds, on the right pairs, {band}'),
  ):
    canvas = draw.draw('title', [panels], '')
    plt.close(canvas)
    assert canvas.legends[0].get_title().get_text() == said
  # One seed has no bar, and no mean to explain.
  one = Panel('ours', 2 * [Dots('a', '#000000', [1])], 'nats')
  canvas = draw.draw('title', [[one, one]], '')
  plt.close(canvas)
  assert not canvas.legends


def test_staleness_has_two_axes_and_what_has_no_peers(rows):
  table = table_of('staleness', rows)
  sync, *ages, alone = table
  assert sync == 'synchronous SGD, all of the data'
  assert ages == ['reload 1', 'reload 10', 'reload 250', 'reload 10, delay 20']
  assert alone == 'no peers, half of the data'
  assert table['reload 10']['mean age (updates)'] == '2.0'
  assert table[alone]['mean age (updates)'] == '–'
  paper = 'paper, language model: at the end (nats)'
  assert table['reload 250'][paper] == '4.059'
  assert table['reload 10'][paper] == '–'
  paper, ours = map(lines_of, panels_of('staleness', rows))
  assert ours['seen d later, reloaded every 10'].seeds == 2
  assert paper['codistilled'].points[250] == [4.059]


def test_diversity_has_all_eight_combinations(rows):
  table = table_of('diversity', rows)
  first, *_, last = table
  assert (len(table), first, last) == (8, 'own, own, own', 'same, same, same')
  runs = [table[name]['runs'] for name in ('own, own, own', 'own, own, same')]
  assert runs == ['3', '1']
  assert table['same, own, own']['members disagree on (%)'] == '12.50'


# Churn: make_retrains' seeds 0, 1, 2 predict 0.1 apart, at first 0.2.
CHURN = 'ours: churn (of the first line’s)'
CHURN_FIGURES = ('table1', 'churn', 'churn_images', 'choices')
LOSSES = 'ours: log loss (nats) / AUC / top-1 (%)'
LATE_CHURN = 'ours: churn, mean over the second half of the steps'
RELOAD = 'codistill.reload_interval_steps'
CHOICES = {
  'codistilled, reload interval 1': {RELOAD: 1},
  'codistilled, reload interval 200': {RELOAD: 200},
  'codistilled, ψ from step 0 on': {'codistill.burn_in_steps': 0},
  'codistilled, disjoint halves of the rows': {'diversity.partition': 'own'},
  # Two things otherwise are no choice.
  '': {RELOAD: 7, 'codistill.delay_steps': 7},
}


@pytest.fixture(scope='module')
def retrains(tmp_path_factory):
  """The models of Table 1: in one config's sweep, and a config each."""
  folder = tmp_path_factory.mktemp('retrains')
  known = {'data': {'best_log_loss': 0.0125}}
  two = {'codistill.members': 2}
  taught = {'codistill.exchange': 'memory', 'codistill.burn_in_steps': 10}
  for config, members, known['point'] in (
    ('imagenet_sync', 1, {}),
    ('imagenet_ensemble', 2, two),
    ('imagenet_codistill', 2, two | taught),
  ):
    make_retrains(folder, config, members)
    make_retrains(folder / config, 'criteo_table1', members, **known)
  known['point'] = {'model.name': 'click_regression'}
  make_retrains(folder / 'regression', 'criteo_table1', **known)
  for name, known['point'] in CHOICES.items():
    make_retrains(folder / f'choice {name}', 'criteo_choices', 2, **known)
  return rows_in(folder)


@pytest.mark.parametrize('name', CHURN_FIGURES)
def test_churn_of_all_models_stands_beside_the_papers(retrains, name):
  regression = 'hashed logistic regression'
  others = {
    'table1': ['two-way codistilled DNN, the other copy', regression],
    'churn': [regression],
    'choices': [choice for choice in CHOICES if choice],
    'churn_images': [],
  }[name]
  network = 'network' if name == 'churn_images' else 'DNN'
  table = table_of(name, retrains)
  if network == 'DNN':
    best = table.pop('best that can be reached (the truth itself)')
    assert best[LOSSES] == '0.0125'
    assert best[CHURN] == '–'
  models = ('{}', 'ensemble of two {}s', 'two-way codistilled {}')
  assert list(table) == [*(name.format(network) for name in models), *others]
  for model, line in table.items():
    assert len(line) == 8
    for column in (CHURN, LATE_CHURN):
      share = '' if model == network else ' (100 %)'
      assert line[column] == f'0.1333 ± 0.0500{share}'
    assert line['ours: changed decisions (%)'] == '16.67 ± 12.50'
    loss, auc, _ = line[LOSSES].split(' / ')
    assert (loss, auc) == ('0.0250 ± 0.0000', '0.7500 ± 0.0000')
    assert line['runs'] == '3'
    if model in others:
      papers = [cell for key, cell in line.items() if key.startswith('paper')]
      assert papers == ['–']


def test_choices_are_drawn_and_may_be_all_that_there_is(retrains):
  losses, churn = panels_of('choices', retrains)
  for panel, dots in ((losses, 3), (churn, 3)):
    *_, last = panel.content
    found = {row.label: len(row.values) for row in panel.content}
    assert found.items() >= {name: dots for name in CHOICES if name}.items()
    assert last.label == list(CHOICES)[3]
  alone = {'criteo_choices': retrains['criteo_choices']}
  # There is no DNN to be beside.
  for name, line in table_of('choices', alone).items():
    assert line[CHURN] == ('0.1333 ± 0.0500' if name in CHOICES else '–')
  assert not FIGURES['choices'].panels({**retrains, 'criteo_choices': []})


def test_churn_is_drawn_at_the_end_and_on_the_way(retrains):
  for name, network in (('churn', 'DNN'), ('churn_images', 'network')):
    left, right = panels_of(name, retrains)
    line = left.lines[0]
    assert (line.label, line.seeds) == (network, 3)
    assert line.mean == pytest.approx([0.1, 0.05, 1 / 30, 0.025])
    for model in (network, f'two-way codistilled {network}'):
      line = lines_of(right)[model]
      assert list(line.points) == [20, 40]
      assert line.mean == pytest.approx([0.8 / 3, 0.4 / 3])
      assert len(line.points[20]) == 3
    # ψ is switched on at step 10.
    assert right.marks == {10: 'burn-in ends'}
  *_, losses, churn = panels_of('table1', retrains)
  assert sum(churn.content[0].values) == pytest.approx(0.4)
  labels = [row.label for row in losses.content]
  assert (labels[0], labels[-1]) == ('DNN', 'hashed logistic regression')
  assert losses.xlabel.endswith('the best there can be: 0.0125')


def test_hours_are_those_of_all_runs(rows):
  table = cells(hours_table(rows, 'laptop'))
  staleness = table['`imagenet_staleness`']
  # make_run's runs last 20 seconds each.
  assert (staleness['runs'], staleness['hours']) == ('10', f'{200 / 3_600:.2f}')
  assert table['all']['runs'] == str(sum(map(len, rows.values())))
  # And of their first phases, unless these are runs of their own.
  for keys, hours in (({}, 120), ({'frozen_dir': 'elsewhere'}, 20)):
    [run, *_] = rows['imagenet_sync']
    config = {'codistill': {**run.run['config']['codistill'], **keys}}
    two = {**run.run, 'config': config, 'teachers': {'seconds': 100}}
    some = {'imagenet_two_phase': [dataclasses.replace(run, run=two)]}
    table = cells(hours_table(some, 'laptop'))
    assert table['all']['hours'] == f'{hours / 3_600:.2f}'


@pytest.fixture
def changed(folder, rows, tmp_path):
  """All rows, of one config with a change in the text of its file."""

  def change(config, make):
    path = tmp_path / f'{config}-laptop.jsonl'
    path.write_text(make((folder / path.name).read_text()))
    return {**rows, **results.read_folder(tmp_path, 'laptop')}

  return change


def test_marks_are_shown_and_twice_the_batch_is_another_arm(changed):
  old, new = '"marked": []', '"marked": ["dirty"]'
  rows = changed('imagenet_sync', lambda text: text.replace(old, new, 1))
  assert table_of('fig3', rows)['synchronous SGD']['runs'] == '3 (1 dirty)'
  [double] = arms.SYNC_DOUBLE.runs(rows)
  assert double.run['config']['batch_size'] == 16
  assert [run.point for run in arms.SYNC.runs(rows)] == [{}, {}, {}]


def test_a_seed_that_was_run_in_two_ways_is_no_repetition(changed):
  def run_again(text):
    # Another rate at twice the batch: in the run's name and in its overrides.
    other = re.sub('(peak_rate(=|": ))0.2', r'\g<1>0.3', text)
    lines = [line for line in other.splitlines(True) if 'peak_rate=0.3' in line]
    return text + ''.join(lines)

  rows = changed('imagenet_sync', run_again)
  with pytest.raises(ValueError, match='two runs of one arm and seed'):
    arms.SYNC_DOUBLE.runs(rows)
  assert len(arms.SYNC.runs(rows)) == 3


def test_runs_with_other_keys_are_no_points_of_a_sweep(changed):
  old, new = '"overrides": {', '"overrides": {"seven": 7, '
  for name in ('staleness', 'diversity'):
    rows = changed(f'imagenet_{name}', lambda text: text.replace(old, new))
    assert not FIGURES[name].panels(rows)


def test_a_run_that_diverged_does_not_cut_the_others_short(changed, rows):
  end = '.*"base/seed-2".*"final".*\n'
  cut = changed('imagenet_codistill', lambda text: re.sub(end, '', text))
  column = 'steps to the baseline’s best'
  name = 'codistilled, partitioned data'
  one, two = (table_of('controls', some)[name] for some in (rows, cut))
  assert float(two[column]) == pytest.approx(float(one[column]), abs=1)
  _, ours = panels_of('controls', cut)
  assert lines_of(ours)[name].seeds == 2


def test_rows_that_fit_nothing_are_no_rows(rows):
  without_rows = {
    config: [dataclasses.replace(run, rows=()) for run in runs]
    for config, runs in rows.items()
  }
  for name, figure in FIGURES.items():
    assert not figure.panels(without_rows), name
    assert figure.table(without_rows, 'laptop') is not None
  # Nor are those without stored predictions.
  for name in CHURN_FIGURES:
    assert not FIGURES[name].panels(rows), name


def test_rows_of_some_arms_are_enough_in_any_style(folder, tmp_path):
  name = 'imagenet_sync-laptop.jsonl'
  (tmp_path / name).write_text((folder / name).read_text())
  options = (f'--results={tmp_path}', '--variant=laptop')
  assert figures.main(['fig3', *options, f'--out={tmp_path}']) == 0
  text = (tmp_path / 'fig3-laptop.md').read_text()
  table, _, lacking = text.partition('\n\n')
  assert lacking == 'No finished runs yet: two-way codistilled.\n'
  table = cells(table)
  assert 'two-way codistilled' not in table
  assert table['synchronous SGD']['runs'] == '3'
  # The user's own style changes nothing.
  with plt.rc_context({'font.family': 'monospace', 'lines.linewidth': 9}):
    figures.main(['fig3', *options, f'--out={tmp_path / "two"}'])
  one, two = (path.read_bytes() for path in tmp_path.rglob('fig3-laptop.svg'))
  assert one == two


def test_without_rows_it_says_what_makes_them(folder, tmp_path, capsys):
  where = (f'--results={folder}', f'--out={tmp_path / "out"}')
  wanted = {
    name: f'{name} has no rows of :laptop; make them with '
    for name in ('fig2a', 'over_fitting', 'topology')
  } | {
    name: f'{name} has no stored predictions of :laptop; make them with '
    for name in CHURN_FIGURES
  }
  # The one variant that there are rows of.
  line = complaint(capsys, figures, *where, 'fig2a', status=2)
  assert wanted['fig2a'] in line
  where = ('--variant=laptop', *where)
  line = complaint(capsys, figures, *wanted, *where, status=2)
  for sentence in wanted.values():
    assert sentence in line
  assert command('topology', 'laptop', 3) in line
  assert command('imagenet_sync', 'laptop', 5) in line
  assert 'predictions_interval_steps' in line
  # What has rows is drawn; nothing is written of what has none.
  assert figures.main(['fig3', 'fig2a', *where]) == 2
  found = {path.name for path in (tmp_path / 'out').iterdir()}
  assert found == {'fig3-laptop.md', 'fig3-laptop.svg', 'hours-laptop.md'}


def test_any_variant_that_has_rows_is_drawn(folder, tmp_path, capsys):
  where = (f'--results={tmp_path}', f'--out={tmp_path / "out"}')
  # '' is the paper's scale.
  for stem in ('imagenet_sync', 'imagenet_sync-of_my_own'):
    text = (folder / 'imagenet_sync-laptop.jsonl').read_text()
    (tmp_path / f'{stem}.jsonl').write_text(text)
  assert figures.main([*where, 'fig3']) == 0
  found = {path.stem for path in (tmp_path / 'out').glob('*.svg')}
  assert found == {'fig3', 'fig3-of_my_own'}
  assert figures.main([*where, '--variant=']) == 0
  line = complaint(capsys, figures, *where, '--variant=huge', status=2)
  assert (
    'has no rows of :huge, of variants there are ‘’, :of_my_own; make' in line
  )
  assert 'python -m experiments.sweep --config=NAME:huge' in line


def test_what_makes_no_sense_is_one_sentence(capsys, folder, tmp_path):
  text = (folder / 'imagenet_sync-laptop.jsonl').read_text()
  (tmp_path / 'imagenet_sync-laptop.jsonl').write_text('')
  (tmp_path / 'imagenet_sync-reduced.jsonl').write_text(text[:-20])
  where = (f'--results={tmp_path}', f'--out={tmp_path}')
  for argument, sentence in (
    ('fig2c', "no figure 'fig2c'; did you mean fig2b"),
    ('--results=nowhere', 'nowhere is not a folder of results'),
    ('--variant=laptop', 'is empty'),
  ):
    assert sentence in complaint(capsys, figures, *where, argument, status=2)
  assert figures.main([*where, '--variant=reduced']) == 0
  [warning] = capsys.readouterr().err.splitlines()
  assert 'dropped a cut last line' in warning


# What is committed: rows, pictures and tables are of one piece.


def test_committed_pictures_and_tables_are_those_of_the_rows(tmp_path):
  assert figures.main([f'--out={tmp_path}']) == 0
  made, kept = (
    {path.name: path for path in folder.iterdir() if path.suffix != '.png'}
    for folder in (tmp_path, figures.OUT)
  )
  assert kept.keys() == made.keys()
  for name, path in made.items():
    assert kept[name].read_bytes() == path.read_bytes(), f'{name}: make figures'
  tables = {file.stem: file.read_text() for file in tmp_path.glob('*.md')}
  shown = set()
  for path in (ROOT / 'docs/criteo.md', *(ROOT / 'docs/results').glob('*.md')):
    text = path.read_text(encoding='utf-8')
    names = set(re.findall(r'<!-- table (?!benchmark)([\w-]+) -->', text))
    assert names <= tables.keys()
    assert markdown.insert(text, tables) == text, 'make figures'
    shown |= names
  # Of churn over steps the picture alone is on a page.
  assert {name.split('-')[0] for name in tables.keys() - shown} == {'churn'}
