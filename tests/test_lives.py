"""Which lives may teach: those at work since a member began, and later ones."""

import json
import os
import time

import pytest
import stand_ins
from etils import epath

from codistill.exchange.folder.lease import Lease
from codistill.exchange.folder.lives import Lives

# Leases of a peer in its third life, which continues a run begun in its second;
# it is said to be held, but has given no sign of life for long.
OVER = {'began': 2, 'held': False, 'finished': True}
STOPPED = OVER | {'finished': False}
KILLED = STOPPED | {'held': True, 'host': 'elsewhere'}
# It has begun anew after it was over.
AGAIN = OVER | {
  'held': True,
  'finished': False,
  'over': 3,
  'incarnation': 4,
  'began': 4,
  'withdrawn': None,
}
# It says this later.
BEATS = {'heartbeat': 'later'}
GOES_ON = {'held': True, 'incarnation': 4, 'nonce': 'new'}
ANEW = GOES_ON | {'began': 4}
UNKNOWN = GOES_ON | {'began': None}
EMPTIED = GOES_ON | {'began': 1, 'incarnation': 1}


def write(path, content, seconds_ago=1e4):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content))
  then = time.time() - seconds_ago
  os.utime(path, (then, then))


@pytest.fixture
def content(tmp_path):
  """The content of a lease that is free."""
  path = tmp_path / 'content/lease.json'
  with stand_ins.lease(path):
    pass
  return json.loads(path.read_text()) | {'incarnation': 3, 'nonce': 'old'}


def lives_in(folder, synchronous=False):
  return Lives(
    epath.Path(folder),
    members=[0],
    peers=[1],
    synchronous=synchronous,
    incarnations=lambda member: [2, 5],
  )


def taught_by(lives):
  return [life for life in range(1, 6) if lives.may_teach(1, life)]


@pytest.mark.parametrize(
  ('before', 'later', 'lives'),
  [
    # A member that is not at work does not teach, but its next life does.
    (OVER, {}, [4, 5]),
    (STOPPED, {}, [4, 5]),
    (KILLED, {}, [4, 5]),
    # It was alive, so publications since its run began count.
    (KILLED, BEATS, [2, 3, 4, 5]),
    # It comes back: it goes on, begins anew, or does not say yet.
    (STOPPED, GOES_ON, [2, 3, 4, 5]),
    (OVER, ANEW, [4, 5]),
    (OVER, UNKNOWN, [4, 5]),
    # Lives are counted anew in a folder that was emptied.
    (OVER, EMPTIED, [1, 2, 3, 4, 5]),
    # Older code does not tell, so all publications count once it is at work.
    ({**STOPPED, 'began': 'x'}, GOES_ON | {'began': 'x'}, [1, 2, 3, 4, 5]),
    # Without a lease, nothing is left out.
    (None, None, []),
    (None, ANEW, [4, 5]),
  ],
)
def test_peers_teach_that_are_at_work_since_a_member_began(
  tmp_path, content, before, later, lives
):
  path = tmp_path / '1/lease.json'
  if before is not None:
    write(path, content | before)
  mine = lives_in(tmp_path)
  mine.look()
  mine.begin({0: 7})
  if later is not None:
    write(path, content | (before or {}) | later)
  assert taught_by(mine) == lives
  # That does not change, and a life that goes on knows it.
  again = lives_in(tmp_path)
  assert again.restore(json.loads(json.dumps(mine.notes()))) == {0: 7}
  assert taught_by(again) == taught_by(mine) == lives
  # State that was stored before this existed keeps nobody from teaching.
  assert again.restore(None) == {0: 0}
  assert taught_by(again) == [1, 2, 3, 4, 5]


def test_a_member_killed_elsewhere_a_moment_ago_is_not_at_work(
  tmp_path, content
):
  path = tmp_path / '1/lease.json'
  write(path, content | KILLED, seconds_ago=0)
  mine = lives_in(tmp_path)
  mine.look()
  mine.begin({0: 7})
  assert taught_by(mine) == [4, 5]
  write(path, content | KILLED | BEATS, seconds_ago=0)
  assert taught_by(mine) == [2, 3, 4, 5]


def test_peers_at_work_teach_with_all_of_their_present_life(tmp_path):
  lease = Lease(tmp_path / '1/lease.json', timeout_s=60.0, what='', began=None)
  lease.acquire(at_least=4)
  mine = lives_in(tmp_path)
  mine.look()
  mine.begin({0: 1})
  # It has just started, and may go on or begin anew.
  assert taught_by(mine) == [4, 5]
  assert mine.present(1) == {}
  lease.note(began=3)
  lease.beat()
  assert taught_by(mine) == [3, 4, 5]
  assert mine.present(1)['began'] == 3
  lease.release()


@pytest.mark.parametrize(
  ('mine', 'theirs', 'is_past'),
  [
    # If both have finished a run, it is another one.
    (OVER, OVER, True),
    # So it is if one of them has begun anew before the other.
    (OVER, AGAIN, True),
    # One was killed in the run that the other has finished since.
    (AGAIN, OVER, False),
    (AGAIN, AGAIN, True),
    (AGAIN, STOPPED, False),
    # A member that has not finished will repeat itself, and may need copies.
    (STOPPED, OVER, False),
    (OVER, STOPPED, False),
    (None, OVER, False),
    ({'held': False}, {'held': False}, False),  # Older code wrote this.
  ],
)
def test_synchronous_members_repeat_a_run_that_is_not_over(
  tmp_path, content, mine, theirs, is_past
):
  for member, changes in enumerate((mine, theirs)):
    if changes is not None:
      path = tmp_path / str(member) / 'lease.json'
      write(path, content | {'withdrawn': 5} | changes)
  lives = lives_in(tmp_path, synchronous=True)
  lives.look()
  lives.begin({0: 4})
  assert taught_by(lives) == ([4, 5] if is_past else [1, 2, 3, 4, 5])
  # Its note about steps that never come counts for that run only.
  assert lives.present(1).get('withdrawn') == (None if is_past else 5)
