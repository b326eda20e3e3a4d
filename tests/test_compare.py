"""Runs side by side: from rows alone to a table and a picture."""

import pytest
from collected import make_run

from experiments.record import Record
from scripts import compare

PNG = b'\x89PNG\r\n\x1a\n'
SYNC, BOTH = 'imagenet_sync:laptop', 'imagenet_codistill:laptop'


def loss(step, who):
  return {0: 0.7, 1: 0.69, 'ensemble': 0.65}[who]


@pytest.fixture
def two_runs(tmp_path):
  keys = {'members': 1, 'loss': lambda *_: 0.2}
  sync = make_run(tmp_path / 'sync', 'imagenet_sync', **keys)
  return sync, make_run(tmp_path / 'both', loss=loss)


@pytest.fixture
def compared(tmp_path, capsys, monkeypatch):
  """What the command shows of runs, and the lines of its two charts."""
  charts = []
  real = compare.plt.close

  def close(figure):
    for axis in figure.axes:
      lines = [(one.get_label(), one.get_ydata()) for one in axis.get_lines()]
      charts.append([(label, [*map(float, values)]) for label, values in lines])
    real(figure)

  monkeypatch.setattr(compare.plt, 'close', close)

  def run(*workdirs):
    out = tmp_path / 'new' / 'curves.png'
    assert compare.main([*map(str, workdirs), f'--out={out}']) == 0
    assert out.read_bytes().startswith(PNG)
    shown = capsys.readouterr().out
    for path in (*workdirs, out):
      assert str(path) in shown
    return shown, *charts[-2:]

  return run


def lines_of(text, name):
  return [line.split() for line in text.splitlines() if name in line.split()]


def keep(path, words):
  lines = path.read_text().splitlines(True)
  path.write_text(''.join(line for line in lines if words in line))


def test_a_table_and_curves_of_members_and_ensembles(two_runs, compared):
  shown, losses, errors = compared(*two_runs)
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
  points = [points for _, points in losses]
  # Two members, their ensemble, and the vertical line.
  assert points[:4] == [[value] * 4 for value in (0.2, 0.7, 0.69, 0.65)]
  assert len(losses) == len(errors) == 5
  assert errors[1][1] == pytest.approx([70] * 4)
  labels = [label for label, _ in losses if not label.startswith('_')]
  both = [f'{BOTH}, each member', f'{BOTH}, ensemble']
  assert labels == [f'{SYNC}, each member', *both]


def test_members_that_were_trained_apart_are_one_run(tmp_path, compared):
  workdir = tmp_path / 'apart'
  for member in (0, 1):
    make_run(workdir, suffix=f'-{member}', member=member)
    keep(workdir / f'rows-{member}.jsonl', f'"member": {member}')
  shown, *_ = compared(workdir)
  assert [line[1] for line in lines_of(shown, BOTH)] == ['0', '1']


def test_a_run_is_shown_as_far_as_it_came(two_runs, compared):
  half, begun = two_runs
  keep(half / 'rows.jsonl', '"eval"')
  (begun / 'rows.jsonl').unlink()
  _, losses, _ = compared(half, begun)
  assert [points for _, points in losses] == [[0.2] * 3]
  # One without an evaluation alone.
  assert compared(begun)[1] == []


def test_a_member_that_diverged_at_the_end_is_shown_without_a_score(
  two_runs, compared
):
  row = {'step': 41, 'member': 1, 'kind': 'final', 'disagreement': None}
  record = Record(two_runs[0])
  record.write_row(row)
  record.close()
  shown, *_ = compared(two_runs[0])
  assert lines_of(shown, SYNC)[-1] == [SYNC, '1', '41', '–', '–', '–']


def test_a_folder_without_a_run_is_one_sentence(two_runs, tmp_path, capsys):
  out, empty = tmp_path / 'curves.png', tmp_path / 'empty'
  assert compare.main([str(two_runs[0]), str(empty), f'--out={out}']) == 1
  captured = capsys.readouterr()
  assert (captured.out, captured.err.count('\n')) == ('', 1)
  assert f'{empty} holds no run' in captured.err
  assert 'experiments.run' in captured.err
  assert not out.exists()
  empty.mkdir()
  (empty / 'run.json').write_text('{"experiment": "cut')
  assert compare.main([str(empty), f'--out={out}']) == 1
  assert (
    f'{empty}/run.json is damaged, or was edited' in capsys.readouterr().err
  )
