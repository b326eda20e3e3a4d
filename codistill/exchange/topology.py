"""The graph of members: which members teach which.

The paper tried pairs only and leaves rings and other graphs open (§4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

Teachers = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Topology:
  """A graph of members, which may change when peers are reloaded.

  Attributes:
    members: N; they are numbered from 0.
    teachers: (member, reload) → the member's teachers, ascending. `reload`
      counts a member's reload intervals, from 0.
    candidates: member → all teachers that it may ever have, ascending.
  """

  members: int
  teachers: Callable[[int, int], Teachers]
  candidates: Callable[[int], Teachers]


def all_others(member: int, members: int) -> Teachers:
  """All other members: the sum over j ≠ i of Algorithm 1."""
  return tuple(other for other in range(members) if other != member)


def ring(member: int, members: int) -> Teachers:
  """The next member only; the last learns from the first."""
  return ((member + 1) % members,) if members > 1 else ()


def pairs(member: int, members: int) -> Teachers:
  """One fixed partner: 0 with 1, 2 with 3, and so on; N is even."""
  del members
  return (member ^ 1,)


def star(member: int, members: int) -> Teachers:
  """Member 0 and each of the others teach each other."""
  return (0,) if member else all_others(member, members)


# By name: (member, members) → whom it learns from, ascending.
GRAPHS: dict[str, Callable[[int, int], Teachers]] = {
  'all': all_others,
  'ring': ring,
  'pairs': pairs,
  'star': star,
}


def make_topology(
  name: str, members: int, *, num_random: int = 1, seed: int = 0
) -> Topology:
  """Makes a graph by name.

  Args:
    name: one of `GRAPHS`, or `random`. With `random`, each member draws its
      teachers anew at each reload; the draw depends on its own number only.
    members: N.
    num_random: teachers of each member for `random`, 1 ≤ k < N.
    seed: seed of the draws for `random`.

  Raises:
    ValueError: if there is no such topology, or it does not suit N members.
  """
  known = (*GRAPHS, 'random')
  if name not in known:
    raise ValueError(f'no topology {name!r}; there are {", ".join(known)}')
  if name == 'pairs' and members % 2:
    raise ValueError(
      f'topology pairs needs an even number of members, not {members}; choose '
      'another number of members, or another topology'
    )
  if name != 'random':
    graph = GRAPHS[name]
    # One member alone has no others to learn from.
    for member in range(members) if members > 1 else ():
      for other in graph(member, members):
        if other == member or not 0 <= other < members:
          raise ValueError(
            f'topology {name}: member {member} of {members} would learn from '
            f'{other}; it has to be from others, 0 to {members - 1}'
          )
    return Topology(
      members,
      lambda member, reload: graph(member, members),
      lambda member: graph(member, members),
    )
  if not 1 <= num_random < members:
    raise ValueError(
      f'topology random: {num_random} neighbours of {members} members; '
      f'codistill.num_random_neighbours can be 1 to {members - 1}'
    )

  def draw(member: int, reload: int) -> Teachers:
    others = all_others(member, members)
    rng = np.random.default_rng((seed, member, reload))
    return tuple(sorted(rng.choice(others, num_random, replace=False).tolist()))

  return Topology(members, draw, lambda member: all_others(member, members))


def grouped(groups: Topology, size: int) -> Topology:
  """Members in groups: all others of a member's group, and its counterparts.

  Args:
    groups: the graph of groups. A member's counterparts are the members with
      its place in the groups that its group is joined to.
    size: members in a group; member i is in group i // size.
  """

  def spread(member: int, joined: Callable[[int], Teachers]) -> Teachers:
    group, place = divmod(member, size)
    mine = range(group * size, (group + 1) * size)
    others = [one for one in mine if one != member]
    return tuple(
      sorted([*others, *(one * size + place for one in joined(group))])
    )

  return Topology(
    groups.members * size,
    lambda member, reload: spread(
      member, lambda group: groups.teachers(group, reload)
    ),
    lambda member: spread(member, groups.candidates),
  )
