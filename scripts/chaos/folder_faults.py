"""Faults of the folder: read-only, removed, moved, garbage, wrong times."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

from etils import epath

from codistill.exchange.folder.lease import LeaseHeldError
from codistill.storage import step_folders
from scripts.chaos.exchanges import files_of, make_exchange
from scripts.chaos.outcome import FailedError, Result, expect, until
from scripts.chaos.runs import World


def read_only(world: World, by: str | None = None) -> Result:
  """Nobody can write to the folder for a while."""
  with unwritable(world.exchange, by) as how:
    world.go_on('failed publish')
  seconds = world.recover()
  return Result(how, _publications(world), f'news after {seconds:.1f} s')


@contextlib.contextmanager
def unwritable(folder: pathlib.Path, by: str | None) -> Iterator[str]:
  """Makes a folder of members unwritable, even for root.

  Args:
    folder: with a folder for each member.
    by: 'chattr' (by root, if the file system supports it), 'chmod' (by other
      users) or 'file' (always); None for the first that works.

  Yields:
    How it was done.
  """
  folders = [folder, *(path for path in folder.iterdir() if path.is_dir())]
  commands = {
    'chattr': (['chattr', '+i'], ['chattr', '-i']),
    'chmod': (['chmod', 'a-w'], ['chmod', 'u+w']),
  }
  for name in [by] if by else commands:
    if name == 'file' or shutil.which(name) is None:
      continue
    forbid, allow = commands[name]
    try:
      tried = subprocess.run([*forbid, *folders], capture_output=True)
      if tried.returncode == 0 and not _can_write(folder):
        yield f'{" ".join(forbid)} on the folder and the members’ folders'
        return
    finally:
      subprocess.run([*allow, *folders], capture_output=True)
  with contextlib.ExitStack() as stack:
    for path in folders[1:]:
      stack.enter_context(_file_in_place_of(path))
    yield 'a file in place of each member’s folder'


def _can_write(folder: pathlib.Path) -> bool:
  try:
    with tempfile.TemporaryFile(dir=folder):
      return True
  except OSError:
    return False


@contextlib.contextmanager
def _file_in_place_of(folder: pathlib.Path) -> Iterator[None]:
  aside = folder.with_name(f'{folder.name}-aside')
  file = folder.with_name(f'{folder.name}-file')
  file.write_text('')
  folder.rename(aside)
  _put_in_place(file, folder)
  yield
  _put_in_place(aside, folder)


def _put_in_place(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Puts a path in place of a folder that members make again if it is gone."""
  for attempt in range(1_000):
    fresh = folder.with_name(f'{path.name}-{attempt}')
    with contextlib.suppress(OSError):
      with contextlib.suppress(FileNotFoundError):
        folder.rename(fresh)
      path.rename(folder)
      return
  raise FailedError(f'{path.name} could not be put in the place of {folder}')


def removed(world: World) -> Result:
  """The folder is removed while both are at work; a fresh one appears."""
  for _ in range(3):
    # Members that write meanwhile may leave it not empty.
    shutil.rmtree(world.exchange, ignore_errors=True)
  seconds = world.recover()
  world.go_on()
  _await_leases(world)
  return Result(
    'rm -r of the exchange',
    _publications(world),
    f'news after {seconds:.1f} s, in a new folder',
  )


def moved(world: World) -> Result:
  """The folder is renamed, a fresh one appears, and the old one comes back."""
  aside = world.exchange.with_name('exchange-aside')
  world.exchange.rename(aside)
  away = world.recover()
  world.go_on()
  _put_in_place(aside, world.exchange)
  back = world.recover()
  _await_leases(world)
  return Result(
    'mv of the exchange, and back in place of the new one',
    _publications(world),
    f'news after {away:.1f} s in a new folder, {back:.1f} s in the old one',
  )


def garbage(world: World, chance: random.Random) -> Result:
  """Junk of all kinds lies in the members' folders."""
  for member in (0, 1):
    spoil(world.exchange / str(member), chance)
  world.go_on('failed load')
  seconds = world.recover()
  _await_leases(world)
  return Result(
    'random files; a file, an empty folder, a link to itself and step 99999999 '
    'of junk; random bytes in the newest publication and lease.json',
    _publications(world),
    f'news after {seconds:.1f} s',
  )


def spoil(folder: pathlib.Path, chance: random.Random) -> None:
  """Fills a member's folder with junk."""
  for _ in range(5):
    name = chance.randbytes(4).hex()
    (folder / f'junk-{name}').write_bytes(chance.randbytes(1_000))
  real = step_folders.finished(epath.Path(folder))
  if real:
    for path in files_of(folder / str(max(real))):
      # It may have been pruned meanwhile.
      with contextlib.suppress(FileNotFoundError):
        path.write_bytes(chance.randbytes(path.stat().st_size))
  (folder / 'lease.json').write_bytes(chance.randbytes(300))
  (folder / '99999996').write_bytes(chance.randbytes(300))
  (folder / '99999997').mkdir()
  (folder / '99999998').symlink_to(folder / '99999998')
  junk = folder / '99999999'
  for name in ('_CHECKPOINT_METADATA', 'state/_METADATA', 'state/d/0'):
    (junk / name).parent.mkdir(parents=True, exist_ok=True)
    (junk / name).write_bytes(chance.randbytes(1_000))


def tomorrow(folder: pathlib.Path) -> Result:
  """A lease is dated tomorrow, by a dead holder and by one that lives."""
  lease = folder / '1' / 'lease.json'
  with make_exchange(folder, 1):
    pass
  dead = {'held': True, 'host': 'elsewhere', 'nonce': 'another'}
  lease.write_text(json.dumps(json.loads(lease.read_text()) | dead))
  _date_tomorrow(lease)
  began = time.monotonic()
  with make_exchange(folder, 1) as holder:
    freed = time.monotonic() - began
    _date_tomorrow(lease)
    began = time.monotonic()
    try:
      make_exchange(folder, 1).__enter__()
    except LeaseHeldError:
      refused = time.monotonic() - began
    else:
      raise FailedError('a second job took the lease of a live one')
    holder.freshest(1, 1)  # Raises if it has been replaced.
  expect(freed >= 4, f'a lease was taken after {freed:.1f} s of watching')
  return Result(
    'a heartbeat of tomorrow, of a dead holder elsewhere and of a live one',
    'nothing: a second job is refused while the holder lives',
    f'free after {freed:.1f} s of watching, refused after {refused:.1f} s',
  )


def _date_tomorrow(lease: pathlib.Path) -> None:
  at = time.time() + 86_400
  os.utime(lease, (at, at))


def _await_leases(world: World) -> None:
  """Waits until both leases say again that they are held."""
  for member in (0, 1):
    path = world.exchange / str(member) / 'lease.json'
    until(lambda path=path: _says_held(path), f'the lease of member {member}')


def _says_held(lease: pathlib.Path) -> bool:
  try:
    return json.loads(lease.read_text())['held']
  except (OSError, ValueError):
    return False


def _publications(world: World) -> str:
  missed = world.missed()
  return 'nothing' if missed == 'nothing' else f'publications: {missed}'
