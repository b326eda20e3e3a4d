"""Each graph is what its name says, and nobody learns from itself."""

import collections

import pytest

from codistill.exchange.topology import GRAPHS, make_topology


def graph(name, members, reload=0, **how):
  made = make_topology(name, members, **how)
  return {member: made.teachers(member, reload) for member in range(members)}


@pytest.mark.parametrize('name', [*GRAPHS, 'random'])
def test_teachers_are_other_members_each_once(name):
  for members in (2, 4, 6):
    made = make_topology(name, members)
    for member in range(members):
      candidates = made.candidates(member)
      assert set(candidates) <= set(range(members))
      for reload in range(5):
        teachers = made.teachers(member, reload)
        assert teachers
        assert sorted(set(teachers)) == list(teachers)
        assert set(teachers) <= set(candidates) - {member}
  # Two members teach each other in every graph; a single one has no teacher.
  assert graph(name, 2) == {0: (1,), 1: (0,)}
  if name in ('all', 'ring', 'star'):
    assert graph(name, 1) == {0: ()}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('all', {0: (1, 2, 3), 1: (0, 2, 3), 2: (0, 1, 3), 3: (0, 1, 2)}),
    ('ring', {0: (1,), 1: (2,), 2: (3,), 3: (0,)}),
    ('pairs', {0: (1,), 1: (0,), 2: (3,), 3: (2,)}),
    ('star', {0: (1, 2, 3), 1: (0,), 2: (0,), 3: (0,)}),
  ],
)
def test_graphs_of_four_that_stay_as_they_are(name, expected):
  assert graph(name, 4) == graph(name, 4, reload=17) == expected


def test_random_neighbours_are_redrawn_at_each_reload_from_the_seed():
  draws, again = (
    [graph('random', 6, reload, num_random=2) for reload in range(20)]
    for _ in range(2)
  )
  assert draws == again
  assert draws[0] != graph('random', 6, num_random=2, seed=1)
  mine = [draw[3] for draw in draws]
  assert all(len(teachers) == 2 for teachers in mine)
  assert len(set(mine)) > 5
  # Members draw differently: otherwise all others would learn from one.
  alone = [graph('random', 6, reload).values() for reload in range(20)]
  assert max(len(set(teachers)) for teachers in alone) > 2


def test_random_neighbours_are_drawn_evenly():
  made = make_topology('random', 5, num_random=2)
  draws = (made.teachers(0, reload) for reload in range(1_000))
  counts = collections.Counter(peer for draw in draws for peer in draw)
  assert set(counts) == {1, 2, 3, 4}
  # 500 each; the standard deviation is 16.
  assert all(abs(count - 500) < 100 for count in counts.values())


def test_what_does_not_suit_the_number_of_members_is_refused(monkeypatch):
  with pytest.raises(ValueError, match='even number of members, not 3'):
    make_topology('pairs', 3)
  with pytest.raises(ValueError, match='all, ring, pairs, star, random'):
    make_topology('star-shaped', 3)
  # Graphs of one's own.
  for name, graph in (('me', lambda *_: (0,)), ('next', lambda i, n: (i + 1,))):
    monkeypatch.setitem(GRAPHS, name, graph)
    with pytest.raises(ValueError, match='would learn from'):
      make_topology(name, 3)
  for number in (0, 3):
    with pytest.raises(ValueError, match='can be 1 to 2'):
      make_topology('random', 3, num_random=number)
