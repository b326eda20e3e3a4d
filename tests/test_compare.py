"""Runs side by side: from rows alone to a table, a picture, a report."""

import base64
import json
import re

import matplotlib.pyplot as plt
import pytest
from collected import COMMIT, cells, make_run, make_seeds
from in_process import complaint, run_script

from experiments import results
from experiments.record import Record
from scripts import collect
from scripts.compare import __main__ as compare
from scripts.compare import draw, measures, points, report
from scripts.figures import draw as pictures
from scripts.figures.metric import MEMBERS
from scripts.figures.panel import sequence

PNG = b'\x89PNG\r\n\x1a\n'
SYNC, BOTH = 'imagenet_sync:laptop', 'imagenet_codistill:laptop'
RELOAD = 'codistill.reload_interval_steps'
EXCHANGE = 'codistill.exchange'
NONE = {EXCHANGE: 'none', 'codistill.burn_in_steps': 40}
# As imagenet_staleness has them; the first is its config as it is.
SWEEP = (
  ({}, 0.50),
  ({RELOAD: 10}, 0.10),
  ({RELOAD: 250}, 0.25),
  (NONE, 0.30),
  ({RELOAD: 10, 'codistill.delay_steps': 20}, 0.40),
)
NAMES = [
  'reload_interval_steps=10',
  'reload_interval_steps=50',
  'reload_interval_steps=250',
  'exchange=none',
  'delay_steps=20, reload_interval_steps=10',
]


def loss(step, who):
  return {0: 0.7, 1: 0.69, 'ensemble': 0.65}[who]


def make_sweep(folder, seeds=2, experiment='imagenet_staleness', **keywords):
  """Member 1 ends 0.02 above member 0, seed 1 0.1 above seed 0."""
  for number, (point, end) in enumerate(SWEEP):

    def loss_of(seed, step, who, end=end):
      end += 0.1 * seed
      return {0: end, 1: end + 0.02, 'ensemble': end - 0.05}[who] + 1 / step

    arguments = (folder / str(number), seeds, experiment, point)
    make_seeds(*arguments, loss_of=loss_of, **keywords)
  return folder


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  return make_sweep(tmp_path_factory.mktemp('sweep'))


@pytest.fixture
def two_runs(tmp_path):
  keys = {'members': 1, 'loss': lambda *_: 0.2}
  sync = make_run(tmp_path / 'sync', 'imagenet_sync', **keys)
  return sync, make_run(tmp_path / 'both', loss=loss)


@pytest.fixture
def show(capsys):
  """What the command prints."""

  def run(*arguments):
    capsys.readouterr()
    assert run_script(compare, *arguments) == 0
    return capsys.readouterr().out

  return run


@pytest.fixture
def table(show):
  """The printed Markdown table, by its first column."""
  return lambda *arguments: cells(show(*arguments, '--markdown'))


@pytest.fixture
def page(tmp_path, monkeypatch):
  """Where to write a report, without what takes long: its pictures."""
  monkeypatch.setattr(pictures, 'picture', lambda *_: None)
  return tmp_path / 'report.html'


def names(*sources):
  return [point.name for point in points.read(sources).points]


def lines_of(text, name):
  return [line.split() for line in text.splitlines() if name in line.split()]


def keep(path, words):
  lines = path.read_text().splitlines(True)
  path.write_text(''.join(line for line in lines if words in line))


def cut(workdir, status='interrupted', **changes):
  """Makes a run one that did not get to its end."""
  keep(workdir / 'rows.jsonl', '"eval"')
  run = json.loads((workdir / 'run.json').read_text())
  del run['checksum']
  Record(workdir).write_run(run | {'status': status} | changes)


def panels(arms, key='task_loss'):
  """Learning curves and ends."""
  [row] = draw.grid(arms, [measures.metric_of(arms, key)])
  return row


def arms(*sources, who=MEMBERS):
  return measures.arms_of(points.read(sources).points, who)


