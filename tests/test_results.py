"""Reading committed results; an error in a file is one sentence."""

import json
import re

import pytest
from collected import make_seeds, rows_in

from experiments import config as config_lib
from experiments import results

BARE = '{"kind": "run", "schema": 1, "id": "a"}\n'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  folder = make_seeds(tmp_path_factory.mktemp('runs'), 2)
  rows_in(folder)
  [path] = folder.glob('results/*.jsonl')
  return path.read_text(encoding='utf-8')


@pytest.fixture
def path(text, tmp_path):
  path = tmp_path / 'imagenet_codistill-laptop.jsonl'
  path.write_text(text, encoding='utf-8')
  return path


def test_written_again_it_is_the_same_and_a_folder_has_it_by_config(path):
  assert results.lines(results.read(path)) == path.read_text(encoding='utf-8')
  (path.parent / 'imagenet_sync-reduced.jsonl').write_text('')
  folder = results.read_folder(path.parent, 'laptop')
  assert list(folder) == ['imagenet_codistill']
  assert len(folder['imagenet_codistill']) == 2
  with pytest.raises(FileNotFoundError, match=r'scripts\.collect WORKDIR'):
    results.read_folder(path.parent / 'nowhere', 'laptop')


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda text: '', 'is empty; fill it with'),
    (lambda text: '{"kind": \n' + text, 'line 1: not a row'),
    (lambda text: text + '5\n', 'line 27: not a row'),
    (lambda text: text.replace('schema": 1', 'schema": 2'), 'of schema 2, but'),
    (lambda text: text + BARE, 'without experiment, overrides'),
    (lambda text: text * 2, 'two runs of base/seed-0; remove one'),
    (lambda text: text.partition('\n')[2], 'seed-0. without its provenance'),
  ],
)
def test_a_damaged_file_is_one_sentence(path, text, damage, words):
  path.write_text(damage(text), encoding='utf-8')
  with pytest.raises(ValueError, match=words):
    results.read(path)


def test_names_of_points_and_their_order():
  assert results.point_name({}) == 'base'
  point = {'codistill.reload_interval_steps': 10, 'model.dnn.hidden': (2, 3)}
  assert results.point_name(point) == 'reload_interval_steps=10,hidden=(2,3)'
  # Names become folders, and Orbax reads nothing below brackets.
  point = {'data.train_split': 'train[:50%]'}
  assert results.point_name(point) == 'train_split=train(:50%)'
  wanted = ['9', 'no peers', 'reload 1', 'reload 50', 'reload 100']
  names = [wanted[i] for i in (4, 2, 3, 1, 0)]
  assert sorted(names, key=results.natural) == wanted


def test_committed_rows_say_what_made_them():
  paths = sorted(results.FOLDER.glob('*.jsonl'))
  assert paths
  gaps = {False: [], True: []}
  for path in paths:
    runs = results.read(path)
    assert results.lines(runs) == path.read_text(encoding='utf-8')
    for result in runs:
      run, config = result.run, result.run['config']
      assert path.stem == results.stem(run['experiment'], run['variant'])
      label = f'{run["experiment"]}:{run["variant"]}'
      fault = config.get('fault', {'kind': 'none'})
      if fault['kind'] == 'slow':
        # No sweep's: its members had processes of their own, which were stopped
        # when the first had finished.
        made = config_lib.load_changed(label, run['overrides'])
        plain = json.loads(json.dumps(made.to_dict()))
        assert results.recipe_of(plain) == results.recipe_of(config)
        assert run['marked'] == ['unfinished']
        continue
      point = config_lib.recorded_point(label, config)
      assert point is not None, (path.name, result.id)
      if fault['kind'] == 'rate' and run['status'] == 'diverged':
        # Only the member that was meant to has diverged.
        assert run['diverged'].keys() == {str(fault['member'])}
        assert run['marked'] == ['unfinished']
      else:
        assert (run['status'], run['marked']) == ('done', [])
      assert re.fullmatch('[0-9a-f]{40}', run['commit'])
      assert any(row['kind'] == 'final' for row in result.rows)
      # Very old gradients ruin a run, as intended.
      found = [row.get('memory_gap') for row in result.rows]
      stale = config.get('num_async_workers', 1) > 1
      gaps[stale] += [abs(gap) for gap in found if gap is not None]
  # Committed runs have the memories of evaluation.
  assert len(gaps[False]) > 1_000
  assert max(gaps[False]) < 0.05
  assert max(gaps[True]) < 0.06
