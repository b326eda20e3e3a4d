"""docs/open_a_run.ipynb runs, and shows what it says that it shows."""

import base64
import json
import re

import pytest
from commands import ROOT
from in_process import complaint, run_script
from rebuilt import cheap_builds

from experiments.errors import UserError
from experiments.record import read_rows
from experiments.stored import open_run
from scripts import notebook

PAGE = ROOT / 'docs/open_a_run.ipynb'
WORKDIR = '../runs/imagenet_codistill-laptop'

cheap = pytest.fixture(scope='module', autouse=True)(cheap_builds)


def code_of(page):
  return [cell for cell in page['cells'] if cell['cell_type'] == 'code']


def printed(page):
  return ''.join(
    line
    for cell in code_of(page)
    for output in cell['outputs']
    for line in output.get('text', ())
  )


def pictures(page):
  return [
    base64.b64decode(output['data']['image/png'])
    for cell in code_of(page)
    for output in cell['outputs']
    if 'data' in output
  ]


def copy_for(workdir, folder):
  """The notebook on another run."""
  text = PAGE.read_text(encoding='utf-8')
  assert text.count(f"WORKDIR = '{WORKDIR}'") == 1
  copy = folder / 'page.ipynb'
  # It finds the project from docs/.
  text = text.replace(WORKDIR, str(workdir)).replace("'..'", f"'{ROOT}'")
  copy.write_text(text, encoding='utf-8')
  return copy


def test_it_runs_and_what_is_committed_is_what_it_shows(small, tmp_path):
  copy = copy_for(small.workdir, tmp_path)
  assert run_script(notebook, copy) == 0
  found = json.loads(copy.read_text(encoding='utf-8'))
  committed = json.loads(PAGE.read_text(encoding='utf-8'))
  # Of another run, so with other numbers.
  forms = [
    re.sub(r'[\d.,]+', '#', printed(page)).replace(':smoke', ':laptop')
    for page in (found, committed)
  ]
  assert forms[0] == forms[1]
  for page in (found, committed):
    assert [one[:8] for one in pictures(page)] == [b'\x89PNG\r\n\x1a\n'] * 2
    counts = [cell['execution_count'] for cell in code_of(page)]
    assert counts == [*range(1, len(counts) + 1)]
  # And what it says is so.
  final = {
    row['member']: row
    for row in read_rows(small.workdir / 'rows.jsonl')
    if row['kind'] == 'final'
  }
  for who, row in final.items():
    assert f'{who}: {row["accuracy"]:.2%} of 32 are right' in printed(found)
  differ = final['ensemble']['disagreement']
  assert f'they differ on {differ * 32:.0f} examples' in printed(found)
  # As often as one likes.
  before = copy.read_bytes()
  assert run_script(notebook, copy) == 0
  assert copy.read_bytes() == before


def test_what_is_no_finished_run_is_one_sentence(small, tmp_path, capsys):
  for workdir, said in (
    (small.stopped, 'is interrupted, and only a finished run can be opened'),
    (tmp_path / 'nowhere', 'holds no run; make one with python -m exp'),
  ):
    copy = copy_for(workdir, tmp_path)
    before = copy.read_bytes()
    assert said in complaint(capsys, notebook, copy)
    assert copy.read_bytes() == before
    # Jupyter shows no traceback either.
    with pytest.raises(UserError) as caught:
      open_run(workdir)
    [line] = caught.value._render_traceback_()
    assert line == f'UserError: {caught.value}'
  missing = complaint(capsys, notebook, tmp_path / 'none.ipynb')
  assert 'No such file' in missing


def test_a_run_has_its_curves_and_no_strangers(small):
  run = open_run(small.workdir)
  steps, losses = run.curve('ensemble', 'task_loss')
  assert steps == [4, 8, 10]
  assert losses[-1] == run.rows[-1]['task_loss']
  with pytest.raises(UserError, match="no member 7; there are 0, 1 and 'ens"):
    run.predict(7, None)