def test_points_are_named_by_the_keys_that_differ(sweep):
  compared = points.read([sweep])
  assert [point.name for point in compared.points] == NAMES
  assert compared.title == 'imagenet_staleness:laptop'
  assert [len(point.runs) for point in compared.points] == [2] * 5


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    # One that no other has, and what all have is in the title.
    (
      [{'batch_size': 16}, {'batch_size': 16, RELOAD: 5}],
      ['reload_interval_steps=5', 'reload_interval_steps=50'],
    ),
    # Without the config as it is, and a number in its order.
    (
      [{RELOAD: 100}, {RELOAD: 5}],
      ['reload_interval_steps=5', 'reload_interval_steps=100'],
    ),
    # Of what always changes together a word, and only once.
    (
      [{}, {'batch_size': 16, 'codistill.exchange': 'none', 'num_steps': 20}],
      ['exchange=memory', 'exchange=none'],
    ),
    ([{}, {'diversity.order': 'same'}], ['order=own', 'order=same']),
    ([{}, {'data.name': 'mnist'}], ['data.name=digits', 'data.name=mnist']),
    (
      [{'two_phase.num_steps': 10}, {'num_steps': 20}],
      ['two_phase.num_steps=10', 'num_steps=20'],
    ),
    ([{RELOAD: 5}], [BOTH]),
    # Of text it changes the number, because lanes begin anew.
    (
      [{'eval_batch_size': 64}, {'eval_batch_size': 8}],
      ['eval_batch_size=8', 'eval_batch_size=64'],
    ),
  ],
)  # fmt: skip
def test_names_are_short_and_tell_points_apart(tmp_path, changes, expected):
  for number, point in enumerate(changes):
    make_run(tmp_path / str(number), point=point)
  assert sorted(names(tmp_path)) == sorted(expected)


def test_what_changes_along_with_a_name_is_said(tmp_path, show):
  one = make_run(tmp_path / 'one', members=1)
  point = {'batch_size': 16, RELOAD: 5}
  other = make_run(tmp_path / 'other', members=1, point=point)
  assert [name.split('=')[0] for name in names(one, other)] == [
    'batch_size'
  ] * 2
  said = 'batch_size also stands for reload_interval_steps'
  for more in ((), ('--markdown',), ('--metric=task_loss',)):
    assert said in ' '.join(show(one, other, *more).split())


def test_keys_that_others_change_alone_do_not_change_along(tmp_path, show):
  for place in 'ab':
    for number, point in enumerate(({}, {'batch_size': 16})):
      make_run(tmp_path / place / str(number), point=point)
  for number, point in enumerate(({RELOAD: 5}, {'codistill.delay_steps': 7})):
    make_run(tmp_path / 'b' / f'x{number}', point=point)
  shown = show(tmp_path / 'a', tmp_path / 'b', '--markdown')
  assert 'reload_interval_steps=5' in shown
  assert 'also stands for' not in shown


def test_long_names_cut_no_number(tmp_path, show):
  point = dict.fromkeys(('eval_interval_steps', 'batch_size'), 123_456)
  point |= {'codistill.max_task_loss_ratio': 1.125, 'num_steps': 30}
  runs = [
    make_run(tmp_path / str(n), loss=loss, point=one)
    for n, one in enumerate((point, {**point, 'num_steps': 40}))
  ]
  shown = show(*runs)
  assert '…' not in shown
  assert shown.count('0.7000') == shown.count('12.50 %') == len(runs)


def test_what_all_change_alike_is_in_the_title(tmp_path):
  for seed in range(2):
    make_run(tmp_path / str(seed), point={RELOAD: 5}, seed=seed)
  assert points.read([tmp_path]).title == f'{BOTH}, reload_interval_steps=5'


def test_config_and_variant_name_runs_only_where_they_differ(tmp_path):
  make_run(tmp_path / 'a', 'imagenet_sync', members=1)
  make_run(tmp_path / 'b', point={RELOAD: 5})
  make_run(tmp_path / 'c', variant='reduced')
  assert names(tmp_path) == [
    SYNC,
    f'{BOTH}, reload_interval_steps=5',
    'imagenet_codistill:reduced',
  ]


