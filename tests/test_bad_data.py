"""Runs on real-world images: corrupt ones, and labels out of range."""

import itertools
import json
import shutil

import grain
import numpy as np
import pytest
from commands import rows_of, run_command
from test_images import encode, write_cifar

from experiments import results
from experiments.record import read_run


@pytest.fixture(scope='module')
def write(tmp_path_factory):
  """A function that writes 128 images as CIFAR-10, all of one grey level."""
  # It is the same for all tests, so that runs share their programs.
  folder = tmp_path_factory.mktemp('sets')
  whole = encode(np.full((32, 32, 3), 99, np.uint8))

  def write_with(corrupt=(), last_label=0):
    stored = [whole[:50] if i in corrupt else whole for i in range(128)]
    labels = [number % 10 for number in range(127)] + [last_label]
    shutil.rmtree(folder)
    write_cifar(folder, stored + stored[:32], 128, labels + labels[:32])
    # This network compiles fast.
    return (
      *('--config.data.name=cifar10', f'--config.data.data_dir={folder}'),
      *('--config.model.name=dnn', '--config.model.dnn.hidden=(8,)'),
      '--config.num_steps=9',
    )

  return write_with


def test_cifar10_is_one_key_away_and_corrupt_images_stop_nothing(
  write, tmp_path, capsys
):
  arguments = write(corrupt=(3, 77))
  outcome = run_command(tmp_path, *arguments, config='imagenet_sync:smoke')
  assert outcome.status == 0
  assert outcome.experiment.dataset.image_shape == (32, 32, 3)
  overrides = read_run(tmp_path / 'run.json')['overrides']
  assert {'data.name', 'num_steps'} <= set(results.point_of(overrides))
  assert not {'data.mean', 'data.image_shape'} & set(overrides)
  said = capsys.readouterr().out
  rows = rows_of(tmp_path)
  # An epoch is eight batches, with both images once; one of them is held out.
  corrupt = {
    (row['step'], name)
    for row in rows
    if row['kind'] == 'train'
    for name in row.get('corrupt', ())
    if row['step'] <= 8
  }
  names = ['cifar10 train[3]', 'cifar10 train[77]']
  assert sorted(name for _, name in corrupt) == names
  for row in rows:
    if row['kind'] in ('eval', 'final'):
      assert row['corrupt'] == ['cifar10 test[3]']
    for name in row.get('corrupt', ()):
      assert f'{name} cannot be decoded; ' in said
      assert f'step {row["step"]}  ' in said


def test_a_label_out_of_range_loses_no_step(write, tmp_path, capsys):
  # The seed keeps it out of the first batch.
  arguments = (*write(last_label=-1), '--config.seed=1')
  run = run_command(tmp_path, *arguments, config='imagenet_sync:smoke')
  assert run.status == 2
  said = capsys.readouterr().err
  assert 'cifar10 train[127] has label -1' in said
  assert said.count('\n') == 1
  steps = [row['step'] for row in rows_of(tmp_path) if row['kind'] == 'train']
  assert steps == list(range(1, len(steps) + 1))
  assert 0 < len(steps) < 8
  names = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert max(int(name) for name in names if name.isdecimal()) == len(steps)
  json.loads((tmp_path / 'run.json').read_text())


def test_a_reader_that_dies_loses_no_step(write, tmp_path, capsys, monkeypatch):
  def dying(stream, *_, **__):
    yield from itertools.islice(iter(stream), 3)
    raise RuntimeError('Worker process was terminated unexpectedly with …')

  monkeypatch.setattr(grain.IterDataset, 'mp_prefetch', dying)
  arguments = (*write(), '--config.data.num_workers=1')
  run = run_command(tmp_path, *arguments, config='imagenet_sync:smoke')
  # A launcher starts it again.
  assert run.status == 1
  said = capsys.readouterr().err
  assert 'a process that reads images has died, perhaps for lack of' in said
  assert said.count('\n') == 1
  assert (tmp_path / 'checkpoints/3').is_dir()
