"""Stored predictions: whole or absent, and equal to an evaluation's."""

import os
import shutil

import numpy as np
import pytest
from commands import (
  DNN,
  contents,
  error_sentence,
  on_row,
  run_command,
  stop_command,
)
from rebuilt import ruin

from codistill.churn import score
from data.images.imagenet_sample import open_set
from experiments import config as config_lib
from experiments import config_file, predictions
from experiments.predictions import SilentWriter, Writer
from experiments.record import read_rows

EVERY = '--config.predictions_interval_steps=4'


def rows(size, *classes, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((size, *classes), dtype=np.float32)


def store(folder, step=7, size=10, commit=True, kind=Writer, **options):
  """Stores what one member predicts for ten examples."""
  with kind(folder, step, [0], 10) as writer:
    writer.write(np.arange(size, dtype=np.int32), [rows(size, **options)])
    if commit:
      writer.commit()


# Files.


@pytest.mark.parametrize('classes', [(), (3,)])
def test_batches_become_one_array_a_predictor(tmp_path, classes):
  whole = [rows(10, *classes, seed=seed) for seed in range(2)]
  labels = np.arange(10, dtype=np.int32)
  with Writer(tmp_path / 'predictions', 7, [0, 'ensemble'], 10) as writer:
    for part in (slice(4), slice(4, 8), slice(8, 10)):
      writer.write(labels[part], [one[part] for one in whole])
      assert predictions.find(tmp_path) == {}
    writer.commit()
  found = predictions.find(tmp_path)
  assert list(found) == [(7, 0), (7, 'ensemble')]
  for one, stored in zip(whole, found.values(), strict=True):
    p, right = stored.open()
    np.testing.assert_array_equal(p, one)
    np.testing.assert_array_equal(right, labels)
    assert isinstance(p, np.memmap)
  names = ('labels', 'step-7/ensemble', 'step-7/member-0')
  assert set(contents(tmp_path)) == {f'predictions/{n}.npy' for n in names}


def test_what_is_not_whole_or_not_committed_is_not_put_in_place(tmp_path):
  for size in (9, 11):
    with pytest.raises(ValueError, match=f'{size} of 10 examples'):
      store(tmp_path, size=size)
    assert contents(tmp_path) == {}
  store(tmp_path / 'silent', kind=SilentWriter)
  assert not (tmp_path / 'silent').exists()
  store(tmp_path)
  before = contents(tmp_path)
  store(tmp_path, commit=False, seed=1)
  assert contents(tmp_path) == before


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='of Linux')
def test_a_full_disk_is_an_error_that_can_be_caught(tmp_path):
  (tmp_path / 'step-7').mkdir()
  (tmp_path / 'step-7/member-0.npy.new').symlink_to('/dev/full')
  with pytest.raises(OSError, match='No space left'):
    store(tmp_path)
  assert contents(tmp_path) == {}


def test_later_steps_and_halves_are_dropped(tmp_path):
  for step in (4, 8, 12):
    store(tmp_path, step)
  (tmp_path / 'step-4/ensemble.npy.new').write_text('half')
  predictions.drop_after(tmp_path, 8)
  kept = ('labels', 'step-4/member-0', 'step-8/member-0')
  assert set(contents(tmp_path)) == {f'{name}.npy' for name in kept}
  predictions.drop_after(tmp_path / 'nowhere', 8)


@pytest.mark.parametrize('name', ['labels.npy', 'step-7/member-0.npy'])
def test_damage_is_one_sentence(tmp_path, name):
  store(tmp_path / 'predictions')
  [stored] = predictions.find(tmp_path).values()
  for damage in (b'', b'\x93NUMPY\x01\x00garbage'):
    (tmp_path / 'predictions' / name).write_bytes(damage)
    with pytest.raises(ValueError, match='missing or damaged; remove'):
      stored.open()
  np.save(tmp_path / 'predictions' / name, np.arange(9, dtype=np.int64))
  with pytest.raises(ValueError, match='do not belong together'):
    stored.open()


# Runs.


def stored(workdir):
  return {key: one.open()[0] for key, one in predictions.find(workdir).items()}


def test_the_end_of_a_run_is_stored_as_it_was_scored(small):
  found = predictions.find(small.workdir)
  assert list(found) == [(10, 0), (10, 1), (10, 'ensemble')]
  rows = read_rows(small.workdir / 'rows.jsonl')
  final = {row['member']: row for row in rows if row['kind'] == 'final'}
  _, num_classes, (_, test) = open_set('train', 'validation')
  for (_, who), one in found.items():
    p, right = one.open()
    assert p.shape == (test.num_examples, num_classes)
    labels = test.read_labels(np.arange(test.num_examples))
    np.testing.assert_array_equal(right, labels)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    mine = score(p, right)
    assert mine.log_loss == pytest.approx(final[who]['task_loss'], rel=1e-5)
    assert mine.accuracy == pytest.approx(final[who]['accuracy'], abs=1e-6)
  p, q, mean = stored(small.workdir).values()
  np.testing.assert_allclose(mean, (p + q) / 2, rtol=1e-4, atol=1e-7)


def test_a_run_that_was_stopped_stores_the_same(small, tmp_path):
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  assert run_command(whole, *small.arguments, EVERY).status == 0
  stop_command(5, halves, *small.arguments, EVERY)
  assert {step for step, _ in stored(halves)} == {4}
  # A kill left these steps that are still to come, and a partial write.
  late = halves / 'predictions/step-8'
  shutil.copytree(halves / 'predictions/step-4', late)
  (late / 'member-7.npy').write_text('of another run')
  assert run_command(halves, *small.arguments, EVERY).status == 0
  assert {step for step, _ in stored(halves)} == {4, 8, 10}
  whole, halves = whole / 'predictions', halves / 'predictions'
  assert contents(whole) == contents(halves)
  # Storing evaluations changes no number.
  plain = small.workdir / 'predictions/step-10'
  assert contents(whole / 'step-10') == contents(plain)
  # It begins anew, and stores none.
  again = ('--overwrite', '--config.store_predictions=False')
  stop_command(5, halves.parent, *small.arguments, *again)
  assert not halves.exists()


def test_members_of_processes_of_their_own_store_their_own(tmp_path):
  one = (*DNN, '--member=1')
  assert run_command(tmp_path, *DNN, '--member=0').status == 0
  assert list(stored(tmp_path)) == [(8, 0)]
  # Nothing is stored of a member that is ruined in the last step: rows are
  # late, so this is after the last update, and before it is evaluated.
  with on_row(ruin(0), step=8, member=1, kind='train'):
    assert run_command(tmp_path, *one).status == 1
  # The other's predictions stay.
  assert list(stored(tmp_path)) == [(8, 0)]
  assert run_command(tmp_path, *one, '--overwrite').status == 0
  assert list(stored(tmp_path)) == [(8, 0), (8, 1)]


def test_all_but_text_store_their_end_and_no_more():
  for name in config_file.names():
    config = config_lib.load(name)
    assert config.store_predictions == (config.data.kind != 'text'), name
    assert config.predictions_interval_steps == 0, name


def test_what_makes_no_sense_is_one_sentence(tmp_path, capfd):
  for sentence, *arguments in (
    ('a multiple of eval_interval', '--config.predictions_interval_steps=6'),
    ('to True, or the', EVERY, '--config.store_predictions=False'),
    ('must be at least 0', '--config.predictions_interval_steps=-4'),
  ):
    assert run_command(tmp_path, *arguments).status == 2
    assert sentence in error_sentence(capfd)
