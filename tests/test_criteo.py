"""Clicks as batches, and the synthetic log and its truth."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import streams
from streams import MEMBER, assert_rows_are_slices, assert_same

from data.clicks import dataset, preparation, storage, synthetic
from data.clicks.log import MISSING
from data.permutation import permute

ROWS = 1_400
SIZES = (*[20] * 20, *[3] * 3, *[1 << 20] * 3)


def make(cache_dir, name='synthetic', **changes):
  arguments = {
    'synthetic_rows': ROWS,
    'table_sizes': SIZES,
    'max_test_rows': None,
    'cache_dir': cache_dir,
  }
  return dataset.make_clicks(name, **(arguments | changes))


@pytest.fixture(scope='module')
def cache_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthetic, 'CHUNK_ROWS', 512)
    make(folder)
  return folder


@pytest.fixture(scope='module')
def clicks(cache_dir):
  """A set with examples numbered by their second integer."""
  made = make(cache_dir)
  rows = made.rows.copy()
  rows[:, 2] = np.arange(ROWS)
  # They are negative, zero and the largest.
  rows[:, 3:6] = [-3, 0, 2**31 - 1]
  return dataclasses.replace(made, rows=rows)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
  monkeypatch.setattr(dataset, '_READ_ROWS', 500)


def take(clicks, count, **changes):
  stream = clicks.train(**(MEMBER | {'batch_size': 32} | changes))
  return streams.take(stream, count)


def examples_of(batches):
  """The numbers of examples, from their second integer."""
  logs = np.concatenate([b['inputs']['integers'][:, 1] for b in batches])
  return np.rint(np.expm1(logs)).astype(int)


def arrays(batch):
  others = {key: batch[key] for key in batch if key != 'inputs'}
  return batch['inputs'] | others


# Batches.


def test_a_batch_is_what_the_rows_say(clicks):
  [batch] = take(clicks, 1)
  rows = clicks.rows[examples_of([batch])]
  inputs = batch['inputs']
  assert {key: array.dtype for key, array in arrays(batch).items()} == {
    'integers': np.float32,
    'missing': np.float32,
    'categories': np.int32,
    'labels': np.int32,
  }
  np.testing.assert_array_equal(batch['labels'], rows[:, 0])
  raw = rows[:, 1:14].astype(np.float64)
  missing = raw == MISSING
  assert missing.any()
  np.testing.assert_array_equal(inputs['missing'], missing)
  wanted = np.where(missing, 0, np.sign(raw) * np.log1p(np.abs(raw)))
  np.testing.assert_allclose(inputs['integers'], wanted, rtol=1e-6)
  hashes = rows[:, 14:].astype(np.int64) % 2**32
  for field, size in enumerate(SIZES):
    # Computed exactly, in Python's integers.
    assert inputs['categories'][:, field].tolist() == [
      h if h < 2 else 2 + h * (size - 2) // 2**32
      for h in hashes[:, field].tolist()
    ]


def test_each_epoch_has_each_example_once_in_a_new_order(clicks):
  assert clicks.num_train == 1_200
  # Batches of 32 straddle epochs.
  seen = examples_of(take(clicks, 75)).reshape(2, 1_200)
  for epoch in seen:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(1_200))
  first, second = seen
  other = examples_of(take(clicks, 37, seed=4))
  for order in (second, np.arange(1_200)):
    assert np.sum(first == order) < 12
  assert np.sum(first[: len(other)] == other) < 12
  # A batch larger than an epoch has several.
  [batch] = take(clicks, 1, batch_size=3_000)
  counts = np.bincount(examples_of([batch]))
  assert (set(counts), len(counts)) == ({2, 3}, 1_200)


def test_batch_t_is_a_function_of_t_and_hosts_share_it(clicks, monkeypatch):
  whole = take(clicks, 203)
  # Members that share data see the same.
  assert_same(take(clicks, 2, member=1, members=3), whole[:2])
  train = functools.partial(clicks.train, **MEMBER, batch_size=32)
  assert_rows_are_slices(train, ([0, 5, 31], []), 40)
  monkeypatch.setattr(dataset, '_READ_ROWS', 100)
  for start in (1, 37, 38, 200):
    assert_same(take(clicks, 3, start=start), whole[start : start + 3])


def test_disjoint_members_cover_the_examples_and_do_not_meet(clicks):
  changes = {'members': 3, 'partition': 'disjoint'}
  batches = (take(clicks, 40, member=m, **changes) for m in range(3))
  parts = [set(examples_of(some).tolist()) for some in batches]
  assert set.union(*parts) == set(range(1_200))
  assert sum(map(len, parts)) == 1_200


def test_a_stream_that_cannot_be_is_refused_at_once(clicks):
  for arguments, sentence in (
    ({'start': -1}, 'start must not be negative'),
    ({'seed': -1}, 'seed must not be negative'),
    ({'member': 1}, 'member 1 is out of range'),
    ({'members': 1_201, 'partition': 'disjoint'}, 'would be empty'),
  ):
    # It is refused at the call, before anybody asks for a batch.
    with pytest.raises(ValueError, match=sentence):
      take(clicks, 0, **arguments)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_evaluation_counts_each_example_once(clicks, split):
  batches = list(clicks.eval(split, batch_size=64))
  assert all(len(batch['labels']) == 64 for batch in batches)
  mask = np.concatenate([batch['mask'] for batch in batches])
  wanted = {'train': range(1_200), 'test': range(1_200, 1_400)}[split]
  assert mask.sum() == clicks.num_examples(split) == len(wanted)
  np.testing.assert_array_equal(examples_of(batches)[mask == 1], wanted)
  last = batches[-1]
  for array in arrays(last).values():
    assert not array[last['mask'] == 0].any()
  stream = functools.partial(clicks.eval, split, batch_size=64)
  assert_rows_are_slices(stream, ([1, 63],), len(batches))


def test_a_part_of_the_held_out_is_evaluated_on(clicks):
  for limit, count in ((70, 70), (10**9, 200)):
    part = dataclasses.replace(clicks, max_test_rows=limit)
    batches = part.eval('test', batch_size=64)
    assert sum(batch['mask'].sum() for batch in batches) == count
    assert part.num_examples('test') == count
  with pytest.raises(ValueError, match="Unknown split 'validation'"):
    part.eval('validation', batch_size=64)
  # The distribution of labels is the training split's.
  share = clicks.rows[:1_200, 0].mean()
  found = clicks.label_distribution()
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [1 - share, share], rtol=1e-6)


# Orders.


def test_an_order_has_everything_once_and_looks_like_chance():
  for size in [*range(1, 35), 1_000]:
    found = permute(np.arange(size), size, 'test', size)
    np.testing.assert_array_equal(np.sort(found), np.arange(size))
  size, num = 45_840_617, 20_000
  places = np.arange(num)
  one, other = (permute(places, size, 'epoch', e) for e in (0, 1))
  assert len(set(one.tolist())) == num
  for found in (one, other, one - np.roll(one, 1)):
    counts = np.bincount(found.astype(np.int64) % size * 20 // size)
    # 19 degrees of freedom: above 50 one time in 8,000.
    assert ((counts - num / 20) ** 2).sum() / (num / 20) < 50
  # The part of the log at a place tells nothing about the next epoch's.
  assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.03


# The synthetic log.


@pytest.fixture(scope='module')
def drawn():
  return synthetic.make_rows(0, 2 * synthetic.CHUNK_ROWS)


def log_losses(labels, probabilities):
  return -np.log(np.where(labels == 1, probabilities, 1 - probabilities))


def test_the_truth_scores_the_optimum_and_nothing_else_does(drawn):
  rows, truth = drawn
  count = len(truth)
  scored = log_losses(rows.labels, truth)
  error = scored.std() / np.sqrt(count)
  optimum = synthetic.entropy(truth).mean()
  assert abs(scored.mean() - optimum) < 4 * error
  # The truth itself is worse if surer, less sure, or without its base rate.
  logits = np.log(truth / (1 - truth))
  for wrong in (1.2 * logits, 0.8 * logits, logits + 0.2):
    loss = log_losses(rows.labels, 1 / (1 + np.exp(-wrong)))
    assert loss.mean() > scored.mean() + 0.001
  # Clicks are as frequent as the truth says, for each part of its range.
  for part in np.array_split(np.argsort(truth), 10):
    spread = np.sqrt((truth[part] * (1 - truth[part])).sum())
    assert abs((rows.labels[part] - truth[part]).sum()) < 4.5 * spread


def test_the_synthetic_log_is_like_the_challenges(drawn):
  rows, truth = drawn
  assert 0.24 < rows.labels.mean() < 0.26
  # It leaves room for a model, and for noise.
  base = synthetic.entropy(np.array([rows.labels.mean()]))[0]
  assert 0.42 < synthetic.entropy(truth).mean() < base - 0.09
  for column in rows.integers[[0, 1, 4, 6]]:
    known = column[column != MISSING]
    assert known.max() > 100 * np.median(known)
  assert rows.integers[1][rows.integers[1] != MISSING].min() < 0
  missing = (rows.integers == MISSING).mean(axis=1)
  assert missing.min() == 0
  assert missing.max() > 0.5
  assert not rows.there.all()
  counts = [
    np.unique(values[there], return_counts=True)[1]
    for values, there in zip(rows.categories, rows.there, strict=True)
  ]
  # Categories are skewed: the most frequent is far above the others.
  assert all(some.max() > 1.3 * some.mean() for some in counts)
  assert min(map(len, counts)) <= 4
  assert max(map(len, counts)) > 20_000


def test_any_part_of_the_synthetic_log_is_made_alike(drawn):
  step = synthetic.CHUNK_ROWS
  first, last = step - 5, step + 3
  rows, truth = synthetic.make_rows(first, last)
  np.testing.assert_array_equal(truth, drawn[1][first:last])
  for part, whole in zip(rows, drawn[0], strict=True):
    np.testing.assert_array_equal(part, whole[..., first:last])
  assert not np.array_equal(drawn[1][:step], drawn[1][step:])


def test_the_synthetic_log_is_everyones(drawn):
  # Another log would make numbers that cannot be compared: raise VERSION.
  assert synthetic.VERSION == 1
  rows, truth = drawn
  assert rows.labels.sum() == 16_413
  words = storage.pack(rows).astype(np.int64)
  assert words.sum(axis=1)[[1, 5, 14, 39]].tolist() == [
    *(-63_090_921_972_290, -4_429_646_840_889),
    *(-8_170_299_450_626, 724_138_813_000),
  ]
  np.testing.assert_allclose(truth.mean(), 0.24891473624551594, rtol=1e-9)


def test_by_name_it_is_made_once(cache_dir, monkeypatch):
  monkeypatch.setattr(preparation, 'prepare', None)
  made = make(cache_dir)
  assert made.num_train == 1_200
  assert made.num_examples('test') == 200
  assert 0.3 < made.best_log_loss < 0.6
  [folder] = cache_dir.iterdir()
  assert folder.name.startswith(f'synthetic-clicks-{ROWS}-')
  # The user's own log has no known optimum.
  own = make(None, str(folder))
  assert own.best_log_loss == made.best_log_loss
  del own.manifest['synthetic']
  assert own.best_log_loss is None
  assert own.rows.shape == (ROWS, 40)


# Mistakes of users.


def test_what_cannot_be_made_and_a_folder_that_is_none_are_one_sentence(
  cache_dir, tmp_path
):
  (tmp_path / 'file').write_text('')
  for arguments, sentence in (
    ({'table_sizes': (5,) * 25}, 'table_sizes must be 26 numbers of at least'),
    ({'table_sizes': (2,) * 26}, 'table_sizes must be 26 numbers of at least'),
    ({'max_test_rows': 0}, 'max_test_rows must be at least 1'),
    ({'synthetic_rows': 3}, 'synthetic_rows must be at least 4'),
    ({}, 'set XDG_CACHE_HOME to a folder'),
  ):
    with pytest.raises(ValueError, match=sentence):
      make(tmp_path / 'file' / 'cache', **arguments)
  for name in ('log.partial', 'text', 'short'):
    (tmp_path / name).mkdir()
  other = '{"format": "codistill-text/1"}'
  (tmp_path / 'text' / 'manifest.json').write_text(other)
  [made] = cache_dir.iterdir()
  shutil.copy(made / 'manifest.json', tmp_path / 'short')
  (tmp_path / 'short' / 'rows.bin').write_bytes(b'short')
  for name, sentence in (
    ('nowhere', 'make it with `python -m scripts'),
    ('log', 'log is not finished: run the same command'),
    ('text', 'describes no prepared click log'),
    (
      'short',
      r'rows\.bin has 5 bytes, not 224000\): copy it again, or prepare it ag',
    ),
  ):
    with pytest.raises(ValueError, match=sentence):
      make(None, str(tmp_path / name))
