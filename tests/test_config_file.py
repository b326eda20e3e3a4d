"""A config of one's own: found, resumed, swept, launched, collected."""

import hashlib
import json
import os
import pathlib

import pytest
from commands import STALE, error_sentence, run_command, stop_command
from in_process import complaint, run_script
from rebuilt import cheap_builds

from experiments import config as config_lib
from experiments import config_file, results, stored, sweep
from experiments.errors import UserError
from experiments.record import read_run
from experiments.runs import label_of, read_runs
from scripts import collect
from scripts.launch import __main__ as launch

cheap = pytest.fixture(scope='module', autouse=True)(cheap_builds)

TEXT = """
from experiments.configs import imagenet_codistill

VARIANTS = ('', 'tiny')


def get_config(variant=''):
  config = imagenet_codistill.get_config('smoke')
  config.model.name = 'dnn'
  config.mine = 8  # Its own business.
  config.model.dnn.hidden = (config.mine,)
  if variant == 'tiny':
    config.num_steps = 10
  return config


def sweep(variant=''):
  return [{}, {'codistill.exchange': 'none'}]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file of configs in a folder that is at hand, which is its value.

  Files are read once a process; these are new ones.
  """
  monkeypatch.chdir(tmp_path)

  def write(text, name='mine/calm.py'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    config_file._run.cache_clear()
    return path

  return write


def test_a_file_is_found_by_its_path_from_anywhere(
  write, monkeypatch, tmp_path
):
  path = write(TEXT)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setenv('HOME', str(tmp_path))
  for written in ('mine/calm.py', './mine/../mine/calm.py', '~/mine/calm.py'):
    found = config_file.find(f'{written}:tiny')
    assert (found.label, found.stem) == ('calm:tiny', 'calm-tiny')
    assert found.argument == f'{path}:tiny'
    about = {'path': str(path), 'module': None, 'sha256': digest}
    assert found.outside == about
    assert found.get_config().num_steps == 10
  assert config_lib.load(str(path)).num_steps == 8
  assert config_file.find(str(path)).argument == str(path)
  # Below the repository its place is the same on every machine.
  monkeypatch.setattr(config_file, 'ROOT', tmp_path)
  found = config_file.find('mine/calm.py')
  assert found.argument == found.outside['path'] == 'mine/calm.py'
  # In a folder with a colon.
  odd = write(TEXT, 'a:b/calm.py')
  assert config_file.find(f'{odd}:tiny').variant == 'tiny'


def test_a_module_is_found_where_python_finds_it(write, monkeypatch, tmp_path):
  path = write(TEXT, 'my_package/sets/still.py')
  monkeypatch.syspath_prepend(tmp_path)
  found = config_file.find('my_package.sets.still:tiny')
  assert (found.label, found.argument) == (
    'still:tiny',
    'my_package.sets.still:tiny',
  )
  assert found.outside == {
    'path': str(path),
    'module': 'my_package.sets.still',
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
  }


@pytest.mark.parametrize(
  'text', ['experiments.configs.lm_sync', 'experiments/configs/lm_sync.py']
)
def test_one_of_this_project_s_is_itself_however_it_is_called(
  text, monkeypatch
):
  monkeypatch.chdir(config_file.ROOT)
  assert config_file.find(f'{text}:smoke') == config_file.find('lm_sync:smoke')


BROKEN = {
  # What it has in the place of what, and what is said.
  'no get_config': ('get_config(', 'config(', 'has no get_config; it needs'),
  'no variants': ("VARIANTS = ('', 'tiny')", '', 'has no tuple VARIANTS; add'),
  'one variant': ("('', 'tiny')", "'tiny'", 'has no tuple VARIANTS; add one'),
  'syntax': ("('', 'tiny')", "('',", 'line 4: SyntaxError'),
  'no such module': (
    'from experiments.configs import',
    'import my_friends as',
    "line 2: ModuleNotFoundError: No module named 'my_friends'",
  ),
  'no such config': (
    'import imagenet_codistill',
    'import imagenet_codistil',
    'line 2: ImportError: cannot import name',
  ),
  'no such key': (
    'model.name',
    'modle.name',
    'line 9: AttributeError',
  ),
  'no argument': ("variant=''", '', 'takes 0 positional arguments but 1 was'),
  'nothing': ('  return config', '  del config', 'returns NoneType; it must'),
  'half a config': (
    '  return config',
    '  del config.codistill.members\n  return config',
    'has no key codistill.members; start from another',
  ),
  'a key too many': (
    '  return config',
    '  config.codistill.burnin_steps = 10\n  return config',
    "a key 'codistill.burnin_steps', which nothing reads; did you mean codist",
  ),
  'a slip': (
    '  return config',
    '  config.num_step = 10\n  return config',
    "a key 'num_step', which nothing reads; did you mean num_steps",
  ),
  'points': (
    "[{}, {'codistill.exchange': 'none'}]",
    "{'codistill.exchange': 'none'}",
    'it must return a list of dicts',
  ),
  'no points': ("[{}, {'codistill.exchange': 'none'}]", '[]', 'list of dicts'),
  'a point': (
    'codistill.exchange',
    'codistill.exchanges',
    "no key 'codistill.exchanges'; did you mean codistill.exchange",
  ),
  'a value': ("'none'", '5', "Could not override field 'exchange'"),
  'two that are one': (
    "{'codistill.exchange': 'none'}",
    '{}',
    'share a name, which',
  ),
}


@pytest.mark.parametrize('broken', BROKEN)
def test_a_broken_file_is_one_sentence(write, broken, tmp_path):
  before, after, said = BROKEN[broken]
  path = write(TEXT.replace(before, after))
  with pytest.raises(UserError) as caught:
    sweep.plan(str(path), 1, tmp_path, ())
  text = str(caught.value)
  assert '\n' not in text
  assert len(text) < 400
  assert said in text
  assert str(path) in text or broken in ('a point', 'a value')


def test_what_is_no_file_of_configs_is_one_sentence(write, tmp_path):
  (tmp_path / 'folder.py').mkdir()
  write(TEXT, 'lm_sync.py')
  write(TEXT, 'calm[1].py')
  write('', 'loose/__init__.py')
  for wrong, said in (
    ('mine/calm.py', f'there is no file {tmp_path}/mine/calm.py; --config is'),
    ('folder.py', 'cannot read'),
    ('gs://here/calm.py', 'is not on this machine'),
    ('mine/calm', "no config 'mine/calm'; python -m experiments.run --list"),
    ('lm_sync.py', 'has the name of a config of this project, so'),
    ('calm[1].py', 'letters, digits, _ and -; give it another name'),
    ('loose.calm', 'there is no module loose.calm for Python in'),
    ('scripts.flops', 'flops.py has no get_config'),
  ):
    with pytest.raises(UserError, match=r'\w') as caught:
      config_file.find(wrong)
    assert said in str(caught.value)
  path = write(TEXT)
  with pytest.raises(UserError, match="'big'; it can be none, :tiny"):
    config_file.find(f'{path}:big')


def test_a_changed_file_is_refused_and_rows_say_which_it_was(
  write, tmp_path, capsys
):
  path = write(TEXT)
  before = hashlib.sha256(path.read_bytes()).hexdigest()
  workdir, options = tmp_path / 'run', {'config': 'mine/calm.py:tiny'}
  stop_command(5, workdir, *STALE, **options)
  found = read_run(workdir / 'run.json')
  assert label_of(found) == 'calm:tiny'
  about = {'path': str(path), 'module': None, 'sha256': before}
  assert found['config_file'] == about
  # STALE says so; what the file says is no change of it.
  assert 'model.name' not in found['overrides']
  # Its numbers are the same; what it does might not be.
  after = hashlib.sha256(write(f'{TEXT}# New.\n').read_bytes()).hexdigest()
  capsys.readouterr()
  assert run_command(workdir, *STALE, **options).status == 2
  said = error_sentence(capsys)
  for words in (before[:12], after[:12], 'calm.py', '--allow-code-change'):
    assert words in said
  # The same file in another place is the same config.
  write(TEXT, 'elsewhere/calm.py')
  options['config'] = 'elsewhere/calm.py:tiny'
  stop_command(7, workdir, *STALE, **options)
  write(f'{TEXT}# New.\n', 'elsewhere/calm.py')
  allowed = (*STALE, '--allow-code-change')
  assert run_command(workdir, *allowed, **options).status == 0
  versions = read_run(workdir / 'run.json')['resumed']
  hashes = [version['config_file']['sha256'] for version in versions]
  assert hashes == [before, after]
  # It is rebuilt from the file that it began with, or not at all.
  runs = read_runs(workdir)
  assert stored.rebuild(runs, with_data=False).num_steps == 10
  path.unlink()
  config_file._run.cache_clear()
  with pytest.raises(UserError, match=f'no file {path}; '):
    stored.rebuild(runs, with_data=False)
  # Of this clone, edited or not.
  allow = [f'--allow={mark}' for mark in ('dirty', 'no-commit')]
  out = f'--out={tmp_path}/rows'
  said = complaint(capsys, collect, workdir, out, *allow)
  assert 'is left out: two-commits' in said
  allow.append('--allow=two-commits')
  said = complaint(capsys, collect, workdir, out, *allow)
  assert 'is left out: outside-config' in said
  assert 'config calm); add --allow=outside-config to take it, marked' in said
  assert (
    run_script(collect, workdir, out, *allow, '--allow=outside-config') == 0
  )
  [collected] = (tmp_path / 'rows').glob('*')
  assert collected.name == 'calm-tiny.jsonl'
  assert str(tmp_path) not in collected.read_text()
  [result] = results.read(collected)
  assert result.run['config_file'] == about | {'path': 'calm.py'}
  assert {'two-commits', 'outside-config'} <= set(result.run['marked'])


def test_commands_of_a_sweep_and_of_members_name_the_same_file(
  write, tmp_path, capsys, monkeypatch
):
  path = write(TEXT)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  runs = sweep.plan('mine/calm.py:tiny', 2, tmp_path, ())
  assert [(run.point, run.seed) for run in runs] == [
    (point, seed) for seed in (0, 1) for point in ('base', 'exchange=none')
  ]
  # They are started in the repository.
  assert all(f'--config={path}:tiny' in run.command for run in runs)
  given = ['--config=mine/calm.py:tiny', '--launcher=print']
  assert sweep.main(given) == 0
  assert launch.main(given) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  for line, workdir in zip(
    lines,
    (
      'sweeps/calm-tiny/base/seed-0',
      'sweeps/calm-tiny/exchange=none/seed-0',
      *['calm-tiny-members'] * 2,
    ),
    strict=True,
  ):
    assert f'--config={path}:tiny ' in line
    assert f'--workdir={config_file.ROOT}/runs/{workdir} ' in f'{line} '
  # A pod has the repository and what is mounted.
  given = [
    given[0],
    '--launcher=jobset',
    '--jobset=image=i',
    '--jobset=claim=c',
  ]
  shared = f'--workdir={tmp_path}/run'
  said = complaint(capsys, launch, *given, '--workdir=/shared/run', status=2)
  assert (
    f'--config is {path}:tiny, which pods do not have; put it below' in said
  )
  mount = f'--jobset=mount={tmp_path}'
  assert run_script(launch, *given, shared, mount) == 0
  manifest = capsys.readouterr().out
  assert json.dumps(f'--config={path}:tiny') in manifest
  assert '"calm-tiny-0"' in manifest


def test_a_name_in_this_folder_is_no_path(write):
  write(TEXT, 'calm.py')
  assert pathlib.Path('calm.py').exists()
  with pytest.raises(UserError, match=r"no config 'calm';.* ends in \.py"):
    config_file.find('calm')
  assert config_file.find('calm.py').path == pathlib.Path(
    os.getcwd(), 'calm.py'
  )
