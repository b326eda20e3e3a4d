"""The graphs: nobody learns from itself, and each is what its name says."""

import pytest

from codistill import topology


@pytest.mark.parametrize('name', topology.TOPOLOGIES)
@pytest.mark.parametrize('members', [2, 4, 6])
def test_neighbours_are_other_members_each_once(name, members):
  graph = topology.make_neighbours(name, members)
  assert list(graph) == list(range(members))
  for member, neighbours in graph.items():
    assert member not in neighbours
    assert sorted(set(neighbours)) == list(neighbours)
    assert neighbours
    assert set(neighbours) <= set(range(members))


def test_two_members_teach_each_other_in_every_graph():
  for name in topology.TOPOLOGIES:
    assert topology.make_neighbours(name, 2) == {0: (1,), 1: (0,)}


def test_graphs_of_four():
  assert topology.make_neighbours('all', 4)[1] == (0, 2, 3)
  assert topology.make_neighbours('ring', 4) == {
    0: (1,),
    1: (2,),
    2: (3,),
    3: (0,),
  }
  assert topology.make_neighbours('pairs', 4) == {
    0: (1,),
    1: (0,),
    2: (3,),
    3: (2,),
  }


def test_a_lone_member_has_no_teacher():
  for name in ('all', 'ring'):
    assert topology.make_neighbours(name, 1) == {0: ()}


def test_pairs_of_an_odd_number_and_unknown_graphs_are_refused():
  with pytest.raises(ValueError, match='even number of members, not 3'):
    topology.make_neighbours('pairs', 3)
  with pytest.raises(ValueError, match='all, ring, pairs'):
    topology.make_neighbours('star-shaped', 3)
