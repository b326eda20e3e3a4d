"""The examples that each member trains on: its own shard, or all of them.

Section 3.3 of the paper compares these two partitions.
"""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

PARTITIONS = ('disjoint', 'shared')


def partition_indices(
  num_examples: int, member: int, members: int, partition: str
) -> slice:
  """Returns a member's examples as a slice of the whole set.

  The slice depends on the arguments alone, not on hosts, devices or a resumed
  step, so shards cannot drift together. Each example is in exactly one disjoint
  shard, and the sizes of shards differ by one example at most.

  Args:
    num_examples: size of the whole training set.
    member: 0 ≤ member < members.
    members: number of members that share the examples.
    partition: 'disjoint' (every members-th example) or 'shared' (everything).

  Returns:
    A slice for arrays, lists and Grain data sets.

  Raises:
    ValueError: for arguments out of range, or if a shard would be empty.
  """
  _check(member, members, partition)
  shards = members if partition == 'disjoint' else 1
  # Every member raises, not only the one without examples: members may run as
  # separate jobs, and the others would wait for it.
  if num_examples < shards:
    raise ValueError(
      f'{num_examples} examples are too few for {shards} {partition} shard(s): '
      'one would be empty.'
    )
  return slice(member, None, members) if shards > 1 else slice(None)


def partition_hashes(
  hashes: UInt64[np.ndarray, ' examples'],
  member: int,
  members: int,
  partition: str,
) -> Int64[np.ndarray, ' own']:
  """Returns a member's examples, chosen by their content, not their position.

  Shards do not depend on the order of files, and equal examples have one owner.
  Disjoint shards have equal sizes on average only.

  Args:
    hashes: hashes of the examples, evenly distributed.
    member: 0 ≤ member < members.
    members: number of members that share the examples.
    partition: 'disjoint' or 'shared' (everything).

  Returns:
    Indices of the member's examples, ascending.

  Raises:
    ValueError: for arguments out of range, or if any member's shard would be
      empty.
  """
  _check(member, members, partition)
  shards = members if partition == 'disjoint' else 1
  owners = mix(hashes, 'member') % np.uint64(shards)
  # As above, every member raises.
  if len(np.unique(owners)) < shards:
    raise ValueError(
      f'{len(hashes)} examples are too few for {shards} {partition} shard(s): '
      'one would be empty.'
    )
  return (
    np.flatnonzero(owners == member) if shards > 1 else np.arange(len(hashes))
  )


def mix(
  hashes: UInt64[np.ndarray, ' examples'], *purpose: str | int
) -> UInt64[np.ndarray, ' examples']:
  """Rehashes for one purpose, independently of all other purposes.

  Args:
    hashes: evenly distributed.
    *purpose: names and numbers that tell the purpose.
  """
  name = '/'.join(map(str, purpose))
  words = hashlib.blake2b(name.encode(), digest_size=16).digest()
  first, second = np.frombuffer(words, '<u8').astype(np.uint64)
  # The finalizer of SplitMix64 (Steele et al. 2014), twice: a bijection.
  for word in (first, second):
    hashes = hashes ^ word
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(
      0xBF58476D1CE4E5B9
    )
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(
      0x94D049BB133111EB
    )
    hashes = hashes ^ (hashes >> np.uint64(31))
  return hashes


def _check(member: int, members: int, partition: str) -> None:
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
