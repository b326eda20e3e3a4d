"""What a contributor is told: make's targets, CI, how to cite."""

import os
import pathlib
import re
import subprocess
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parent.parent
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


def load(name):
  return yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


def test_plain_make_shows_every_target_with_a_line():
  makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
  [targets] = re.findall(r'^\.PHONY: (.*)', makefile, re.MULTILINE)
  for line in (['make'], ['make', 'help']):
    shown = subprocess.run(
      line, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert (
      re.findall(r'^make (\w+) +\w', shown, re.MULTILINE) == targets.split()
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_shapes_are_checked_wherever_they_are_annotated():
  tools = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['tool']
  [option, _] = tools['pytest']['ini_options']['addopts']
  *checked, _ = option.removeprefix('--jaxtyping-packages=').split(',')
  annotated = {
    path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
    for package in ('codistill', 'data')
    for path in (ROOT / package).rglob('*.py')
    if 'from jaxtyping import' in path.read_text('utf-8')
  }
  covered = {
    (module, name)
    for module in checked
    for name in annotated
    if f'{name}.'.startswith(f'{module}.')
  }
  # And nothing is named in vain.
  assert {name for _, name in covered} == annotated
  assert {module for module, _ in covered} == set(checked)


def test_commands_and_links_of_the_page_exist():
  makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
  targets = re.findall(r'(?:^|`)make (\w+)', CONTRIBUTING, re.MULTILINE)
  assert {'venv', 'test', 'format', 'help', 'lint', 'figures'} == set(targets)
  for target in targets:
    assert re.search(rf'^{target}:', makefile, re.MULTILINE)
  paths = re.findall(r'\]\(([\w/.]+)\)|(tests/\w+\.py)', CONTRIBUTING)
  for path in filter(None, sum(paths, ())):
    assert (ROOT / path).exists(), path
  for module in re.findall(r'python -m ([\w.]+)', CONTRIBUTING):
    path = ROOT / module.replace('.', '/')
    assert (
      module == 'pytest' or path.exists() or path.with_suffix('.py').exists()
    )


def test_ci_runs_what_a_clone_runs_on_both_pythons():
  [job] = load('.github/workflows/ci.yml')['jobs'].values()
  pythons = job['strategy']['matrix']['python']
  assert pythons == ['3.11', '3.13']
  assert PROJECT['project']['requires-python'] == f'>={pythons[0]}'
  used = [step['uses'] for step in job['steps'] if 'uses' in step]
  assert all(re.fullmatch(r'[\w-]+/[\w-]+@v\d+', action) for action in used)
  run = job['steps'][-1]
  assert os.access(ROOT / run['run'], os.X_OK)
  # As the Makefile has it, which takes it from the environment.
  [default] = re.findall(
    r'^(\w+) \?= python3$', (ROOT / 'Makefile').read_text(), re.MULTILINE
  )
  assert run['env'] == {default: 'python${{ matrix.python }}'}


def test_the_citation_is_of_this_version_and_of_the_paper():
  citation = load('CITATION.cff')
  # What CFF 1.2.0 asks for, of software and of a reference.
  assert citation['cff-version'] == '1.2.0'
  assert {'message', 'title', 'authors'} <= citation.keys()
  paper = citation['preferred-citation']
  assert {'type', 'title', 'authors'} <= paper.keys()
  for key in ('version', 'license'):
    assert citation[key] == PROJECT['project'][key]
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert paper['url'] in readme
  assert paper['title'].lower() in ' '.join(readme.split()).lower()
  assert len(paper['authors']) == 6
