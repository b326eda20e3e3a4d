"""Reading committed results: what is wrong with a file is one sentence."""

import pytest
from collected import make_run

from experiments import results
from scripts import collect

BARE = '{"kind": "run", "schema": 1, "id": "a"}\n'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  folder = tmp_path_factory.mktemp('results')
  for seed in range(2):
    make_run(folder / f'runs/{seed}', seed=seed)
  collect.collect([folder / 'runs'], folder / 'out', allow=(), replace=False)
  [path] = folder.glob('out/imagenet_codistill-laptop.jsonl')
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
    (
      lambda text: text.replace('"schema": 1', '"schema": 2', 1),
      'of schema 2, and',
    ),
    (lambda text: text + BARE, 'without experiment, overrides'),
    (lambda text: text * 2, 'two runs of base/seed-0; remove one'),
    (lambda text: text.partition('\n')[2], 'seed-0. without its provenance'),
  ],
)
def test_a_damaged_file_is_one_sentence(path, text, damage, words):
  path.write_text(damage(text), encoding='utf-8')
  with pytest.raises(ValueError, match=words):
    results.read(path)


def test_a_cut_last_line_is_dropped_with_a_warning(path):
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.warns(UserWarning, match='dropped a cut last line'):
    cut = results.read(path)
  assert [len(result.rows) for result in cut] == [12, 11]


def test_names_of_points():
  assert results.point_name({}) == 'base'
  point = {'codistill.reload_interval_steps': 10, 'model.dnn.hidden': (2, 3)}
  assert results.point_name(point) == 'reload_interval_steps=10,hidden=(2,3)'
  # They are folders, and Orbax reads nothing below brackets.
  point = {'data.train_split': 'train[:50%]'}
  assert results.point_name(point) == 'train_split=train(:50%)'


def test_numbers_in_names_are_in_their_order():
  wanted = ['9', 'no peers', 'reload 1', 'reload 50', 'reload 100']
  names = [wanted[i] for i in (4, 2, 3, 1, 0)]
  assert sorted(names, key=results.natural) == wanted
