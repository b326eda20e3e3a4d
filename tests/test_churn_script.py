"""Churn of any runs, as a table; what cannot be compared is one sentence."""

import re
import shutil

import numpy as np
import pytest
from collected import LABELS, make_retrains, make_run, store
from commands import contents
from in_process import complaint, run_script

from scripts import churn


@pytest.fixture(autouse=True)
def wide(monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')


def tables(out):
  """The lines' cells, by recipe."""
  found, name = {}, None
  for line in map(str.strip, out.splitlines()):
    if re.match(r'\w+:', line):
      name = line
      found[name] = []
    elif re.match(r'\d+ ', line):
      found[name].append(re.split(r' {2,}', line))
  return found


def test_retrains_are_compared_at_their_last_step(tmp_path, capsys):
  folder = make_retrains(tmp_path)
  before = contents(folder)
  assert run_script(churn, folder) == 0
  captured = capsys.readouterr()
  assert captured.err == ''
  p = np.array([0.1, 0.2, 0.45, 0.3]) + 0.1 * np.arange(3)[:, None]
  losses = -np.log(np.where(LABELS == 1, p, 1 - p)).mean(axis=1)
  [line] = tables(captured.out)['imagenet_sync:laptop']
  assert line == [
    *('40', '0', '3'),
    # 0.1, 0.2, 0.1 between three runs, of which the first decides differently.
    *('0.1333 ± 0.0500', '16.67 ± 12.50'),
    f'{losses.mean():.4f} ± {np.ptp(losses) / 2:.4f}',
    *('66.67 ± 12.50', '0.7500 ± 0.0000'),
  ]
  assert contents(folder) == before


def test_all_steps_and_each_recipe_and_member(tmp_path, capsys):
  make_retrains(tmp_path)
  make_retrains(tmp_path, 'imagenet_codistill', members=2)
  workdirs = [*tmp_path.glob('*/*'), tmp_path / 'imagenet_sync/1']
  assert run_script(churn, *workdirs, '--all-steps') == 0
  found = {
    recipe: [line[:3] for line in lines]
    for recipe, lines in tables(capsys.readouterr().out).items()
  }
  assert found == {
    recipe: [[step, who, '3'] for step in ('20', '40') for who in whos]
    for recipe, whos in (
      ('imagenet_sync:laptop', ['0']),
      ('imagenet_codistill:laptop', ['0', '1', 'ensemble']),
    )
  }


def test_what_only_machines_differ_in_is_one_recipe(tmp_path, capsys):
  for seed, point in enumerate(({}, {'num_devices': 1})):
    workdir = make_run(tmp_path / str(seed), seed=seed, point=point)
    store(workdir, {0: np.eye(3)[[0, 1, 2, seed]]})
  assert run_script(churn, tmp_path) == 0
  [[line]] = tables(capsys.readouterr().out).values()
  assert line[3:5] == ['0.2500', '25.00']
  assert line[-1] == '–'


def test_a_run_without_predictions_is_left_out(tmp_path, capsys):
  folder = make_retrains(tmp_path)
  shutil.rmtree(folder / '1/predictions')
  assert run_script(churn, folder) == 0
  captured = capsys.readouterr()
  assert f'{folder / "1"} is left out: it has stored no' in captured.err
  [[line]] = tables(captured.out).values()
  assert line[2] == '2'
  for seed in (0, 2):
    shutil.rmtree(folder / str(seed) / 'predictions')
  assert run_script(churn, folder) == 1
  assert capsys.readouterr().err.count('\n') == 3


def test_a_copy_of_a_run_is_no_retrain(tmp_path, capsys):
  folder = make_retrains(tmp_path)
  shutil.copytree(folder / '1', folder / '1-copy')
  assert run_script(churn, folder) == 0
  captured = capsys.readouterr()
  assert (
    f'1-copy is left out: it has the seed of {folder / "1"}' in captured.err
  )
  [[line]] = tables(captured.out).values()
  assert line[2:4] == ['3', '0.1333 ± 0.0500']
  shutil.rmtree(folder / '0')
  shutil.rmtree(folder / '2')
  assert run_script(churn, folder) == 1
  assert 'is the only run of its recipe' in capsys.readouterr().err


def test_runs_on_different_data_are_no_retrains(tmp_path, capsys):
  ours, theirs = 8 * 'abcd', 8 * 'ef01'
  for seed, data in enumerate((ours, ours, theirs, theirs)):
    workdir = tmp_path / str(seed)
    store(make_run(workdir, seed=seed, data={'fingerprint': data}), {0: LABELS})
  assert run_script(churn, tmp_path) == 0
  found = tables(capsys.readouterr().out)
  assert [line[2] for [line] in found.values()] == ['2', '2']
  assert [name[-12:] for name in found] == [ours[:12], theirs[:12]]


def other_steps(folder):
  for step in (20, 40):
    path = folder / f'2/predictions/step-{step}'
    path.rename(path.with_name(f'step-{step + 1}'))


def no_run(folder):
  for path in folder.rglob('*.json*'):
    path.unlink()


def one_run(folder):
  for seed in (0, 2):
    shutil.rmtree(folder / str(seed))


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    (
      lambda folder: np.save(folder / '2/predictions/labels.npy', 1 - LABELS),
      'were evaluated on different examples',
    ),
    (other_steps, 'have no step in common'),
    (
      lambda folder: (folder / '2/predictions/labels.npy').write_bytes(b''),
      'is missing or damaged; remove',
    ),
    (no_run, 'holds no run'),
    # It counts once, however often it is named.
    (one_run, 'is the only run of its recipe'),
    (lambda folder: (folder / '1/run.json').write_text('{'), 'is damaged'),
  ],
)
def test_what_cannot_be_compared(tmp_path, capsys, change, sentence):
  folder = make_retrains(tmp_path)
  change(folder)
  assert sentence in complaint(capsys, churn, folder, folder)
