"""Who learns from whom: the graph of members.

The paper tried pairs only and leaves rings and other graphs open (§4).
"""

from __future__ import annotations

from collections.abc import Callable


def neighbours_all(member: int, members: int) -> tuple[int, ...]:
  """Everyone else: the sum over j ≠ i of Algorithm 1."""
  return tuple(other for other in range(members) if other != member)


def neighbours_ring(member: int, members: int) -> tuple[int, ...]:
  """The next member only; the last learns from the first."""
  return ((member + 1) % members,) if members > 1 else ()


def neighbours_pairs(member: int, members: int) -> tuple[int, ...]:
  """One fixed partner: 0 with 1, 2 with 3, and so on.

  Raises:
    ValueError: if `members` is odd.
  """
  if members % 2:
    raise ValueError(
      f'topology pairs needs an even number of members, not {members}; choose '
      'another number of members, or topology all or ring'
    )
  return (member ^ 1,)


TOPOLOGIES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
  'all': neighbours_all,
  'ring': neighbours_ring,
  'pairs': neighbours_pairs,
}


def make_neighbours(topology: str, members: int) -> dict[int, tuple[int, ...]]:
  """Each member's teachers, by member number.

  Args:
    topology: a key of `TOPOLOGIES`.
    members: N.

  Returns:
    For every member the numbers of those it learns from, ascending.

  Raises:
    ValueError: if there is no such topology, or N does not suit it.
  """
  if topology not in TOPOLOGIES:
    raise ValueError(
      f'no topology {topology!r}; there are {", ".join(TOPOLOGIES)}'
    )
  neighbours = TOPOLOGIES[topology]
  return {member: neighbours(member, members) for member in range(members)}