def test_one_point_in_two_places_is_named_by_the_place(tmp_path):
  for name in ('old', 'new'):
    make_run(tmp_path / name / 'runs', point={RELOAD: 5})
    make_run(tmp_path / name / 'more')
  folders = [tmp_path / name for name in ('old', 'new')]
  assert names(*folders) == [
    f'{name}, reload_interval_steps={steps}'
    for name in ('old', 'new')
    for steps in (5, 50)
  ]
  # A folder that is named twice, or lies in another one, is there once.
  assert len(names(folders[0], folders[0], folders[0] / 'more')) == 2


def test_a_variant_that_was_changed_is_another_point(tmp_path):
  make_run(tmp_path / 'a', seed=0)
  make_run(tmp_path / 'b', seed=1, named={'batch_size': 16})
  # A key that older code did not have yet is no difference.
  make_run(tmp_path / 'c', seed=2, named={'batch_size': 16, 'new_key': 3})
  assert names(tmp_path) == ['batch_size=8', 'batch_size=16']


def test_runs_on_different_data_are_no_seeds_of_one_point(tmp_path, table):
  ours, theirs = 8 * 'abcd', 8 * 'ef01'
  for seed, data in enumerate((ours, ours, theirs)):
    workdir = tmp_path / f'a/{seed}'
    make_run(workdir, seed=seed, data={'fingerprint': data})
  # Older code did not record it.
  make_run(tmp_path / 'old', 'imagenet_sync', members=1)
  known = {'data': {'fingerprint': ours}, 'members': 1}
  make_run(tmp_path / 'known', 'imagenet_sync', seed=1, **known)
  assert {name: line['seeds'] for name, line in table(tmp_path).items()} == {
    f'{BOTH}, fingerprint={ours[:12]}': '2',
    f'{BOTH}, fingerprint={theirs[:12]}': '1',
    SYNC: '2',
  }


def test_the_table_has_means_of_seeds_and_differences_seed_for_seed(
  sweep, table
):
  found = table(sweep)
  assert list(found) == NAMES
  # At 40 steps: 0.1 + 1/40, 0.02 / 2 for the other member, 0.1 / 2 for seeds.
  assert found[NAMES[0]] == {
    'run': NAMES[0],
    'cross-entropy (nats)': '0.1850 ± 0.0500',
    'difference': '−0.4000 ± 0.0000',
    'seeds': '2',
  }
  # The config as it is, which is not the first line.
  assert found[NAMES[1]]['difference'] == '–'
  found = table(sweep, f'--baseline={NAMES[0]}', '--who=ensemble')
  assert found[NAMES[1]]['cross-entropy (nats)'] == '0.5250 ± 0.0500'
  assert found[NAMES[1]]['difference'] == '+0.4000 ± 0.0000'
  found = table(sweep, '--who=1', '--metric=accuracy', '--metric=seconds')
  assert found[NAMES[0]]['top-1 (%)'] == '80.50 ± 5.00'
  assert found[NAMES[0]]['seconds of training'] == '20.0 ± 0.0'
  found = table(sweep, '--who=each')
  assert list(found)[:3] == [
    f'{NAMES[0]}, {who}' for who in ('member 0', 'member 1', 'ensemble')
  ]
  assert found[f'{NAMES[0]}, ensemble']['difference'] == '−0.4000 ± 0.0000'


def test_without_a_file_to_write_only_a_table_is_printed(sweep, show):
  shown = show(sweep)
  assert 'imagenet_staleness:laptop' in shown
  assert '0.1850 ± 0.0500' in shown
  assert 'learning curves' not in shown
  assert f'rows, provenance, checkpoints: {sweep}' in shown


def test_collected_rows_show_what_their_workdirs_do(sweep, tmp_path, table):
  collect.collect([sweep], tmp_path, allow=(), replace=False)
  [file] = tmp_path.glob('*.jsonl')
  assert table(file) == table(sweep)


def test_committed_click_models_have_an_auc(table):
  found = table(results.FOLDER / 'criteo_table1-laptop.jsonl', '--metric=auc')
  assert list(found) == [
    'members=1',
    'members=2',
    'model.name=click_regression',
    'exchange=memory, members=2',
  ]
  aucs = [line['AUC'] for line in found.values()]
  assert all(re.match(r'0\.[67]\d{3} ± 0\.\d{4}$', auc) for auc in aucs)


