"""From workdirs to committed results: runs are taken, refused, marked."""

import functools
import json
import shutil

import numpy as np
import pytest
from collected import COMMIT, LABELS, make_retrains, make_run, make_seeds, store
from in_process import complaint, run_script

from experiments import config as config_lib
from experiments import results
from experiments.record import read_run
from experiments.runs import identity_of
from scripts import collect


def run_collect(out, *arguments):
  return run_script(collect, f'--out={out}', *arguments)


def one_file(folder):
  [path] = folder.glob('*.jsonl')
  return path


def read(folder):
  return results.read(one_file(folder))


def ids_in(folder):
  return [result.id for result in read(folder)]


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'results'


@pytest.fixture
def refusal(out, capsys):
  return functools.partial(complaint, capsys, collect, f'--out={out}', status=2)


def test_a_run_is_its_provenance_and_its_evaluations(tmp_path, out):
  point = {'data.data_dir': '/home/somebody/data'}
  workdir = make_run(tmp_path / 'a', seed=2, point=point)
  # A copy is no part of it.
  shutil.copy(workdir / 'rows.jsonl', workdir / 'rows-copy.jsonl')
  assert run_collect(out, workdir) == 0
  assert one_file(out).name == 'imagenet_codistill-laptop.jsonl'
  [result] = read(out)
  assert (result.id, result.point) == ('base/seed-2', {})
  assert (result.run['commit'], result.run['marked']) == (COMMIT, [])
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
  assert 'all_packages' not in result.run
  # No path and no name of the machine.
  text = one_file(out).read_text()
  for word in ('somebody', str(tmp_path), 'argv'):
    assert word not in text


def test_own_data_are_another_point_in_any_folder(tmp_path, out, refusal):
  mine, others = ({'fingerprint': 8 * letters} for letters in ('abcd', 'ef01'))
  own = {'data.name': 'prepared', 'data.path': '/home/somebody/clicks'}
  for seed, point, data in (
    (0, own, mine),
    (1, own | {'data.path': '/elsewhere'}, mine),
    (0, own, others),
    (0, {}, {}),
  ):
    folder = tmp_path / 'runs' / f'{len(data)}-{seed}-{data == mine}'
    make_run(folder, seed=seed, point=point, data=data)
  assert run_collect(out, tmp_path / 'runs') == 0
  assert [result.id for result in read(out)] == [
    'base/seed-0',
    'fingerprint=abcdabcdabcd,name=prepared/seed-0',
    'fingerprint=abcdabcdabcd,name=prepared/seed-1',
    'fingerprint=ef01ef01ef01,name=prepared/seed-0',
  ]
  for word in ('somebody', 'elsewhere'):
    assert word not in one_file(out).read_text()
  # The variant's own name says nothing, but both fingerprints are known.
  for seed, data in ((2, mine), (3, others)):
    other = make_run(tmp_path / f'other{seed}', seed=seed, data=data)
    if seed == 2:
      assert run_collect(out, other) == 0
  assert 'was run on other data than another seed' in refusal(other)


def test_where_a_teacher_lies_is_no_matter(tmp_path, out):
  point = {'codistill.frozen_dir': '/home/somebody/runs/pair'}
  assert run_collect(out, make_run(tmp_path / 'a', point=point)) == 0
  [result] = read(out)
  assert result.id == 'frozen_dir=pair/seed-0'
  assert 'somebody' not in one_file(out).read_text()


def test_students_are_seeds_of_a_point_if_their_teachers_are(tmp_path, out):
  changes = [({}, None), ({'batch_size': 16}, None), ({}, 'b' * 64)]
  for seed in (0, 1):
    for kind, (change, fingerprint) in enumerate(changes):
      data = {'fingerprint': fingerprint or 'a' * 64}
      # Folders of sweeps are called by their seeds.
      pair = tmp_path / f'{kind}/seed-{seed}'
      make_run(pair, point=change, seed=seed, data=data)
      taught_by = identity_of(pair)
      make_run(
        tmp_path / f'students/{kind}-{seed}',
        point={'codistill.frozen_dir': str(pair)},
        seed=seed,
        taught_by=taught_by,
      )
  assert run_collect(out, tmp_path / 'students') == 0
  ids = [result.id for result in read(out)]
  assert len({one.split('/')[0] for one in ids}) == len(changes)
  assert len(ids) == 2 * len(changes)


