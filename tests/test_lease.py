"""One job at a time: which one is alive, dead or replaced."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
import stand_ins

from codistill.exchange.folder import lease as lease_module
from codistill.exchange.folder.lease import (
  _KINDS,
  Lease,
  LeaseHeldError,
  LeaseLostError,
  is_held,
  read_lease,
)

until = functools.partial(stand_ins.until, seconds=20)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'member' / 'lease.json'


@pytest.fixture
def make(path):
  made = []

  def make(timeout_s=60.0, **notes):
    made.append(Lease(path, timeout_s=timeout_s, what='member 1', **notes))
    return made[-1]

  yield make
  for lease in made:
    lease.release()


def change(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def held(path):
  return is_held(path, read_lease(path))


def test_a_second_job_is_refused_while_the_first_lives(make):
  first = make()
  assert first.acquire() == 1
  said = 'another process is at work on member 1: '
  said += f'pid {os.getpid()} .*lease_timeout_s'
  with pytest.raises(LeaseHeldError, match=said):
    make().acquire()
  # Each life has the next number.
  first.release()
  second = make()
  assert second.acquire() == 2
  second.release()
  assert make().acquire(at_least=9) == 9


def test_what_is_returned_says_so_and_keeps_its_notes(make, path):
  lease = make(step=None)
  lease.acquire()
  lease.note(step=50)
  until(lambda: read_lease(path).get('step') == 50)
  found = read_lease(path)
  assert is_held(path, found)
  said = {'incarnation': 1, 'pid': os.getpid(), 'timeout_s': 60.0}
  assert found.items() >= said.items()
  lease.release(step=60)
  found = read_lease(path)
  assert not is_held(path, found)
  assert found['step'] == 60


HOLD = """
import sys, time
from codistill.exchange.folder.lease import Lease
Lease(sys.argv[1], timeout_s=1000.0, what='here').acquire()
print('held', flush=True)
time.sleep(100)
"""


def test_a_process_that_was_killed_frees_it_at_once(make, path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(path)], stdout=subprocess.PIPE
  )
  with process:
    assert process.stdout.readline() == b'held\n'
    with pytest.raises(LeaseHeldError, match=f'pid {process.pid}'):
      make().acquire()
    process.kill()
    # Its parent may not have noticed yet: a zombie is dead, too.
    until(lambda: not held(path))
    assert make().acquire() == 2


ELSEWHERE = {'host': 'elsewhere', 'nonce': 'another'}


@pytest.mark.parametrize(
  ('changes', 'seconds', 'lives'),
  [
    # Its number belongs to a process that began at another time.
    ({'process_started': 1.0}, 0, False),
    ({'pid': 2**22}, 0, False),
    ({}, 50, True),
    ({}, 70, False),  # A process of this host hangs.
    (ELSEWHERE, 50, True),
    (ELSEWHERE, 70, False),
    # It promised rarer signs of life; its clock is its own; process numbers
    # mean nothing in another container.
    ({**ELSEWHERE, 'timeout_s': 600.0}, 100, True),
    ({**ELSEWHERE, 'heartbeat': '1999-01-01T00:00:00+00:00'}, 0, True),
    ({'pid_namespace': 'pid:[1]', 'pid': 2**22}, 0, True),
  ],
)
def test_a_holder_is_dead_or_lives(make, path, changes, seconds, lives):
  make().acquire()
  change(path, **changes)
  then = time.time() - seconds
  os.utime(path, (then, then))
  for probe in (True, False):
    timeout_s = 0.0 if 'timeout_s' in changes else 60.0
    assert is_held(path, read_lease(path), timeout_s, probe=probe) == lives
  with pytest.raises(LeaseHeldError) if lives else contextlib.nullcontext():
    assert make().acquire() == 2


def date(path, seconds):
  """Sets a file's time as if its file system's clock had been set back."""
  then = time.time() + seconds
  os.utime(path, (then, then))


@pytest.mark.parametrize('probe', [True, False])
def test_a_time_to_come_is_no_sign_of_life_nor_of_death(make, path, probe):
  make().acquire()
  found = read_lease(path)
  for seconds, held in ((50, True), (70, None), (86_400, None)):
    date(path, seconds)
    assert is_held(path, found, probe=probe) is held
  # A time that cannot be read is no sign, either.
  with mock.patch.object(lease_module, '_age_s', side_effect=OSError):
    assert is_held(path, found, probe=probe) is None
  # A holder that is certainly dead is dead at any time.
  assert is_held(path, found | {'pid': 2**22}, probe=probe) is False


def test_a_dead_holder_of_tomorrow_is_forgotten_after_a_timeout(
  make, path, caplog
):
  make(timeout_s=0.3).acquire()
  change(path, **ELSEWHERE)
  date(path, 86_400)
  began = time.monotonic()
  assert make(timeout_s=0.2).acquire() == 2
  # It waits as long as the holder's timeout.
  assert 0.3 <= time.monotonic() - began < 5
  [message] = caplog.messages  # Once.
  said = r'member 1 \(pid .* on elsewhere, .*waiting for at most 0\.3 s'
  assert re.search(said, message)


def test_a_live_holder_keeps_it_when_the_clock_is_set_back(
  make, path, monkeypatch, caplog
):
  holder = make(timeout_s=60.0)
  holder.acquire()
  date(path, 3_600)
  # The clock stays behind, so each beat is in the future, too.
  real = Lease._write
  monkeypatch.setattr(
    Lease, '_write', lambda self: (real(self), date(path, 9e3))
  )
  threading.Timer(0.2, holder.beat).start()
  began = time.monotonic()
  with pytest.raises(LeaseHeldError, match=f'pid {os.getpid()}'):
    make().acquire()
  assert time.monotonic() - began < 20
  assert len(caplog.messages) == 1
  holder.check()


def test_a_replaced_holder_finds_out_and_leaves_the_other_alone(make, path):
  first = make(timeout_s=0.2)
  first.acquire()
  first.check()
  change(path, nonce='another', pid=7, host='elsewhere')
  theirs = path.read_text()
  first.beat()
  with pytest.raises(LeaseLostError, match='pid 7 on elsewhere'):
    first.check()
  # It does not wait for a beat that will not come.
  began = time.monotonic()
  first.beat()
  assert time.monotonic() - began < 5
  first.note(step=9)
  first.release()
  assert path.read_text() == theirs


def test_a_replaced_holder_does_not_take_it_back(make, path):
  first = make()
  first.acquire()
  change(path, held=False)
  second = make()
  assert second.acquire() == 2
  second.release()
  first.beat()
  with pytest.raises(LeaseLostError):
    first.check()
  assert make().acquire() == 3


def test_a_disk_that_hangs_or_fails_neither_keeps_nor_ends_it(
  make, path, monkeypatch
):
  lease = make()
  lease.acquire()
  error = RuntimeError('a bucket has errors of its own')
  with mock.patch.object(lease, '_look_and_write', side_effect=error):
    lease.beat()
  lease.note(step=3)
  until(lambda: read_lease(path).get('step') == 3)
  hang = threading.Event()
  monkeypatch.setattr(lease_module, '_PATIENCE_S', 0.05)
  monkeypatch.setattr(lease, '_look_and_write', hang.wait)
  lease.beat(0.05)
  lease.release()
  hang.set()


def test_it_is_renewed_and_comes_back_after_its_folder_was_removed(make, path):
  lease = make(timeout_s=0.4)
  lease.acquire()
  path.unlink()
  path.parent.rename(path.parent.with_name('away'))
  until(path.exists)
  lease.check()
  until(lambda: held(path))


def test_garbage_and_what_is_not_there_hold_nothing(make, path):
  assert read_lease(path) == {}
  assert not held(path)
  assert not path.parent.exists()
  with pytest.raises(ValueError, match='lease_timeout_s must be positive'):
    make(timeout_s=0.0)
  path.parent.mkdir()
  # It has all keys, with nonsense in them.
  nonsense = json.dumps(dict.fromkeys(_KINDS, 'x') | {'held': True})
  for text in ('', '{', '[]', '{"held": true}', '\0' * 9, '[' * 9**5, nonsense):
    path.write_text(text)
    assert read_lease(path) == {}
    assert not held(path)
  assert make().acquire() == 1
