"""From workdirs to committed results: what is taken, refused, marked."""

import json

import numpy as np
import pytest
from collected import COMMIT, LABELS, make_retrains, make_run, store

from experiments import results
from experiments.record import SCHEMA_VERSION
from scripts import collect


def run_collect(*arguments):
  return collect.main([str(argument) for argument in arguments])


def one_file(folder):
  [path] = folder.glob('*.jsonl')
  return path


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'results'


def test_a_run_is_its_provenance_and_its_evaluations(tmp_path, out):
  workdir = make_run(tmp_path / 'a', seed=2)
  assert run_collect(workdir, f'--out={out}') == 0
  assert one_file(out).name == 'imagenet_codistill-laptop.jsonl'
  [result] = results.read(one_file(out))
  assert result.id == 'base/seed-2'
  assert result.point == {}
  assert result.run['commit'] == COMMIT
  assert result.run['marked'] == []
  assert result.run['examples_per_second'] == 100
  # 30 steps with peers of age 1, 2, 3, 4, 0, 1, …
  assert result.run['mean_peer_age'] == 2
  kinds = [(row['kind'], row['step'], row['member']) for row in result.rows]
  assert kinds == [
    ('final' if step == 40 else 'eval', step, who)
    for step in (10, 20, 30, 40)
    for who in (0, 1, 'ensemble')
  ]
  assert result.rows[-1]['disagreement'] == 0.125
  assert 'disagreement' not in result.rows[0]


def test_no_path_and_no_name_of_the_machine(tmp_path, out):
  point = {'data.data_dir': '/home/somebody/data'}
  run_collect(make_run(tmp_path / 'a', point=point), f'--out={out}')
  text = one_file(out).read_text()
  assert 'somebody' not in text
  assert str(tmp_path) not in text
  assert 'argv' not in text
  assert results.read(one_file(out))[0].id == 'base/seed-0'


def test_a_second_collect_changes_nothing(tmp_path, out):
  for seed in (0, 2, 10):
    make_run(tmp_path / 'runs' / f'seed-{seed}', seed=seed)
  stale = make_run(
    tmp_path / 'runs/x', point={'codistill.reload_interval_steps': 10}
  )
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 0
  before = one_file(out).read_bytes()
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 0
  assert run_collect(stale, tmp_path / 'runs/seed-2', f'--out={out}') == 0
  assert one_file(out).read_bytes() == before
  assert [result.id for result in results.read(one_file(out))] == [
    'base/seed-0',
    'base/seed-2',
    'base/seed-10',
    'reload_interval_steps=10/seed-0',
  ]
  assert [path.name for path in out.iterdir()] == [one_file(out).name]


