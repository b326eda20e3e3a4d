"""README and docs are true: links, the map of Algorithm 1, names."""

import ast
import contextlib
import pathlib
import re

import pytest

from experiments import config as config_lib
from experiments import config_file
from experiments.errors import UserError
from scripts.figures import diagram

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
MAP = re.findall(r'\[`([^`]+)`\]\(([\w/.]+)#L(\d+)\)', README)
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
LINK = re.compile(r'\]\((?!https?:)([\w/.-]*)(?:#([\w-]+))?\)')


def test_the_map_of_algorithm_1_is_long_enough():
  assert len(MAP) >= 10


@pytest.mark.parametrize(('code', 'path', 'line'), MAP)
def test_the_map_of_algorithm_1_points_at_its_lines(code, path, line):
  lines = (ROOT / path).read_text(encoding='utf-8').splitlines()
  found = [n for n, text in enumerate(lines, start=1) if code in text]
  assert int(line) in found, f'{code} is at line {found} of {path}'


def anchors(text):
  """Anchors of its headings, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for path, anchor in LINK.findall(page.read_text(encoding='utf-8')):
    target = page.parent / path if path else page
    assert target.exists(), path
    if anchor and target.suffix == '.md':
      found = anchors(target.read_text(encoding='utf-8'))
      assert anchor in found, f'{path}#{anchor}; there are {found}'


def test_every_config_is_in_the_table_and_no_other():
  page = (ROOT / 'docs/experiments.md').read_text(encoding='utf-8')
  named = re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)
  assert sorted(named) == config_file.names()


def test_every_result_has_a_line_in_the_index():
  index = (ROOT / 'docs/results/README.md').read_text(encoding='utf-8')
  for page in (ROOT / 'docs/results').glob('*.md'):
    assert page.name == 'README.md' or f'({page.name})' in index


def test_every_picture_is_shown_or_linked():
  text = ''.join(page.read_text(encoding='utf-8') for page in PAGES)
  for picture in (ROOT / 'docs/figures').glob('*.svg'):
    assert f'figures/{picture.name})' in text


def test_the_readme_is_short():
  assert len(README.split()) < 1_600


def test_the_diagram_is_what_its_script_draws(tmp_path):
  diagram.draw(tmp_path / 'method.svg')
  kept = ROOT / 'docs/images/method.svg'
  assert (tmp_path / 'method.svg').read_bytes() == kept.read_bytes()


def is_key(config, key):
  with contextlib.suppress(UserError):
    config_lib.check_keys(config, [key])
    return True
  return False


def test_every_key_that_is_named_exists():
  labels = ('imagenet_codistill:laptop', 'lm_codistill', 'criteo_codistill')
  configs = [config_lib.load(label) for label in labels]
  pages = [ROOT / 'docs/running.md', ROOT / 'docs/coming_from.md']
  text = README + ''.join(page.read_text(encoding='utf-8') for page in pages)
  sections = 'codistill|data|diversity|model|optimizer|schedule|two_phase'
  keys = re.findall(rf'`((?:{sections})\.[a-z_.]+)[`=]', text)
  keys += re.findall(r'--config\.([\w.]+)=', text)
  keys = [key for key in keys if key != 'key' and not key.endswith('.py')]
  assert len(keys) > 6
  # A key may belong to one kind of data only.
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


@pytest.mark.parametrize(('wing', 'most'), [('codistill', 16), ('data', 8)])
def test_a_wing_is_seen_at_a_glance(wing, most):
  entries = {path.name for path in (ROOT / wing).iterdir()}
  assert 4 < len(entries - {'__init__.py', '__pycache__'}) <= most


def test_a_long_function_says_why_it_is_long():
  longest = 0
  for package in ('codistill', 'data', 'experiments', 'scripts'):
    for path in (ROOT / package).rglob('*.py'):
      text = path.read_text(encoding='utf-8')
      lines = text.splitlines()
      for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
          size = node.end_lineno - node.lineno + 1
          longest = max(longest, size)
          # A reason may stand just before it.
          whole = '\n'.join(lines[node.lineno - 2 : node.end_lineno])
          assert size <= 80 or re.search('# (Long|It is long)', whole), (
            f'{path}: {node.name} has {size} lines'
          )
  assert longest > 80


def test_the_jax_that_is_told_to_install_is_the_one_pinned():
  requirements = (ROOT / 'requirements.txt').read_text(encoding='utf-8')
  running = (ROOT / 'docs/running.md').read_text(encoding='utf-8')
  pins = re.findall(r"'jax\[\w+\](==[\d.]+)'", README + running)
  assert len(pins) == 4
  for pin in pins:
    assert f'jax{pin}' in requirements