def test_rows_from_elsewhere_are_called_by_the_variant_that_they_are(
  tmp_path, out, refusal
):
  # A run of another variant, with every key changed.
  _, double = config_lib.points('imagenet_sync:smoke')
  config = config_lib.load_changed('imagenet_sync:smoke', double)
  settings = {
    key: value for key, value in config.to_dict().items() if key != 'seed'
  }
  folder = make_retrains(tmp_path, point=settings, variant='reduced')
  elsewhere = tmp_path / 'elsewhere'
  assert run_collect(elsewhere, folder) == 0
  [path] = elsewhere.glob('*.jsonl')
  # A file that is named twice is there once.
  assert run_collect(out, path, path, '--variant=smoke') == 0
  assert one_file(out).name == 'imagenet_sync-smoke.jsonl'
  for old, new in zip(read(elsewhere), read(out), strict=True):
    assert new.point == double
    assert new.run['collected_as'] == 'reduced'
    for key in ('commit', 'started', 'packages', 'config_hash', 'seed'):
      assert new.run[key] == old.run[key]
    for one, other in zip(
      (*old.rows, *old.churn), (*new.rows, *new.churn), strict=True
    ):
      names = {'id', 'other'}
      assert {k: one[k] for k in one.keys() - names} == {
        k: other[k] for k in other.keys() - names
      }
  ids = ids_in(out)
  assert ids == [f'{results.point_name(double)}/seed-{k}' for k in range(3)]
  assert [row['other'] for row in read(out)[0].churn[::2]] == ids[1:]
  assert 'is no point of imagenet_sync:laptop' in refusal(
    path, '--variant=laptop'
  )
  assert "no variant 'huge'" in refusal(path, '--variant=huge')
  marked = tmp_path / 'marked.jsonl'
  text = path.read_text()
  marked.write_text(text.replace('"marked": []', '"marked": ["dirty"]'))
  assert '--allow=dirty' in refusal(marked, '--variant=smoke')
  with pytest.raises(SystemExit, match='2'):
    run_collect(out, path)
  with pytest.raises(SystemExit, match='2'):
    run_collect(out, folder, '--variant=smoke')


def test_a_seed_of_newer_code_joins_those_that_lack_a_key_of_it(tmp_path, out):
  assert run_collect(out, make_run(tmp_path / 'a')) == 0
  newer = make_run(tmp_path / 'b', seed=1, named={'codistill.new_key': 1})
  assert run_collect(out, newer) == 0
  assert ids_in(out) == ['base/seed-0', 'base/seed-1']


def test_a_second_collect_in_any_order_changes_nothing(tmp_path, out):
  # Keys of the machine are no point of a sweep.
  machine = {'num_devices': 1, 'checkpoint_interval_steps': 5}
  for seed, point in ((0, {}), (2, machine), (10, {})):
    make_run(tmp_path / f'runs/seed-{seed}', seed=seed, point=point)
  point = {'codistill.reload_interval_steps': 10}
  stale = make_run(tmp_path / 'runs/x', point=point)
  assert run_collect(out, tmp_path / 'runs') == 0
  before = one_file(out).read_bytes()
  assert run_collect(out, tmp_path / 'runs') == 0
  assert run_collect(out, stale, tmp_path / 'runs/seed-2') == 0
  assert one_file(out).read_bytes() == before
  seeds = [f'base/seed-{seed}' for seed in (0, 2, 10)]
  assert ids_in(out) == [*seeds, 'reload_interval_steps=10/seed-0']
  assert [path.name for path in out.iterdir()] == [one_file(out).name]
  for folder in sorted(tmp_path.glob('runs/*'), reverse=True):
    run_collect(tmp_path / 'two', folder)
  assert one_file(tmp_path / 'two').read_bytes() == before


def test_refused_unless_allowed_and_then_marked(tmp_path, capsys):
  good = make_run(tmp_path / 'good', seed=1)
  for number, (mark, changes) in enumerate(
    (
      ('unfinished', {'status': 'running'}),
      ('unfinished', {'status': 'diverged', 'diverged': {'0': {'step': 3}}}),
      ('dirty', {'dirty': True}),
      ('no-commit', {'commit': None, 'dirty': None}),
      ('dirty', {'resumed': [{'commit': COMMIT, 'dirty': True}]}),
      ('two-commits', {'resumed': [{'commit': 'f' * 40, 'dirty': False}]}),
    )
  ):
    bad = make_run(tmp_path / f'bad-{number}', **changes)
    out = tmp_path / f'out-{number}'
    assert run_collect(out, bad, good) == 1
    err = capsys.readouterr().err
    assert f'{bad} is left out: {mark}' in err
    assert f'--allow={mark}' in err
    assert err.count('\n') == 1
    # The good one is collected.
    assert ids_in(out) == ['base/seed-1']
    assert run_collect(out, bad, good, f'--allow={mark}') == 0
    assert [result.run['marked'] for result in read(out)] == [[mark], []]


