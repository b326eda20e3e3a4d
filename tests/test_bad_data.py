"""Runs on images as they are found: corrupt ones, labels that are none."""

import json

import numpy as np
from commands import rows_of, run_command

from data.images import imagenet_sample

SYNC = 'imagenet_sync:smoke'


def on(folder, *arguments):
  return (
    '--config.data.name=imagenet2012',
    f'--config.data.data_dir={folder}',
    *arguments,
  )


def write(folder, corrupt=(), label=0):
  """128 images of one grey level, the last with a label."""
  whole = imagenet_sample.encode(np.full((20, 30, 3), 99, np.uint8))
  examples = [
    {
      'image': whole[:99] if number in corrupt else whole,
      'label': label if number == 127 else number,
      'file_name': f'{number}.JPEG',
    }
    for number in range(128)
  ]
  imagenet_sample.write(
    folder, {'train': examples, 'validation': examples[:32]}
  )
  return folder


def test_corrupt_images_are_named_and_stop_nothing(tmp_path, capsys):
  folder = write(tmp_path / 'data', corrupt=(3, 77))
  assert run_command(tmp_path / 'run', *on(folder), config=SYNC).status == 0
  said = capsys.readouterr().out
  rows = rows_of(tmp_path / 'run')
  # An epoch is eight batches: each of the two once; one of them is held out.
  trained = [
    name for r in rows if r['kind'] == 'train' for name in r.get('corrupt', ())
  ]
  assert sorted(trained) == [
    'imagenet2012 train[3] (3.JPEG)',
    'imagenet2012 train[77] (77.JPEG)',
  ]
  for row in rows:
    if row['kind'] in ('eval', 'final'):
      assert row['corrupt'] == ['imagenet2012 validation[3] (3.JPEG)']
    for name in row.get('corrupt', ()):
      assert f'{name} cannot be decoded; ' in said
      assert f'step {row["step"]}  ' in said


def test_a_label_out_of_range_loses_no_step(tmp_path, capsys):
  folder = write(tmp_path / 'data', label=-1)
  # So that it is not in the first batch.
  arguments = on(folder, '--config.seed=1')
  assert run_command(tmp_path / 'run', *arguments, config=SYNC).status == 2
  said = capsys.readouterr().err
  assert 'imagenet2012 train[127] (127.JPEG) has label -1' in said
  assert said.count('\n') == 1
  steps = [r['step'] for r in rows_of(tmp_path / 'run') if r['kind'] == 'train']
  assert steps == list(range(1, len(steps) + 1))
  assert 0 < len(steps) < 8
  checkpoints = tmp_path / 'run' / 'checkpoints'
  assert max(
    int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()
  ) == len(steps)
  json.loads((tmp_path / 'run' / 'run.json').read_text())
