"""Compares streams of batches, of any arrays."""

import itertools

import jax
import numpy as np

MEMBER = {'member': 0, 'members': 1, 'partition': 'shared', 'seed': 3}


def take(stream, count):
  found = list(itertools.islice(stream, count))
  stream.close()
  return found


def assert_same(batches, others):
  assert len(batches) == len(others) > 0
  jax.tree.map(np.testing.assert_array_equal, list(batches), list(others))


def differ(batches, others):
  same = jax.tree.map(np.array_equal, batches, others)
  return not all(jax.tree.leaves(same))


def assert_rows_are_slices(make_stream, rows_of, count):
  """Streams of some rows and of all of them agree on those rows."""
  whole = take(make_stream(rows=None), count)
  for rows in map(lambda rows: np.array(rows, int), rows_of):
    sliced = jax.tree.map(lambda array, rows=rows: array[rows], whole)
    assert_same(take(make_stream(rows=rows), count), sliced)
