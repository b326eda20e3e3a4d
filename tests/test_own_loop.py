"""docs/own_loop.md does what it says, with the package alone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import codistill
from scripts import api

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / 'docs/own_loop.md').read_text(encoding='utf-8')
[CODE] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


def test_codistillation_adds_less_than_twenty_lines():
  added = [line for line in CODE.splitlines() if line.endswith('# +')]
  assert 5 < len(added) < 20


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Installs a copy with `pip install .`, which builds beside the sources."""
  folder = tmp_path_factory.mktemp('install')
  source, target = folder / 'source', folder / 'target'
  shutil.copytree(
    ROOT, source, ignore=shutil.ignore_patterns('.*', 'runs', 'build')
  )
  build = 'from setuptools.build_meta import build_wheel; build_wheel("..")'
  subprocess.run(
    [sys.executable, '-c', build], cwd=source, check=True, capture_output=True
  )
  [wheel] = folder.glob('*.whl')
  shutil.unpack_archive(wheel, target, 'zip')
  return target


def test_the_package_is_codistill_alone(installed):
  found = {path.name for path in installed.iterdir()}
  packages = {name for name in found if not name.endswith('.dist-info')}
  assert packages == {'codistill'}
  there, here = (
    {path.name for path in (folder / 'codistill').glob('*.*')}
    for folder in (installed, ROOT)
  )
  assert there == here
  # So that type checkers read its annotations.
  assert 'py.typed' in there


def test_it_offers_what_a_loop_needs_and_the_page_lists_it():
  assert api.PAGE.read_text(encoding='utf-8') == api.page()
  used = set(re.findall(r'codistill\.(\w+)', PAGE)) - {'exchange'}
  assert len(used) > 5
  assert used <= set(codistill.__all__) <= set(dir(codistill))
  for name in codistill.__all__:
    assert getattr(codistill, name).__name__ == name
  with pytest.raises(AttributeError, match='no attribute'):
    codistill.Nothing  # noqa: B018


def short(steps, code=CODE):
  """The page's code with fewer steps."""
  assert code.count('1001') == 1
  return code.replace('1001', str(steps + 1))


@pytest.fixture
def play(monkeypatch, capsys, tmp_path):
  """Runs a page's code with fewer steps in this process; returns its output."""

  def play(code, member, steps):
    folder = str(tmp_path / 'exchange')
    monkeypatch.setattr(sys, 'argv', ['', str(member), folder])
    exec(short(steps, code), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == steps // 100
    return lines

  return play


def ages(lines):
  found = {}
  for line in lines:
    step, loss, age = re.fullmatch(
      r'step (\d+): loss (\S+), ages of the peers \[(.*)\]', line
    ).groups()
    assert float(loss) < 1
    found[int(step)] = age
  return found


def test_two_members_teach_each_other(tmp_path, installed, play):
  with subprocess.Popen(
    [sys.executable, '-c', short(400), '0', str(tmp_path / 'exchange')],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(installed), 'JAX_PLATFORMS': 'cpu'},
    text=True,
    stdout=subprocess.PIPE,
  ) as other:
    here = play(CODE, member=1, steps=400)
    out, _ = other.communicate(timeout=200)
  assert other.returncode == 0
  for lines in (here, out.splitlines()):
    found = ages(lines)
    assert list(found) == [100, 200, 300, 400]
    assert (found[100], found[200]) == ('', '')
    for step in (300, 400):
      published = step - 1 - int(found[step])
      assert published in range(50, 401, 50)


def test_without_the_added_lines_it_is_an_ordinary_loop(tmp_path, play):
  """A user has the rest of the page already."""
  lines = [
    # Code that used the peers has none.
    re.sub(r'^with exchange:.*', 'if True:', line)
    for line in CODE.splitlines()
    if not line.endswith('# +') or line.startswith('with exchange')
  ]
  code = '\n'.join(lines).replace(
    '  for step in', '  peers = ()\n  for step in'
  )
  assert 'codistill' not in code
  play(code, member=0, steps=200)
  assert not (tmp_path / 'exchange').exists()
