"""Reading committed results: what is wrong with a file is one sentence."""

import json

import pytest
from collected import make_run

from experiments import results
from experiments.record import SCHEMA_VERSION
from scripts import collect


@pytest.fixture
def path(tmp_path):
  make_run(tmp_path / 'runs/a')
  make_run(tmp_path / 'runs/b', seed=1)
  collect.collect(
    [tmp_path / 'runs'], tmp_path / 'out', allow=(), replace=False
  )
  return tmp_path / 'out/imagenet_codistill-laptop.jsonl'


def test_written_again_it_is_the_same(path):
  assert results.lines(results.read(path)) == path.read_text(encoding='utf-8')


def test_a_folder_by_config_and_variant(path):
  (path.parent / 'imagenet_sync-reduced.jsonl').write_text('')
  folder = results.read_folder(path.parent, 'laptop')
  assert list(folder) == ['imagenet_codistill']
  assert len(folder['imagenet_codistill']) == 2


def test_the_folder_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'scripts\.collect WORKDIR'):
    results.read_folder(tmp_path / 'nowhere', 'laptop')


def test_an_empty_file(path):
  path.write_text('')
  with pytest.raises(ValueError, match='is empty; fill it with'):
    results.read(path)


def test_a_cut_last_line_is_dropped_with_a_warning(path):
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.warns(UserWarning, match='dropped a cut last line'):
    cut = results.read(path)
  assert [len(result.rows) for result in cut] == [12, 11]


def test_a_line_that_is_no_row(path):
  path.write_text('{"kind": \n' + path.read_text())
  with pytest.raises(ValueError, match='line 1: not a row'):
    results.read(path)


def test_another_schema(path):
  lines = path.read_text().splitlines()
  run = json.loads(lines[0]) | {'schema': SCHEMA_VERSION + 1}
  path.write_text('\n'.join([json.dumps(run), *lines[1:]]) + '\n')
  with pytest.raises(ValueError, match='rows of schema 2, and this code'):
    results.read(path)


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    ('5', 'line 27: not a row'),
    (
      '{"kind": "run", "schema": 1, "id": "a"}',
      'without experiment, overrides',
    ),
  ],
)
def test_a_line_that_lacks_something(path, line, words):
  path.write_text(path.read_text() + line + '\n')
  with pytest.raises(ValueError, match=words):
    results.read(path)


def test_two_runs_of_one_point(path):
  path.write_text(path.read_text() * 2)
  with pytest.raises(ValueError, match='two runs of base/seed-0; remove one'):
    results.read(path)


def test_rows_without_their_run(path):
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[1:]))
  with pytest.raises(ValueError, match="'base/seed-0' without its provenance"):
    results.read(path)


def test_names_of_points():
  assert results.point_name({}) == 'base'
  point = {'codistill.reload_interval_steps': 10, 'model.dnn.hidden': (2, 3)}
  assert results.point_name(point) == 'reload_interval_steps=10,hidden=(2,3)'
  # They are folders, and Orbax reads nothing below brackets.
  point = {'data.train_split': 'train[:50%]'}
  assert results.point_name(point) == 'train_split=train(:50%)'


def test_numbers_in_names_are_in_their_order():
  names = ['reload 100', 'reload 1', 'reload 50', 'no peers', '9']
  assert sorted(names, key=results.natural) == [
    '9',
    'no peers',
    'reload 1',
    'reload 50',
    'reload 100',
  ]