def test_a_member_apart_alone_is_unfinished(tmp_path, out, capsys):
  for member, status in ((0, 1), (1, 0)):
    make_run(tmp_path / 'a', suffix=f'-{member}', member=member, members=2)
    assert run_collect(out, tmp_path / 'a') == status
  assert 'unfinished' in capsys.readouterr().err
  # Both are one run.
  assert len(read(out)) == 1


def test_a_member_apart_that_lost_its_end_is_named(tmp_path, out, capsys):
  for member in (0, 1):
    make_run(tmp_path / 'a', suffix=f'-{member}', member=member)
  cut_short(tmp_path / 'a', 'rows-1.jsonl')
  assert run_collect(out, tmp_path / 'a') == 1
  words = 'evaluations of member 1 end at step 30; restore rows-1.jsonl'
  assert words in capsys.readouterr().err


def test_a_member_that_died_on_purpose_has_no_end_to_lose(tmp_path, out):
  fault = {'fault.kind': 'death', 'fault.member': 1, 'fault.step': 35}
  workdir = make_run(tmp_path / 'a', point=fault)
  cut_short(workdir, whos=(1, 'ensemble'))
  assert run_collect(out, workdir) == 0
  [result] = read(out)
  final = [row['member'] for row in result.rows if row['kind'] == 'final']
  assert (final, result.run['marked']) == ([0], [])


def never_began(workdir):
  for path in workdir.iterdir():
    path.unlink()
  (workdir / 'log.txt').write_text('it is too hot')


def damage_predictions(workdir):
  store(workdir, {0: [0.5] * 4})
  (workdir / 'predictions/step-40/member-0.npy').write_bytes(b'')


def cut_short(workdir, name='rows.jsonl', whos=(0, 1, 'ensemble')):
  lines = (workdir / name).read_text().splitlines(keepends=True)
  rows = map(json.loads, lines)
  kept = [
    line
    for line, row in zip(lines, rows, strict=True)
    if row['kind'] != 'final' or row['member'] not in whos
  ]
  (workdir / name).write_text(''.join(kept))


def stop_at_once(workdir):
  make_run(workdir, status='interrupted')
  (workdir / 'rows.jsonl').write_text('')


def write(name, text):
  return lambda workdir: (workdir / name).write_text(text)


def edit(**changes):
  """Changes provenance by hand; drops what is None."""

  def damage(workdir):
    run = read_run(workdir / 'run.json')
    for key, value in changes.items():
      run[key] = value
      if value is None:
        del run[key]
    (workdir / 'run.json').write_text(json.dumps(run))

  return damage


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (never_began, 'is left out: it failed before it began; see its log.txt'),
    (lambda workdir: (workdir / 'run.json').unlink(), 'has no run.json'),
    (lambda workdir: (workdir / 'rows.jsonl').unlink(), 'has no rows.jsonl'),
    (write('run.json', '{"schema": 1, "experiment": '), 'run it again'),
    (
      lambda workdir: (workdir / 'run.json').write_bytes(b'{"\xff'),
      'it is not a JSON object',
    ),
    (write('run.json', '[]'), 'it is not a JSON object'),
    (write('run.json', '{"schema": 1}'), "'experiment' is a required property"),
    (edit(overrides=None), 'keys it changed, because its code'),
    (write('rows.jsonl', '5\n'), 'line 1: not a row'),
    (write('rows.jsonl', ''), 'evaluations of member 0 end at step 0'),
    (stop_at_once, 'has no evaluations'),
    (cut_short, 'evaluations of member 0 end at step 30; restore rows.jsonl'),
    (
      lambda workdir: cut_short(workdir, whos=(1,)),
      'evaluations of member 1 end at step 30; restore rows.jsonl',
    ),
    (damage_predictions, 'missing or damaged; remove'),
    # Other code made it.
    (edit(schema=2), 'has schema 2'),
  ],
)
def test_a_damaged_workdir_is_left_out(tmp_path, out, capsys, damage, words):
  damage(make_run(tmp_path / 'runs/a', point={'num_devices': 1}))
  make_run(tmp_path / 'runs/b', seed=1)
  allow = [f'--allow={mark}' for mark in collect.ALLOWABLE]
  assert run_collect(out, tmp_path / 'runs', *allow) == 1
  err = capsys.readouterr().err
  assert words in err
  assert str(tmp_path / 'runs/a') in err
  assert err.count('\n') == 1
  assert ids_in(out) == ['base/seed-1']


def test_no_run_or_two_of_one_point(tmp_path, out, refusal):
  said = refusal(tmp_path)
  assert 'holds no run' in said
  assert 'experiments.run' in said
  one = make_run(tmp_path / 'a')
  again = make_run(tmp_path / 'b', started='2026-02-02T00:00:00+00:00')
  two = 'two runs of imagenet_codistill:laptop base/seed-0'
  assert two in refusal(one, again)
  assert not out.exists()
  run_collect(out, one)
  before = one_file(out).read_bytes()
  said = refusal(again)
  assert two in said
  assert '--replace' in said
  assert one_file(out).read_bytes() == before
  # Of two that are collected now, neither replaces the other.
  assert two in refusal(one, again, '--replace')
  assert run_collect(out, again, '--replace') == 0
  [result] = read(out)
  assert result.run['started'].startswith('2026-02-02')


