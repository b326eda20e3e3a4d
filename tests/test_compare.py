"""Runs side by side: from rows alone to a table and a picture."""

import pathlib
import subprocess
import sys

import pytest

from experiments.record import Record
from scripts import compare

ROOT = pathlib.Path(__file__).parent.parent
PNG = b'\x89PNG\r\n\x1a\n'


def make_run(
  workdir, name, members, *, burn_in, suffix='', only=None, finished=True
):
  """A workdir as experiments.run leaves it, with losses that say whose."""
  workdir.mkdir(parents=True, exist_ok=True)
  record = Record(workdir, suffix)
  config = {'codistill': {'burn_in_steps': burn_in, 'members': members}}
  record.write_run(
    {'experiment': name, 'variant': 'smoke', 'status': 'done', 'config': config}
  )
  mine = range(members) if only is None else [only]
  whos = [*mine, *(['ensemble'] if len(mine) > 1 else [])]
  for step in range(1, 9):
    for member in mine:
      record.write_row(
        {
          'step': step,
          'member': member,
          'kind': 'train',
          'task_loss': 2.0,
          'num_peers': (members - 1) * (step > burn_in),
        }
      )
    kinds = ['eval'] * (step % 4 == 0) + ['final'] * (step == 8 and finished)
    for kind in kinds:
      for who in whos:
        score = 0.1 * burn_in + (0.05 if who == 'ensemble' else 0.01 * who)
        record.write_row(
          {
            'step': step,
            'member': who,
            'kind': kind,
            'task_loss': 1 - score,
            'accuracy': score,
            'disagreement': 0.125 if who == 'ensemble' else None,
          }
        )
  record.close()
  return workdir


@pytest.fixture
def two_runs(tmp_path):
  return (
    make_run(tmp_path / 'sync', 'imagenet_sync', 1, burn_in=8),
    make_run(tmp_path / 'both', 'imagenet_codistill', 2, burn_in=3),
  )


def lines_of(text, name):
  return [line.split() for line in text.splitlines() if name in line.split()]


def test_a_line_for_each_member_the_ensemble_and_the_baseline(
  two_runs, tmp_path, capsys
):
  out = tmp_path / 'new' / 'curves.png'
  assert compare.main([*map(str, two_runs), f'--out={out}']) == 0
  shown = capsys.readouterr().out
  assert lines_of(shown, 'imagenet_sync:smoke') == [
    ['imagenet_sync:smoke', '0', '8', '80.00', '%', '0.2000', '–']
  ]
  name = 'imagenet_codistill:smoke'
  assert lines_of(shown, name) == [
    [name, '0', '8', '30.00', '%', '0.7000', '–'],
    [name, '1', '8', '31.00', '%', '0.6900', '–'],
    [name, 'ensemble', '8', '35.00', '%', '0.6500', '12.50', '%'],
  ]
  for path in (*two_runs, out):
    assert str(path) in shown
  assert out.read_bytes().startswith(PNG)


@pytest.fixture
def lines_drawn(monkeypatch):
  """Labels and points of every line in the two charts."""
  drawn = []
  real = compare.plt.close

  def close(figure):
    for axis in figure.axes:
      drawn.append(
        [
          (line.get_label(), list(map(float, line.get_ydata())))
          for line in axis.get_lines()
        ]
      )
    real(figure)

  monkeypatch.setattr(compare.plt, 'close', close)
  return drawn


def test_curves_are_the_rows_and_burn_in_ends_where_it_does(
  two_runs, tmp_path, lines_drawn
):
  arguments = [*map(str, two_runs), f'--out={tmp_path / "curves.png"}']
  assert compare.main(arguments) == 0
  losses, errors = lines_drawn
  losses_of = [points for _, points in losses]
  assert losses_of[0] == pytest.approx([0.2] * 3)
  # Two members, their ensemble, and the vertical line.
  assert losses_of[1] == pytest.approx([0.7] * 3)
  assert losses_of[2] == pytest.approx([0.69] * 3)
  assert losses_of[3] == pytest.approx([0.65] * 3)
  assert len(losses) == len(errors) == 5
  assert errors[1][1] == pytest.approx([70] * 3)
  labels = [label for label, _ in losses if not label.startswith('_')]
  assert labels == [
    'imagenet_sync:smoke, each member',
    'imagenet_codistill:smoke, each member',
    'imagenet_codistill:smoke, ensemble',
  ]


def test_members_that_were_trained_apart_are_one_run(
  tmp_path, capsys, lines_drawn
):
  workdir = tmp_path / 'apart'
  for member in (0, 1):
    make_run(
      workdir,
      'imagenet_ensemble',
      2,
      burn_in=8,
      suffix=f'-{member}',
      only=member,
    )
  out = tmp_path / 'curves.png'
  assert compare.main([str(workdir), f'--out={out}']) == 0
  lines = lines_of(capsys.readouterr().out, 'imagenet_ensemble:smoke')
  assert [line[1] for line in lines] == ['0', '1']


def test_a_run_that_has_not_finished_is_shown_as_far_as_it_came(
  tmp_path, capsys, lines_drawn
):
  half = make_run(
    tmp_path / 'half', 'imagenet_sync', 1, burn_in=8, finished=False
  )
  begun = tmp_path / 'begun'
  make_run(begun, 'imagenet_codistill', 2, burn_in=3)
  (begun / 'rows.jsonl').unlink()
  out = tmp_path / 'curves.png'
  assert compare.main([str(half), str(begun), f'--out={out}']) == 0
  assert [points for _, points in lines_drawn[0]] == [pytest.approx([0.2, 0.2])]
  assert out.read_bytes().startswith(PNG)


def test_a_run_without_an_evaluation_yet_is_no_error(tmp_path):
  begun = make_run(tmp_path / 'begun', 'imagenet_sync', 1, burn_in=8)
  (begun / 'rows.jsonl').unlink()
  out = tmp_path / 'curves.png'
  assert compare.main([str(begun), f'--out={out}']) == 0


def test_a_folder_without_a_run_is_one_sentence(two_runs, tmp_path, capsys):
  out = tmp_path / 'curves.png'
  empty = tmp_path / 'empty'
  assert compare.main([str(two_runs[0]), str(empty), f'--out={out}']) == 1
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  assert f'{empty} holds no run' in captured.err
  assert 'experiments.run' in captured.err
  assert not out.exists()


def test_needs_no_jax(two_runs, tmp_path):
  code = (
    'import sys; from scripts import compare; '
    'status = compare.main(sys.argv[1:]); '
    'assert "matplotlib" in sys.modules; '
    'heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow"}; '
    'sys.exit(status or sorted(heavy & sys.modules.keys()) or 0)'
  )
  out = tmp_path / 'curves.png'
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, two_runs), f'--out={out}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert out.exists()


def test_a_member_that_diverged_at_the_end_is_shown_without_a_score(
  two_runs, tmp_path, capsys
):
  record = Record(two_runs[0])
  record.write_row(
    {'step': 9, 'member': 1, 'kind': 'final', 'disagreement': None}
  )
  record.close()
  out = tmp_path / 'curves.png'
  assert compare.main([str(two_runs[0]), f'--out={out}']) == 0
  last = lines_of(capsys.readouterr().out, 'imagenet_sync:smoke')[-1]
  assert last == ['imagenet_sync:smoke', '1', '9', '–', '–', '–']
  assert out.read_bytes().startswith(PNG)
