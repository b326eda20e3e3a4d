"""The README says what is so: links, the map of Algorithm 1, names, targets."""

import contextlib
import pathlib
import re

import pytest

from experiments import config as config_lib
from experiments.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
MAP = re.findall(r'\[`([^`]+)`\]\(([\w/.]+)#L(\d+)\)', README)
FILES = re.findall(r'\]\(((?!https?:)[\w/.-]+)', README)


def test_the_map_of_algorithm_1_is_long_enough():
  assert len(MAP) >= 10


@pytest.mark.parametrize(('code', 'path', 'line'), MAP)
def test_the_map_of_algorithm_1_points_at_its_lines(code, path, line):
  lines = (ROOT / path).read_text(encoding='utf-8').splitlines()
  found = [n for n, text in enumerate(lines, start=1) if code in text]
  assert int(line) in found, f'{code} is at line {found} of {path}'


@pytest.mark.parametrize('path', sorted(set(FILES)))
def test_links_lead_somewhere(path):
  assert (ROOT / path).exists()


def test_every_config_is_in_the_table_and_no_other():
  named = re.findall(r'^\| `(\w+)` \|', README, re.MULTILINE)
  assert sorted(named) == config_lib.names()


def is_key(config, key):
  with contextlib.suppress(UserError):
    config_lib.check_keys(config, [key])
    return True
  return False


def test_every_key_that_is_named_exists():
  labels = ('imagenet_codistill:laptop', 'lm_codistill', 'criteo_codistill')
  configs = [config_lib.load(label) for label in labels]
  keys = re.findall(r'`((?:codistill|data|diversity)\.\w+)`', README)
  keys += re.findall(r'--config\.([\w.]+)=', README)
  keys = [key for key in keys if key != 'key' and not key.endswith('.py')]
  assert len(keys) > 6
  # Of one kind of data or another.
  unknown = {
    key for key in keys if not any(is_key(config, key) for config in configs)
  }
  assert unknown == set()


def test_the_output_that_is_shown_is_a_real_table():
  shown = README.split('`make run` ends with this')[1].split('```')[1]
  for run in ('imagenet_sync:laptop', 'imagenet_codistill:laptop'):
    assert re.search(rf'{run} +\d +600 +\d\d\.\d\d % +0\.\d{{4}}', shown)
  assert re.search(r'ensemble +600', shown)


def test_the_plan_has_every_folder_once_and_no_other():
  plan = README.split('## Where things live')[1].split('```')[1]
  named = [line.split()[0] for line in plan.splitlines() if line.strip()]
  packages = {
    f'{path.parent.relative_to(ROOT).as_posix()}/'
    for package in ('codistill', 'data', 'experiments', 'scripts')
    for path in (ROOT / package).rglob('__init__.py')
  }
  assert sorted(named) == sorted({*packages, 'docs/', 'tests/'})


def test_make_has_the_commands_that_are_promised():
  makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
  for target in ('run', 'test', 'lint', 'venv'):
    assert re.search(rf'^{target}:', makefile, re.MULTILINE)
  for pin in re.findall(r"'jax\[\w+\](==[\d.]+)'", README):
    requirements = (ROOT / 'requirements.txt').read_text(encoding='utf-8')
    assert f'jax{pin}' in requirements
