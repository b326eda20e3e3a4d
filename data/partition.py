"""Which training examples a member sees: its own shard, or all of them.

The paper's question of whether members must see different data (section 3.3)
is a comparison of these two partitions.
"""

PARTITIONS = ('disjoint', 'shared')


def partition_indices(
  num_examples: int, member: int, members: int, partition: str
) -> slice:
  """Says which examples are a member's, as a slice of the whole set.

  It depends on its arguments alone, never on hosts, devices or a resumed
  step, so shards cannot drift together. Of disjoint shards, each example is
  in exactly one, and sizes differ by one example at most.

  Args:
    num_examples: size of the whole training set.
    member: whose shard, 0 ≤ member < members.
    members: how many members the examples are divided among.
    partition: 'disjoint' (every members-th example) or 'shared' (everything).

  Returns:
    A slice for anything that can be sliced: arrays, lists, Grain data sets.

  Raises:
    ValueError: for arguments out of range, or if a shard would be empty.
  """
  if members < 1:
    raise ValueError(f'members must be at least 1, got {members}.')
  if not 0 <= member < members:
    raise ValueError(
      f'member {member} is out of range: {members} members count from 0.'
    )
  if partition not in PARTITIONS:
    raise ValueError(
      f'Unknown partition {partition!r}, expected one of {PARTITIONS}.'
    )
  shards = members if partition == 'disjoint' else 1
  # Every member refuses, not only the one left without examples: members may
  # run as separate jobs, and the others would wait for it.
  if num_examples < shards:
    raise ValueError(
      f'{num_examples} examples are too few for {shards} {partition} shard(s): '
      'one would be empty.'
    )
  return slice(member, None, members) if shards > 1 else slice(None)
