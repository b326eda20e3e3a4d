import importlib.util
import pathlib
import subprocess
import sys
from unittest import mock

import pytest
from preparations import write_tfds

from scripts import prepare_images

ROOT = pathlib.Path(__file__).parents[1]
DOWNLOAD = 'tensorflow_datasets.core.DatasetBuilder.download_and_prepare'
FASHION_MNIST = 'fashion_mnist', '3.0.1', {}, {'train': []}


def pretend(monkeypatch, **installed):
  """Makes packages seem installed, or not if None."""
  find_spec = importlib.util.find_spec

  def find(package):
    return installed[package] if package in installed else find_spec(package)

  monkeypatch.setattr(importlib.util, 'find_spec', find)


def prepare(folder, name='fashion_mnist'):
  return prepare_images.main([name, f'--data_dir={folder}'])


def test_a_missing_package_says_which_environment(
  monkeypatch, tmp_path, capsys
):
  for title in ('TensorFlow', 'TensorFlow Datasets'):
    package = title.lower().replace(' ', '_')
    with monkeypatch.context() as patch:
      pretend(patch, **{package: None})
      message = prepare(tmp_path)
    assert message.startswith(f'Preparing fashion_mnist needs {title}, which')
    for command in (
      'python3 -m venv .venv-prepare',
      '.venv-prepare/bin/pip install -r scripts/requirements-prepare.txt',
      '.venv-prepare/bin/python -m scripts.prepare_images fashion_mnist '
      f'--data_dir={tmp_path}',
    ):
      assert command in message
  pretend(monkeypatch, tensorflow=None, tensorflow_datasets=None)
  assert (ROOT / 'scripts' / 'requirements-prepare.txt').exists()
  # Digits need none of it.
  assert prepare_images.main(['digits']) is None
  assert 'nothing to prepare' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='2'):
    prepare(tmp_path, 'digits')
  assert '--data_dir changes nothing for digits' in capsys.readouterr().err


def test_a_prepared_set_says_so(monkeypatch, tmp_path, capsys):
  pretend(monkeypatch, tensorflow=None)
  write_tfds(tmp_path / 'sets', *FASHION_MNIST)
  path = tmp_path / 'sets' / 'fashion_mnist' / '3.0.1'
  said = [
    f'fashion_mnist is already prepared in {path}.',
    'Training finds it with:',
    f'  export TFDS_DATA_DIR={tmp_path}/sets',
  ]
  assert prepare(tmp_path / 'sets') is None
  assert capsys.readouterr().out.splitlines() == said
  # A relative folder is exported as a whole path.
  monkeypatch.chdir(tmp_path)
  assert prepare('sets') is None
  assert capsys.readouterr().out.splitlines() == said
  # The default folder is not exported.
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'sets'))
  assert prepare(tmp_path / 'sets') is None
  assert capsys.readouterr().out.splitlines() == said[:1]


def test_imagenet_says_what_to_fetch_and_where_to_put_it(
  monkeypatch, tmp_path, capsys
):
  pretend(monkeypatch, tensorflow=None)
  manual = tmp_path / 'downloads' / 'manual'
  train, validation = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
  said = prepare(tmp_path, 'imagenet2012')
  assert f'{train} and {validation} are not in {manual}' in said
  assert 'https://image-net.org/download-images' in said
  assert '\n' not in said
  manual.mkdir(parents=True)
  (manual / train).write_text('')
  said = prepare(tmp_path, 'imagenet2012')
  assert f'{validation} is not in {manual}' in said
  # TFDS does the rest, from the folder where it looks itself.
  (manual / validation).write_text('')
  said = prepare(tmp_path, 'imagenet2012')
  assert 'needs TensorFlow, which is not installed' in said
  pretend(monkeypatch, tensorflow='there')
  asked = []
  monkeypatch.setattr(DOWNLOAD, lambda b, **o: asked.append((b.data_dir, o)))
  assert prepare(tmp_path, 'imagenet2012') is None
  folder = str(tmp_path / 'imagenet2012' / '5.1.0')
  assert asked == [(folder, {'file_format': 'array_record'})]
  assert f'imagenet2012 is prepared in {tmp_path}' in capsys.readouterr().out


def test_what_cannot_be_prepared_is_one_sentence(monkeypatch, tmp_path, capsys):
  pretend(monkeypatch, tensorflow='there')
  fail = mock.Mock(side_effect=ConnectionError('no route to host'))
  monkeypatch.setattr(DOWNLOAD, fail)
  assert prepare(tmp_path) == (
    'fashion_mnist could not be prepared (ConnectionError): no route to host'
  )
  fail.side_effect = KeyboardInterrupt
  assert prepare(tmp_path) == 130
  assert capsys.readouterr().err.startswith('Interrupted: the same command beg')
  for name in ('fashion_mnst', 'fashion_mnist:0.0.9'):
    assert prepare(tmp_path, name) == f'TFDS has no set called {name!r}.'
  write_tfds(tmp_path, *FASHION_MNIST, 'tfrecord')
  assert 'but as tfrecord, which training cannot read' in prepare(tmp_path)


PROGRAM = """
import runpy, sys
sys.modules['jax'] = sys.modules['numpy'] = None  # Fails if imported.
sys.modules['tensorflow_datasets'] = None
runpy.run_module('scripts.prepare_images', run_name='__main__')
"""


def test_the_command_fails_and_succeeds_and_needs_no_jax():
  failed, done = (
    subprocess.run(
      [sys.executable, '-c', PROGRAM, name],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    for name in ('cifar10', 'digits')
  )
  assert failed.returncode == 1
  assert failed.stderr.startswith('Preparing cifar10 needs')
  assert (done.returncode, done.stderr) == (0, '')
