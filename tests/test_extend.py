"""docs/extend.md, done as it says, in a copy of the project."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from experiments.record import read_rows

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'docs/extend.md').read_text(encoding='utf-8')
BLOCK = re.compile(r'<!-- (\w+) ?(.*?) -->\n```\w*\n(.*?)```', re.DOTALL)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
  """The project with the page's files and lines in it."""
  folder = tmp_path_factory.mktemp('extended')
  for package in ('codistill', 'data', 'experiments', 'scripts'):
    shutil.copytree(
      ROOT / package,
      folder / package,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for verb, what, code in BLOCK.findall(TEXT):
    if verb == 'write':
      assert not (folder / what).exists()
      (folder / what).write_text(code, encoding='utf-8')
    elif verb == 'add':
      path, _, after = what.partition(' after ')
      lines = (folder / path).read_text(encoding='utf-8').splitlines()
      [place] = [n for n, line in enumerate(lines) if line.startswith(after)]
      lines.insert(place + 1, code.removesuffix('\n'))
      (folder / path).write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return folder


def run(copy, line):
  assert line.startswith('python ')
  return subprocess.run(
    [sys.executable, *line.split()[1:]],
    cwd=copy,
    env={**os.environ, 'PYTHONPATH': str(copy)},
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_the_page_has_a_set_a_network_and_an_experiment():
  verbs = [verb for verb, _, _ in BLOCK.findall(TEXT)]
  assert verbs == ['write', 'add', 'write', 'add', 'write', 'run']
  assert TEXT.count('```') == 2 * len(verbs)


def test_its_commands_run_and_the_network_learns(copy):
  *_, (_, _, commands) = BLOCK.findall(TEXT)
  printed = []
  for line in commands.splitlines():
    done = run(copy, line)
    assert done.returncode == 0, done.stderr
    printed.append(done.stdout)
  assert printed[1].count('experiments.run') == 3
  assert (copy / 'runs/stripes.png').stat().st_size > 10_000
  rows = read_rows(copy / 'runs/stripes/rows.jsonl')
  scores = [row['accuracy'] for row in rows if row['kind'] == 'final']
  assert len(scores) == 4
  assert min(scores) > 0.9
  taught = [row for row in rows if row['num_peers'] == 1]
  assert len(taught) == 3 * 40


@pytest.mark.parametrize('check', ['format --check', 'check'])
def test_its_code_is_clean_where_it_stands(copy, check):
  files = [what.split()[0] for verb, what, _ in BLOCK.findall(TEXT) if what]
  shutil.copy(ROOT / 'pyproject.toml', copy)
  done = subprocess.run(
    [sys.executable, '-m', 'ruff', *check.split(), *files],
    cwd=copy,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