def test_the_order_of_workdirs_does_not_matter(tmp_path):
  folders = [make_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
  run_collect(*folders, f'--out={tmp_path / "one"}')
  for folder in reversed(folders):
    run_collect(folder, f'--out={tmp_path / "two"}')
  texts = [one_file(tmp_path / name).read_bytes() for name in ('one', 'two')]
  assert texts[0] == texts[1]


def test_machine_keys_are_no_point(tmp_path, out):
  point = {'num_devices': 1, 'checkpoint_interval_steps': 5}
  make_run(tmp_path / 'runs/a')
  make_run(tmp_path / 'runs/b', seed=1, point=point)
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 0
  ids = [result.id for result in results.read(one_file(out))]
  assert ids == ['base/seed-0', 'base/seed-1']


@pytest.mark.parametrize(
  ('mark', 'changes'),
  [
    ('unfinished', {'status': 'running'}),
    ('unfinished', {'status': 'diverged', 'diverged': {'0': {'step': 3}}}),
    ('dirty', {'dirty': True}),
    ('no-commit', {'commit': None, 'dirty': None}),
    ('dirty', {'resumed': [{'commit': COMMIT, 'dirty': True}]}),
    ('two-commits', {'resumed': [{'commit': 'f' * 40, 'dirty': False}]}),
  ],
)
def test_refused_unless_allowed_and_then_marked(
  tmp_path, out, capsys, mark, changes
):
  make_run(tmp_path / 'runs/bad', **changes)
  make_run(tmp_path / 'runs/good', seed=1)
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 1
  err = capsys.readouterr().err
  assert f'is left out: {mark}' in err
  assert f'--allow={mark}' in err
  assert str(tmp_path / 'runs/bad') in err
  assert err.count('\n') == 1
  # The good one is in all the same.
  [good] = results.read(one_file(out))
  assert good.id == 'base/seed-1'
  allow = f'--allow={mark}'
  assert run_collect(tmp_path / 'runs', f'--out={out}', allow) == 0
  marks = [result.run['marked'] for result in results.read(one_file(out))]
  assert marks == [[mark], []]


def test_a_member_apart_alone_is_unfinished_and_both_are_one_run(
  tmp_path, out, capsys
):
  for member in (0, 1):
    make_run(tmp_path / 'a', suffix=f'-{member}', member=member, members=2)
    status = run_collect(tmp_path / 'a', f'--out={out}')
    assert status == (1 if member == 0 else 0)
  assert 'unfinished' in capsys.readouterr().err
  assert len(results.read(one_file(out))) == 1


def test_a_run_that_failed_before_it_began_is_named(tmp_path, out, capsys):
  make_run(tmp_path / 'runs/a')
  (tmp_path / 'runs/b').mkdir()
  (tmp_path / 'runs/b/log.txt').write_text('it is too hot')
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 1
  err = capsys.readouterr().err
  assert f'{tmp_path / "runs/b"} is left out: it failed, see its log.txt' in err
  assert len(results.read(one_file(out))) == 1


def says(capsys, status, *words):
  err = capsys.readouterr().err
  assert status == 2
  assert err.startswith('scripts.collect: ')
  assert err.count('\n') == 1
  for word in words:
    assert word in err


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda path: path.unlink(), 'has no run.json'),
    (lambda path: path.write_text(path.read_text()[:90]), 'damaged run.json'),
    (lambda path: path.write_text('[]'), 'is not what a run leaves'),
    (lambda path: path.write_text('{"schema": 1}'), 'run it again'),
    (
      lambda path: path.with_name('rows.jsonl').write_text('5\n'),
      'line 1: not a row',
    ),
    (lambda path: path.with_name('rows.jsonl').unlink(), 'has no rows.jsonl'),
  ],
)
def test_a_damaged_workdir_is_refused_and_the_others_go_in(
  tmp_path, out, capsys, damage, words
):
  damage(make_run(tmp_path / 'runs/a') / 'run.json')
  make_run(tmp_path / 'runs/b', seed=1)
  allow = [f'--allow={mark}' for mark in collect.ALLOWABLE]
  assert run_collect(tmp_path / 'runs', f'--out={out}', *allow) == 1
  err = capsys.readouterr().err
  assert words in err
  assert str(tmp_path / 'runs/a') in err
  assert err.count('\n') == 1
  assert [result.id for result in results.read(one_file(out))] == [
    'base/seed-1'
  ]


def test_no_run_at_all(tmp_path, out, capsys):
  status = run_collect(tmp_path, f'--out={out}')
  says(capsys, status, 'holds no run', 'experiments.run')


def test_two_runs_of_one_point(tmp_path, out, capsys):
  make_run(tmp_path / 'a')
  again = make_run(tmp_path / 'b', started='2026-02-02T00:00:00+00:00')
  status = run_collect(tmp_path / 'a', again, f'--out={out}')
  says(capsys, status, 'two runs of imagenet_codistill:laptop base/seed-0')
  assert not out.exists()
  run_collect(tmp_path / 'a', f'--out={out}')
  before = one_file(out).read_bytes()
  status = run_collect(again, f'--out={out}')
  says(capsys, status, 'two runs', '--replace')
  assert one_file(out).read_bytes() == before
  assert run_collect(again, f'--out={out}', '--replace') == 0
  [result] = results.read(one_file(out))
  assert result.run['started'].startswith('2026-02-02')


def test_seeds_of_one_point_with_different_configs(tmp_path, out, capsys):
  make_run(tmp_path / 'a')
  workdir = make_run(tmp_path / 'b', seed=1)
  run = json.loads((workdir / 'run.json').read_text())
  # As if the named config had changed between the two.
  run['config']['batch_size'] = 64
  (workdir / 'run.json').write_text(json.dumps(run))
  status = run_collect(tmp_path / 'a', workdir, f'--out={out}')
  says(capsys, status, 'different configs', 'base/seed-0', 'base/seed-1')


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda run: run | {'schema': SCHEMA_VERSION + 1}, 'has schema 2'),
    (lambda run: run.pop('overrides') and run, 'run it again'),
  ],
)
def test_a_run_of_other_code(tmp_path, out, capsys, change, words):
  workdir = make_run(tmp_path / 'a', point={'num_devices': 1})
  run = json.loads((workdir / 'run.json').read_text())
  (workdir / 'run.json').write_text(json.dumps(change(run)))
  assert run_collect(workdir, f'--out={out}') == 1
  assert words in capsys.readouterr().err


def test_no_evaluations(tmp_path, out, capsys):
  workdir = make_run(tmp_path / 'a')
  (workdir / 'rows.jsonl').write_text('')
  assert run_collect(workdir, f'--out={out}') == 1
  assert 'has no evaluations' in capsys.readouterr().err


