"""docs/extend.md works as it says, in a copy of the project."""

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from experiments import results
from experiments.record import read_rows

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'docs/extend.md').read_text(encoding='utf-8')
BLOCK = re.compile(r'<!-- (\w+)(?: (.*))? -->\n```\w*\n((?s:.*?))```')


def change(text, diff):
  """Replaces lines that begin with - by the + lines that follow them."""
  lines = [(line[0], line[1:] + '\n') for line in diff.splitlines()]
  groups = [
    (sign, ''.join(line for _, line in group))
    for sign, group in itertools.groupby(lines, lambda line: line[0])
  ]
  pairs = zip(groups[::2], groups[1::2], strict=True)
  for (minus, before), (plus, after) in pairs:
    assert (minus, plus) == ('-', '+')
    assert text.count(before) == 1, before
    text = text.replace(before, after)
  return text


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
  """The project, with the page's files and lines."""
  folder = tmp_path_factory.mktemp('extended') / 'project'
  for package in ('codistill', 'data', 'experiments', 'scripts'):
    shutil.copytree(ROOT / package, folder / package)
  (folder / 'tests').mkdir()
  for name in ('pyproject.toml', '.gitignore'):
    shutil.copy(ROOT / name, folder)
  for verb, what, code in BLOCK.findall(TEXT):
    name, _, after = what.partition(' after ')
    path = folder / name
    if verb == 'write':
      assert not path.exists()
      path.parent.mkdir(exist_ok=True)
      path.write_text(code, encoding='utf-8')
    elif verb == 'add':
      lines = path.read_text(encoding='utf-8').splitlines()
      [place] = [n for n, line in enumerate(lines) if line.startswith(after)]
      lines.insert(place + 1, code.removesuffix('\n'))
      path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    elif verb == 'change':
      path.write_text(change(path.read_text(encoding='utf-8'), code))
  # Rows are collected of code that a commit has.
  for line in ('init -q', 'add .', 'commit -q -m Extended'):
    identity = ('-c', 'user.name=me', '-c', 'user.email=me@here')
    subprocess.run(['git', *identity, *line.split()], cwd=folder, check=True)
  return folder


# Slow imports happen once, before a process for each command.
EACH = """
import os, runpy, shlex, sys
import flax.linen, grain, jax, optax, orbax.checkpoint, pytest

for line in sys.argv[1:]:
  if not os.fork():
    _, _, module, *arguments = shlex.split(line)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    sys.exit()
  if status := os.wait()[1]:
    sys.exit(f'{line}: {status}')
"""


def run(copy, lines):
  return subprocess.run(
    [sys.executable, '-c', EACH, *lines],
    cwd=copy,
    # Checking types at run time, as tests do, takes seconds to load.
    env={
      **os.environ,
      'PYTHONPATH': str(copy),
      'PYTEST_ADDOPTS': '--jaxtyping-packages=',
    },
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_every_block_is_one_that_is_done():
  verbs = [verb for verb, _, _ in BLOCK.findall(TEXT)]
  assert set(verbs) == {'write', 'add', 'change', 'run'}
  assert TEXT.count('```') == 2 * len(verbs)
  # A kind of data takes one file and one line.
  files = [what for _, what, _ in BLOCK.findall(TEXT) if 'tasks' in what]
  assert len(files) == 2


def test_its_commands_run_and_the_networks_learn(copy):
  lines = [
    line
    for verb, _, commands in BLOCK.findall(TEXT)
    if verb == 'run'
    for line in commands.replace('\\\n', '').splitlines()
  ]
  done = run(copy, lines)
  assert done.returncode == 0, done.stderr + done.stdout
  # Two sweeps are printed.
  assert done.stdout.count('-m experiments.run') == 2 + 3
  # The config outside, with its graph and its loss: trained and collected.
  rows = read_rows(copy / 'runs/square/rows.jsonl')
  assert {
    (row['member'], *row['peers']) for row in rows if row['num_peers']
  } == {(0, 1, 2), (1, 0, 3), (2, 0, 3), (3, 1, 2)}
  [result] = results.read(copy.parent / 'mine/rows/square.jsonl')
  assert result.id == 'distill_loss=least_squares/seed-0'
  assert result.run['marked'] == ['outside-config']
  assert result.run['config_file']['path'] == 'square.py'
  assert max(row['step'] for row in result.rows) == 20
  assert (copy / 'runs/stripes.png').stat().st_size > 10_000
  report = (copy / 'runs/stripes.html').read_text(encoding='utf-8')
  assert 'src="data:image/svg+xml;base64,' in report
  found = {}
  for name, members in (('stripes', 3), ('waves', 2), ('confident', 2)):
    rows = found[name] = read_rows(copy / f'runs/{name}/rows.jsonl')
    scores = [row['accuracy'] for row in rows if row['kind'] == 'final']
    assert len(scores) == members + 1
    assert min(scores) > 0.9
    taught = [row for row in rows if row['num_peers'] == 1]
    assert len(taught) == members * 40
  [scored] = [
    row['brier']
    for row in read_rows(copy / 'runs/brier/rows.jsonl')
    if row['kind'] == 'final'
  ]
  # Of two classes it is at most 2, and 0.5 if nothing is known.
  assert 0 < scored < 0.5
  # ψ is zero for teachers in doubt, as all are at first.
  plain, confident = (
    next(
      row['distill_loss']
      for row in found[name]
      if row['kind'] == 'train' and row['num_peers']
    )
    for name in ('waves', 'confident')
  )
  assert confident < 0.5 * plain


@pytest.mark.parametrize('check', ['format --check', 'check'])
def test_its_code_is_clean_where_it_stands(copy, check):
  files = {what.split()[0] for _, what, _ in BLOCK.findall(TEXT) if what}
  ruff = (sys.executable, '-m', 'ruff')
  done = subprocess.run(
    [*ruff, *check.split(), '--config=pyproject.toml', *sorted(files)],
    cwd=copy,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