def test_seeds_with_different_examples_or_configs(tmp_path, out, refusal):
  one, two = make_run(tmp_path / 'a'), make_run(tmp_path / 'b', seed=1)
  store(one, {0: [0.5] * 4})
  store(two, {0: [0.5] * 4}, labels=np.roll(LABELS, 1))
  assert 'were evaluated on different examples' in refusal(one, two)
  # As if the named config had changed between the two.
  run = read_run(two / 'run.json')
  run['config']['batch_size'] = 64
  (two / 'run.json').write_text(json.dumps(run))
  said = refusal(one, two)
  for words in ('different configs', 'base/seed-0', 'base/seed-1'):
    assert words in said
  assert not out.exists()


def test_a_cut_last_line_is_left_out_with_a_warning(
  tmp_path, out, capsys, refusal
):
  workdir = make_run(tmp_path / 'a', status='stopped')
  rows = workdir / 'rows.jsonl'
  rows.write_bytes(rows.read_bytes()[:-20])
  assert run_collect(out, workdir, '--allow=unfinished') == 0
  assert 'dropped a cut last line' in capsys.readouterr().err
  path = one_file(out)
  assert len(results.read(path)[0].rows) == 11
  # One that is done has lost the end of its ensemble.
  done = make_run(tmp_path / 'b')
  rows = done / 'rows.jsonl'
  rows.write_bytes(rows.read_bytes()[:-20])
  assert run_collect(out, done) == 1
  wanted = 'evaluations of the ensemble end at step 30'
  assert wanted in capsys.readouterr().err
  # A damaged file of results is not overwritten.
  path.write_text(text := 'not JSON\n' + path.read_text())
  assert 'line 1: not a row' in refusal(make_run(tmp_path / 'c', seed=1))
  assert path.read_text() == text


# Churn.


def test_seeds_of_a_point_are_compared_pair_by_pair(tmp_path, out):
  folder = make_retrains(tmp_path)
  # Another point, which is a retrain of none of them.
  other = make_run(folder / 'x', 'imagenet_sync', point={'batch_size': 16})
  store(other, {0: [0.9] * 4})
  assert run_collect(out, folder) == 0
  runs = {run.id: run for run in read(out)}
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
  # 0.45, 0.55, 0.65: one of four is decided differently from seed 0 on.
  assert [row['changed_decisions'] for row in churn] == [0.25, 0.25]
  assert all(row['kind'] != 'churn' for row in runs['base/seed-0'].rows)


def test_only_evaluations_of_two_classes_get_their_auc(tmp_path, out):
  workdir = make_run(tmp_path / 'a')
  store(workdir, {0: [0, 1, 1, 0], 'ensemble': [0.1, 0.1, 0.3, 0.2]})
  store(workdir, {1: [1, 0, 0, 1]}, 20)
  assert run_collect(out, workdir) == 0
  [result] = read(out)
  found = {
    (r['step'], r['member']): r['auc'] for r in result.rows if 'auc' in r
  }
  assert found == {(40, 0): 1, (40, 'ensemble'): 2.5 / 4, (20, 1): 0}
  # More classes have churn and no AUC.
  runs, more = make_seeds(tmp_path / 'runs', 2), out.with_name('more')
  for seed in range(2):
    store(runs / str(seed), {0: np.eye(3)[[0, 1, 2, seed]]})
  assert run_collect(more, runs) == 0
  [one, other] = read(more)
  assert [row['total_variation'] for row in one.churn] == [0.25]
  assert other.churn == ()
  assert not any('auc' in row for row in one.rows)


def test_what_is_collected_again_keeps_its_churn(tmp_path, out):
  folder = make_retrains(tmp_path)
  assert run_collect(out, folder, folder / '0') == 0
  before = one_file(out).read_bytes()
  assert run_collect(out, folder / '1') == 0
  assert one_file(out).read_bytes() == before
  assert results.lines(read(out)) == before.decode()
  # A run that replaces another does not get the other's churn.
  new = {'members': 1, 'started': 'later'}
  fresh = make_run(tmp_path / 'new', 'imagenet_sync', seed=1, **new)
  assert run_collect(out, fresh, '--replace') == 0
  churn = [row for run in read(out) for row in run.churn]
  pairs = {(row['id'], row['other']) for row in churn}
  assert pairs == {('base/seed-0', 'base/seed-2')}