def test_means_have_a_band_and_colours_the_order_of_a_number(sweep, tmp_path):
  curves, _ = panels(arms(sweep))
  ends = [line.mean[-1] for line in curves.lines]
  assert ends == pytest.approx([0.185, 0.585, 0.335, 0.385, 0.485])
  first = curves.lines[0].points[10]
  assert (min(first), max(first)) == pytest.approx((0.21, 0.31))
  # From dark to light; what is no such number has other colours.
  colors = [line.color for line in curves.lines]
  assert colors[:3] == sequence(3)
  assert len(set(colors)) == 5
  # Where the burn-in of those with peers ends; the others never leave it.
  assert curves.marks == {10: 'burn-in ends'}
  method = {'codistill.method': 'local_sgd'}
  for size, marks in ((None, {}), (2, {}), (1, curves.marks)):
    # Of two members; groups of averaged members teach each other.
    point = {**method, 'codistill.group_size': size}
    make_run(tmp_path / str(size), point=point)
    averaged, _ = panels(arms(tmp_path / str(size)))
    assert averaged.marks == marks


def test_ends_are_a_dot_a_seed_and_their_names_the_legend(sweep):
  shown = arms(sweep)
  curves, ends = panels(shown)
  assert sorted(ends.content[0].values) == pytest.approx([0.135, 0.235])
  assert [len(row.values) for row in ends.content] == [2] * 5
  # Long ones have more than one line.
  labels = [row.label for row in ends.content]
  assert [' '.join(label.split()) for label in labels] == NAMES
  assert labels == [line.label for line in curves.lines]
  canvas = pictures.draw('', [[curves, ends]], '')
  assert not [text.get_text() for text in canvas.legends[0].get_texts()]
  assert not set(labels) & {text.get_text() for text in canvas.axes[0].texts}
  # A sample of its line by each.
  samples = [text for text in canvas.axes[1].texts if text.arrow_patch]
  assert len(samples) == 5
  plt.close(canvas)


def test_runs_that_are_not_finished_are_dotted_and_in_no_mean(
  tmp_path, table, page, capsys
):
  make_seeds(tmp_path / 'a', 3, loss_of=lambda seed, *_: 0.2 + 0.1 * seed)
  cut(tmp_path / 'a/2')
  make_run(tmp_path / 'b', point={RELOAD: 5})
  cut(tmp_path / 'b', 'running')
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c/log.txt').write_text('no memory')
  found = table(tmp_path)
  assert [line['seeds'] for line in found.values()] == [
    '0 of 1: 1 unfinished',
    '2 of 3: 1 unfinished',
  ]
  last = found['reload_interval_steps=50']
  assert last['cross-entropy (nats)'] == '0.2500 ± 0.0500'
  assert found['reload_interval_steps=5']['difference'] == '–'
  curves, _ = panels(arms(tmp_path))
  lines = [(line.style, len(line.points)) for line in curves.lines]
  assert lines == [(':', 3), ('-', 4), (':', 3)]
  assert run_script(compare, tmp_path, f'--html={page}') == 0
  assert f'{tmp_path}/c failed before it began' in capsys.readouterr().err
  text = page.read_text()
  assert 'interrupted, step 30 of 40' in text
  assert 'not finished, step 30 of 40' in text
  assert f'{tmp_path.name}/c' in text
  # The last status of a process that was killed is no sign that it runs.
  assert 'running' not in text


def test_a_member_that_diverged_leaves_no_mean_of_all(tmp_path, table):
  make_run(tmp_path / 'a')
  make_run(tmp_path / 'b', point={RELOAD: 5}, diverged={'1': {'step': 35}})
  rows = tmp_path / 'b/rows.jsonl'
  lines = [json.loads(line) for line in rows.read_text().splitlines()]
  for row in lines:
    if row['kind'] == 'final' and row['member'] == 1:
      row['task_loss'] = row['accuracy'] = None
  rows.write_text(''.join(json.dumps(row) + '\n' for row in lines))
  found = table(tmp_path)['reload_interval_steps=5']
  assert found['seeds'] == '0 of 1: 1 diverged'
  assert found['cross-entropy (nats)'] == '–'
  assert table(tmp_path, '--who=0')['reload_interval_steps=5']['seeds'] == '1'