def test_a_cut_last_line_is_left_out_with_a_warning(tmp_path, out, capsys):
  workdir = make_run(tmp_path / 'a')
  rows = workdir / 'rows.jsonl'
  rows.write_bytes(rows.read_bytes()[:-20])
  assert run_collect(workdir, f'--out={out}') == 0
  assert 'dropped a cut last line' in capsys.readouterr().err
  assert len(results.read(one_file(out))[0].rows) == 11


def test_a_damaged_file_of_results_is_not_overwritten(tmp_path, out, capsys):
  workdir = make_run(tmp_path / 'a')
  run_collect(workdir, f'--out={out}')
  path = one_file(out)
  text = 'not JSON\n' + path.read_text()
  path.write_text(text)
  says(capsys, run_collect(workdir, f'--out={out}'), 'line 1: not a row')
  assert path.read_text() == text


# Churn.


def test_seeds_of_a_point_are_compared_pair_by_pair(tmp_path, out):
  folder = make_retrains(tmp_path)
  # Another point, which is a retrain of none of them.
  other = make_run(folder / 'x', 'imagenet_sync', point={'batch_size': 16})
  store(other, member_0=[0.9] * 4)
  assert run_collect(folder, f'--out={out}') == 0
  runs = {run.id: run for run in results.read(one_file(out))}
  found = [
    (row['id'], row['other'], row['step'], row['member'])
    for run in runs.values()
    for row in run.churn
  ]
  assert found == [
    (f'base/seed-{one}', f'base/seed-{two}', step, 0)
    for one, two in ((0, 1), (0, 2), (1, 2))
    for step in (20, 40)
  ]
  churn = [row for row in runs['base/seed-0'].churn if row['step'] == 40]
  differences = [row['total_variation'] for row in churn]
  assert differences == pytest.approx([0.1, 0.2], rel=1e-6)
  # 0.45, 0.55, 0.65: from seed 0 on, one of four is decided otherwise.
  assert [row['changed_decisions'] for row in churn] == [0.25, 0.25]
  assert all(row['kind'] != 'churn' for row in runs['base/seed-0'].rows)


def test_evaluations_of_two_classes_get_their_auc(tmp_path, out):
  workdir = make_run(tmp_path / 'a')
  store(workdir, 40, member_0=[0, 1, 1, 0], ensemble=[0.1, 0.1, 0.3, 0.2])
  store(workdir, 20, member_1=[1, 0, 0, 1])
  assert run_collect(workdir, f'--out={out}') == 0
  [result] = results.read(one_file(out))
  found = {
    (r['step'], r['member']): r['auc'] for r in result.rows if 'auc' in r
  }
  assert found == {(40, 0): 1, (40, 'ensemble'): 2.5 / 4, (20, 1): 0}


def test_more_classes_have_churn_and_no_auc(tmp_path, out):
  for seed in range(2):
    workdir = make_run(tmp_path / 'runs' / str(seed), seed=seed)
    store(workdir, member_0=np.eye(3)[[0, 1, 2, seed]])
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 0
  [one, other] = results.read(one_file(out))
  assert [row['total_variation'] for row in one.churn] == [0.25]
  assert other.churn == ()
  assert not any('auc' in row for row in one.rows)


def test_what_is_collected_again_keeps_its_churn(tmp_path, out):
  folder = make_retrains(tmp_path)
  assert run_collect(folder, folder / '0', f'--out={out}') == 0
  before = one_file(out).read_bytes()
  assert run_collect(folder / '1', f'--out={out}') == 0
  assert one_file(out).read_bytes() == before
  assert results.lines(results.read(one_file(out))) == before.decode()
  # A run in the place of another has no churn of that other's.
  fresh = make_run(
    tmp_path / 'new', 'imagenet_sync', 1, members=1, started='later'
  )
  assert run_collect(fresh, f'--out={out}', '--replace') == 0
  pairs = {
    (row['id'], row['other'])
    for run in results.read(one_file(out))
    for row in run.churn
  }
  assert pairs == {('base/seed-0', 'base/seed-2')}


def test_retrains_on_other_examples_are_one_sentence(tmp_path, out, capsys):
  for seed in range(2):
    workdir = make_run(tmp_path / 'runs' / str(seed), seed=seed)
    store(workdir, labels=np.roll(LABELS, seed), member_0=[0.5] * 4)
  assert run_collect(tmp_path / 'runs', f'--out={out}') == 2
  err = capsys.readouterr().err
  assert 'were evaluated on different examples' in err
  assert err.count('\n') == 1
  assert not out.exists()


def test_damaged_predictions_are_one_sentence(tmp_path, out, capsys):
  workdir = make_run(tmp_path / 'a')
  store(workdir, member_0=[0.5] * 4)
  (workdir / 'predictions/step-40/member-0.npy').write_bytes(b'')
  assert run_collect(workdir, f'--out={out}') == 1
  assert 'missing or damaged; remove' in capsys.readouterr().err
