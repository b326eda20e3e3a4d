"""A member as others get it: loaded without this project, it predicts alike."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DNN, ROOT, run_command
from in_process import complaint, run_script
from jax.extend.core import Primitive
from jax.interpreters import mlir
from orbax.checkpoint import v1 as ocp
from rebuilt import cheap_builds

from codistill.optim import averaged
from experiments import config as config_lib
from experiments.build import build
from experiments.tasks import images
from scripts import export

FILES = {'README.md', 'config.json', 'predict.bin', 'variables'}


cheap = pytest.fixture(scope='module', autouse=True)(cheap_builds)


@pytest.fixture(scope='module')
def exported(small, tmp_path_factory):
  """Member 1 of a finished run, where its folder had to be made."""
  out = tmp_path_factory.mktemp('served') / 'new' / 'member'
  assert run_script(export, small.workdir, '--member=1', f'--out={out}') == 0
  return out


@pytest.fixture
def exported_before(exported, monkeypatch):
  """Not exported again, where it is not the point."""
  found = jax.export.deserialize((exported / 'predict.bin').read_bytes())
  functions = {'predict.bin': found}
  monkeypatch.setattr(export, 'functions_of', lambda *_: functions)


def refusal(capsys, workdir, out, member=1):
  """The one sentence of a command that fails, and leaves nothing."""
  before = sorted(out.parent.rglob('*'))
  command = (workdir, f'--member={member}', f'--out={out}')
  said = complaint(capsys, export, *command)
  assert sorted(out.parent.rglob('*')) == before
  return said


def test_its_readme_predicts_as_the_project_does(small, exported, tmp_path):
  readme = (exported / 'README.md').read_text(encoding='utf-8')
  [lines] = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
  assert len(lines.strip().splitlines()) <= 8
  before = 'import sys, numpy\nimages = numpy.load(sys.argv[1])\n'
  after = """