def test_a_finished_run_without_a_number_is_not_unfinished(tmp_path, table):
  fault = {'fault.kind': 'death', 'fault.member': 1, 'fault.step': 35}
  workdir = make_run(tmp_path / 'dead', point=fault)
  rows = workdir / 'rows.jsonl'
  lines = rows.read_text().splitlines(keepends=True)
  kept = [
    line for line in lines if '"final"' not in line or '"member": 0' in line
  ]
  rows.write_text(''.join(kept))
  averages = {'average_decay': 0.9}
  make_run(tmp_path / 'averaged', point=averages)
  make_run(tmp_path / 'b')
  [dead] = [name for name in table(tmp_path) if 'death' in name]
  assert table(tmp_path)[dead]['seeds'] == '0 of 1: 1 lost a member'
  assert table(tmp_path, '--who=0')[dead]['seeds'] == '1'
  found = table(tmp_path, '--who=0', '--metric=average_task_loss')
  none = '0 of 1: 1 without this number'
  assert [line['seeds'] for line in found.values()] == ['1', none, none]
  # With several metrics each has its own seeds, if they differ.
  both = table(
    tmp_path, '--who=0', '--metric=task_loss', '--metric=average_task_loss'
  )
  wanted = f'task_loss 1; average_task_loss {none}'
  assert [line['seeds'] for line in both.values()] == ['1', wanted, wanted]


def test_single_runs_have_each_member_and_the_ensemble(
  two_runs, tmp_path, show
):
  out = tmp_path / 'new/curves.png'
  shown = show(*two_runs, f'--out={out}')
  assert out.read_bytes().startswith(PNG)
  for path in (*two_runs, out):
    assert str(path) in shown
  scores = {
    SYNC: ['0 40 80.00 % 0.2000 –'],
    BOTH: [
      '0 40 30.00 % 0.7000 –',
      '1 40 31.00 % 0.6900 –',
      'ensemble 40 35.00 % 0.6500 12.50 %',
    ],
  }
  for name, lines in scores.items():
    assert lines_of(shown, name) == [[name, *line.split()] for line in lines]
  each = arms(*two_runs, who=measures.EACH)
  assert [arm.name for arm in each] == [
    SYNC,
    *(f'{BOTH}, {who}' for who in ('member 0', 'member 1', 'ensemble')),
  ]
  # Each has a colour of its own; ensembles are dashed.
  looks = draw.looks(each)
  assert len({color for color, _ in looks}) == len(looks)
  assert [style for _, style in looks] == ['-', '-', '-', '--']
  lines = panels(each)[0].lines
  assert [line.mean[-1] for line in lines] == [0.2, 0.7, 0.69, 0.65]


def test_members_that_were_trained_apart_are_one_run(tmp_path, show):
  workdir = tmp_path / 'apart'
  for member in (0, 1):
    make_run(workdir, suffix=f'-{member}', member=member)
    keep(workdir / f'rows-{member}.jsonl', f'"member": {member}')
  shown = show(workdir)
  assert [line[1] for line in lines_of(shown, BOTH)] == ['0', '1']


def test_a_run_is_shown_as_far_as_it_came(two_runs, show):
  half, begun = two_runs
  cut(half)
  cut(begun, 'running')
  (begun / 'rows.jsonl').unlink()
  shown = show(half, begun)
  assert 'no end: imagenet_sync:laptop (unfinished; evaluated last at ' in shown
  curves, ends = panels(arms(half, begun, who=measures.EACH))
  assert [len(line.points) for line in curves.lines] == [3]
  assert ends.title == 'no run has an end'


def test_the_report_needs_no_other_file(sweep, tmp_path, show):
  page = tmp_path / 'new/report.html'
  show(sweep, f'--html={page}', '--metric=task_loss', '--metric=accuracy')
  text = page.read_text()
  picture = base64.b64decode(re.search(r'svg\+xml;base64,([^"]+)', text)[1])
  assert b'<svg' in picture
  assert not re.search(r'<script|<link|@import|(?:src|href)="(?!data:)', text)
  for name in NAMES:
    assert f'<td>{name}</td>' in text
  assert '0.1850 ± 0.0500' in text
  assert '--config.codistill.reload_interval_steps=250' in text
  assert 'prefers-color-scheme: dark' in text
  for what in ('0123456789ab', 'jax 0', '1 × cpu', '>done<'):
    assert what in text
  assert str(sweep) not in text
  assert '/home/' not in text


