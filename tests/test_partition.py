import numpy as np
import pytest

from data.partition import partition_indices


@pytest.mark.parametrize(
  ('num_examples', 'members'),
  [(1, 1), (2, 2), (7, 1), (7, 3), (7, 7), (12, 3), (12, 5), (100, 7)],
)
def test_disjoint_shards_cover_and_do_not_meet(num_examples, members):
  examples = np.arange(num_examples)
  shards = [
    examples[partition_indices(num_examples, m, members, 'disjoint')]
    for m in range(members)
  ]
  assert sorted(np.concatenate(shards)) == list(examples)
  sizes = [len(shard) for shard in shards]
  assert min(sizes) >= 1
  assert max(sizes) - min(sizes) <= 1


def test_shared_means_everything_in_the_same_order():
  # It holds even with fewer examples than members.
  for size in (5, 1):
    examples = list(range(size))
    for member in range(3):
      shard = partition_indices(size, member, 3, 'shared')
      assert examples[shard] == examples


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ((10, 0, 0, 'disjoint'), 'members must be at least 1, got 0'),
    ((10, 2, 2, 'disjoint'), 'member 2 is out of range: 2 members'),
    ((10, -1, 2, 'shared'), 'member -1 is out of range'),
    ((10, 0, 2, 'striped'), "Unknown partition 'striped', expected one of"),
    ((0, 0, 1, 'shared'), '0 examples are too few'),
    # Member 0 refuses, too, although its own shard would have an example.
    ((2, 0, 3, 'disjoint'), '2 examples are too few for 3 disjoint'),
  ],
)
def test_wrong_arguments_are_named(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    partition_indices(*arguments)