single = jax.jit(exported.call)(variables, images[:1])
numpy.savez(sys.argv[2], all=probabilities, single=single)
same = numpy.testing.assert_array_equal
jax.tree.map(same, members['1']['variables'], variables)
assert members['1']['step'] == 10
assert jax.tree.leaves(members['0']['opt_state'])
ours = {'codistill', 'data', 'experiments', 'scripts', 'flax'}
assert not ours & {name.split('.')[0] for name in sys.modules}
"""
  paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
  elsewhere = [path for path in paths if path and pathlib.Path(path) != ROOT]
  rng = np.random.default_rng(0)
  inputs = rng.integers(256, size=(5, 16, 16, 3)).astype('uint8')
  np.save(tmp_path / 'inputs.npy', inputs)
  files = [str(tmp_path / 'inputs.npy'), str(tmp_path / 'outputs.npz')]
  # And by the project's own for checkpoints, of that which it was made of.
  text = (ROOT / 'docs/running.md').read_text(encoding='utf-8')
  [plain] = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len(plain.replace('\n\n', '\n').splitlines()) == 3
  [path] = re.findall(r"'(runs/.*)'", plain)
  plain = plain.replace(path, str(small.workdir / 'checkpoints/10'))
  line = [sys.executable, '-c', before + lines + plain + after, *files]
  # As it may be moved, too.
  moved = shutil.copytree(exported, tmp_path / 'moved')
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(elsewhere)}
  subprocess.run(line, cwd=moved, env=env, check=True)
  model, [_, member] = (
    small.whole.experiment.networks[1].model,
    small.whole.trainer.members,
  )
  variables = member.state.variables
  predict = jax.jit(model.predict)
  prediction, _ = predict(variables, jnp.asarray(inputs), ())
  expected = jax.nn.softmax(prediction.logits)
  found = np.load(tmp_path / 'outputs.npz')
  np.testing.assert_allclose(found['all'], expected, rtol=1e-5)
  np.testing.assert_allclose(found['single'], expected[:1], rtol=1e-5)
  np.testing.assert_allclose(found['all'].sum(-1), 1, rtol=1e-5)


def test_it_says_what_it_is_and_is_for_every_platform(small, exported):
  assert {path.name for path in exported.iterdir()} == FILES
  about = json.loads((exported / 'config.json').read_text())
  run = json.loads((small.workdir / 'run.json').read_text())
  assert about['steps'] == {'1': 10}
  assert about['config'] == run['config']
  assert about['commit'] == run['commit'][:12]
  readme = (exported / 'README.md').read_text(encoding='utf-8')
  assert 'Member 1 of imagenet_codistill:smoke, after 10 updates' in readme
  assert 'uint8 [batch, 16, 16, 3]' in readme
  assert str(run['config']['data']['mean']) in readme
  predict = jax.export.deserialize((exported / 'predict.bin').read_bytes())
  assert predict.platforms == ('cpu', 'cuda', 'tpu')
  assert predict.nr_devices == 1
  [outputs] = predict.out_avals
  assert str(outputs.shape) == '(batch, 1000)'


@pytest.mark.usefixtures('exported_before')
def test_a_member_alone_needs_no_data(tmp_path, capsys, monkeypatch):
  outcome = run_command(
    tmp_path / 'run', '--member=0', '--config.average_decay=0.5', *DNN
  )
  assert outcome.status == 0
  monkeypatch.setattr(images.Kind, 'make_dataset', None)
  out = tmp_path / 'out'
  out.mkdir()  # Empty is as good as not there.
  assert run_script(export, tmp_path / 'run', '--member=0', f'--out={out}') == 0
  said = capsys.readouterr().out
  assert f'member 0 after 8 updates, for cpu, cuda, tpu: {out}' in said
  assert {path.name for path in out.iterdir()} == FILES
  [member] = outcome.trainer.members
  variables, state = member.state.variables, member.state.opt_state
  for other, expected, *flag in (
    (out, variables),
    (tmp_path / 'mean', averaged(variables, state), '--averaged'),
  ):
    if flag:
      command = (tmp_path / 'run', '--member=0', f'--out={other}', *flag)
      assert run_script(export, *command) == 0
    same = np.testing.assert_array_equal
    jax.tree.map(same, ocp.load(other / 'variables'), expected)
    about = json.loads((other / 'config.json').read_text())
    assert about['averaged'] == bool(flag)
    said = (other / 'README.md').read_text(encoding='utf-8')
    assert ('--averaged' in said) != bool(flag)
    assert ('Weights: their running average' in said) == bool(flag)
  missing = 'member 1 has no checkpoint yet'
  assert missing in refusal(capsys, tmp_path / 'run', tmp_path / 'other')


def test_what_only_some_platforms_can_do_is_for_those():
  twice = Primitive('twice')
  twice.def_abstract_eval(lambda x: x)
  two = jax.ShapeDtypeStruct((2,), 'float32')
  with pytest.raises(NotImplementedError):
    export.export_function(twice.bind, two)
  rule = mlir.lower_fun(lambda x: x + x, multiple_results=False)
  mlir.register_lowering(twice, rule, platform='cpu')
  found = export.export_function(twice.bind, two)
  assert found.platforms == ('cpu',)


def test_an_ensemble_and_clicks_are_served_too():
  config = config_lib.load('criteo_codistill:smoke')
  experiment = build(config, None)
  members = [experiment.init(member).variables for member in (0, 1)]
  [(name, function)] = export.functions_of(
    experiment, dict(enumerate(members))
  ).items()
  assert name == 'predict.bin'
  batch = next(experiment.batches(0, start=0))
  served = export.together(dict(enumerate(members)))
  found = jax.jit(function.call)(served, batch['inputs'])
  each = [
    experiment.networks[0].model.predict(one, batch['inputs'], ())[0]
    for one in members
  ]
  expected = sum(jax.nn.softmax(one.logits) for one in each) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  run = {'experiment': 'c', 'variant': '', 'config': config.to_dict()}
  text = export.readme(run, experiment.task, {0: 8, 1: 10}, function, False)
  assert '# Ensemble of members 0, 1 of c, after 8 to 10 updates' in text
  assert "'integers': 'float32 [batch, 13]'" in text
  assert 'take inputs from the prepared folder' in text


def test_what_makes_no_sense_leaves_all_alone(small, tmp_path, capsys):
  out, precious = tmp_path / 'out', tmp_path / 'out' / 'precious'
  link, new = tmp_path / 'link', tmp_path / 'new'
  out.mkdir()
  precious.write_text('mine')
  link.symlink_to(tmp_path / 'nowhere')
  for workdir, where, member, sentence in (
    (small.workdir, out, 1, f'{out} is not empty; choose another --out'),
    (small.workdir, precious, 1, f'{precious} is no folder'),
    (small.workdir, link, 1, 'is no folder'),
    (small.workdir, precious / 'a' / 'b', 1, f'{precious} is no folder'),
    (small.workdir, new, 2, 'there is no member 2'),
    (tmp_path, new, 1, f'{tmp_path} holds no run'),
  ):
    assert sentence in refusal(capsys, workdir, where, member)
    assert precious.read_text() == 'mine'

  # A missing package is told at once.
  *there, missing = export.PACKAGES
  versions = [*('1' for _ in there), export.PackageNotFoundError(missing)]
  version = mock.Mock(side_effect=versions)
  with mock.patch.multiple(export, version=version, rebuild=None):
    assert f'pip install {missing}' in refusal(capsys, small.workdir, new)


@pytest.mark.usefixtures('exported_before')
def test_what_is_interrupted_leaves_nothing(small, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  real = export.write_export

  def interrupted(folder, *rest):
    real(folder, *rest)
    # So far, all of it is written, and nothing of it can be seen.
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name[0] for path in tmp_path.iterdir()] == ['.']
    raise KeyboardInterrupt

  # After the last file, and at the first.
  interrupt = mock.Mock(side_effect=KeyboardInterrupt)
  acts = {'write_export': interrupted, 'save_variables': interrupt}
  for name, act in acts.items():
    with monkeypatch.context() as patch:
      patch.setattr(export, name, act)
      with pytest.raises(KeyboardInterrupt):
        run_script(export, small.workdir, '--member=0', f'--out={out}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures('exported_before')
def test_what_came_meanwhile_stays(small, tmp_path, monkeypatch, capsys):
  out = tmp_path / 'out'
  real = export.write_export

  def write(*arguments):
    real(*arguments)
    out.mkdir()
    (out / 'precious').write_text('mine')

  monkeypatch.setattr(export, 'write_export', write)
  assert run_script(export, small.workdir, '--member=0', f'--out={out}') == 1
  assert f'{out} is not empty' in capsys.readouterr().err
  assert list(tmp_path.rglob('*')) == [out, out / 'precious']