def test_names_in_a_report_are_text(tmp_path, page):
  odd = {'data.name': '<b>&"'}
  make_run(tmp_path / 'a', point=odd)
  make_run(tmp_path / 'b')
  assert run_script(compare, tmp_path, f'--html={page}') == 0
  assert '<b>' not in page.read_text()
  assert 'data.name=&lt;b&gt;&amp;&quot;' in page.read_text()


def test_a_command_makes_its_run(sweep):
  commands = {
    point.name: report.command(point.runs[1])
    for point in points.read([sweep]).points
  }
  assert commands['exchange=none'] == [
    'python -m experiments.run --config=imagenet_staleness:laptop',
    '--config.codistill.burn_in_steps=40',
    '--config.codistill.exchange=none',
    '--config.seed=1',
    '--workdir=runs/imagenet_staleness-laptop/burn_in_steps=40,exchange=none/'
    'seed-1',
  ]


def test_a_report_says_what_no_command_can(tmp_path, page):
  file = {'path': '/home/somebody/mine.py', 'module': None, 'sha256': 64 * 'a'}
  mine = {'experiment': 'mine', 'config_file': file}
  resumed = {'commit': COMMIT, 'dirty': False, 'packages': {'jax': '1'}}
  resumed['device'] = {'platform': 'gpu', 'kind': 'H200', 'count': 2}
  make_run(tmp_path / 'a', **mine, resumed=[resumed])
  # The file changed between them.
  make_run(tmp_path / 'b', **mine, seed=1, named={'batch_size': 16})
  assert run_script(compare, tmp_path, f'--html={page}') == 0
  text = page.read_text()
  assert text.count('--config=mine.py:laptop') == 2
  for size in (8, 16):
    assert f'Besides, with batch_size {size}.' in text
  assert 'jax 0; then jax 1' in text
  assert '1 × cpu, 2 × H200' in text


def test_what_cannot_be_compared_is_one_sentence(
  sweep, two_runs, tmp_path, capsys
):
  def said(*arguments):
    return complaint(capsys, compare, *arguments)

  empty = tmp_path / 'empty'
  assert f'{empty} does not exist' in said(two_runs[0], empty)
  empty.mkdir()
  assert f'{empty} holds no run; make one' in said(empty)
  (empty / 'run.json').write_text('{"experiment": "cut')
  assert f'{empty}/run.json is damaged' in said(empty)
  assert 'name its folder' in said(two_runs[0] / 'rows.jsonl')
  text = tmp_path / 'notes.jsonl'
  text.write_text('nothing\n')
  assert 'not a row' in said(text)
  metrics = 'there are accuracy, disagreement, seconds, task_loss'
  assert f"has the metric 'los'; {metrics}" in said(sweep, '--metric=los')
  assert "has the metric 'step'" in said(sweep, '--metric=step')
  assert 'add --who=ensemble' in said(sweep, '--metric=disagreement')
  assert '--who can be members, each, 0, 1, ensemble' in said(sweep, '--who=2')
  assert "there is no point 'reload'" in said(sweep, '--baseline=reload')
  for name in ('a.odd', 'none'):
    out = f'--out={tmp_path}/{name}'
    assert 'is not supported (supported formats: ' in said(sweep, out)
  assert f"Is a directory: '{tmp_path}'" in said(sweep, f'--html={tmp_path}')
  begun = make_run(tmp_path / 'begun', status='running')
  (begun / 'rows.jsonl').unlink()
  assert 'no run has been evaluated yet' in said(begun)
  twice = tmp_path / 'twice'
  for name in ('a', 'b'):
    make_run(twice / name)
  assert 'has two runs of one arm and seed, base/seed-0' in said(twice)
  failed = tmp_path / 'failed/seed-0'
  failed.mkdir(parents=True)
  (failed / 'log.txt').write_text('no memory')
  assert f'{failed} failed before it began' in said(failed.parent)
  assert "no run has evaluations of 'all'" in said(sweep, '--who=all')
