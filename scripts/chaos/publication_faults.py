"""Faults of publications: damaged, misdated, slow; read in this process."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from codistill.exchange.folder import publication
from codistill.storage import step_folders
from scripts.chaos.exchanges import Reader, files_of, make_exchange, weights
from scripts.chaos.outcome import LONG_S, Result, expect, until

_DAY_S = 86_400.0

# Damages a file's bytes.
Spoil = Callable[[bytes, random.Random], bytes]
TRUNCATED: dict[str, Spoil] = {
  'to nothing': lambda data, chance: b'',
  'to a half': lambda data, chance: data[: len(data) // 2],
  'by a byte': lambda data, chance: data[:-1],
}
RANDOM: dict[str, Spoil] = {
  'by random bytes': lambda data, chance: chance.randbytes(len(data)),
}


def _flip(data: bytes, chance: random.Random) -> bytes:
  place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
  return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


FLIPPED: dict[str, Spoil] = {f'flip {number}': _flip for number in range(4)}


def damaged(
  folder: pathlib.Path, ways: Mapping[str, Spoil], chance: random.Random
) -> Result:
  """Each file of the newest publication is damaged in turn, and mended."""
  with Reader(folder) as reader:
    number = len(files_of(reader.newest))
    refused, seconds = 0, []
    for index in range(number):
      for spoil in ways.values():
        failed = reader.failed_loads()
        before = reader.step
        with reader.about_to_appear() as path:
          name = files_of(path)[index].relative_to(path)
          data = (path / name).read_bytes()
          (path / name).write_bytes(spoil(data, chance))
        until(
          lambda failed=failed: (
            reader.look() == reader.step or reader.failed_loads() > failed
          ),
          f'a look at a damaged {name}',
        )
        if (seen := reader.look()) == before:
          refused += 1
          (reader.newest / name).write_bytes(data)
        else:
          expect(seen == reader.step, f'step {seen} instead of {before}')
        seconds.append(reader.sees())
    failed = reader.failed_loads()
  tried = number * len(ways)
  return Result(
    f'each of {number} files in turn: {", ".join(ways)}',
    f'{refused} of {tried} refused and the old copy kept, {tried - refused} '
    f'read right without that file; {failed} failed loads counted',
    f'read within {max(seconds):.1f} s after it was mended',
  )


def clock(folder: pathlib.Path) -> Result:
  """Publications are dated tomorrow and yesterday."""
  seconds = []
  with Reader(folder) as reader:
    for days in (1, -1):
      seconds.append(reader.publish(wall_time=time.time() + days * _DAY_S))
      with reader.about_to_appear() as path:
        at = time.time() + days * _DAY_S
        os.utime(path, (at, at))
      seconds.append(reader.sees())
    failed = reader.failed_loads()
  expect(not failed, f'{failed} failed loads')
  return Result(
    'wall_time in the notes, and the time of the folder, off by ±1 day',
    'nothing: read like any other',
    f'read within {max(seconds):.1f} s',
  )


def slow_disk(folder: pathlib.Path, steps: int = 200) -> Result:
  """A load takes as long as many steps."""
  held, go = threading.Event(), threading.Event()
  real = publication.load

  def load(*arguments: Any) -> Any:
    held.set()
    go.wait(LONG_S)
    return real(*arguments)

  with Reader(folder) as reader, _replaced('load', load):
    with reader.about_to_appear():
      pass
    until(held.is_set, 'a load')
    began, before = time.monotonic(), reader.step - 1
    for step in range(1, steps + 1):
      expect(reader.look() == before, 'another copy than before')
      reader.exchange.offer(0, step, weights(0, step))
    passed = time.monotonic() - began
    stalled = reader.exchange.account(0).stall_seconds or 0.0
    expect(passed < LONG_S, 'the steps waited for the load')
    go.set()
    seconds = reader.sees()
  return Result(
    f'a load that returns only after {steps} more steps',
    f'{1e3 * stalled / steps:.1f} ms a step in the exchange; a teacher {steps} '
    'steps older',
    f'read {seconds:.1f} s after the disk is back',
  )


def slow_writer(folder: pathlib.Path, steps: int = 200) -> Result:
  """A write takes as long as many steps."""
  held, go = threading.Event(), threading.Event()
  real = publication.write

  def write(*arguments: Any) -> None:
    held.set()
    go.wait(LONG_S)
    real(*arguments)

  with make_exchange(folder, 1) as exchange, _replaced('write', write):
    exchange.offer(1, 1, weights(1, 1))
    until(held.is_set, 'a write')
    began = time.monotonic()
    for step in range(2, steps + 1):
      exchange.offer(1, step, weights(1, step))
    expect(time.monotonic() - began < LONG_S, 'the steps waited for the write')
    events = collections.Counter(
      event['event'] for event in exchange.account(1).events
    )
    go.set()
    member = epath.Path(folder) / '1'
    seconds = until(
      lambda: {1, steps} <= step_folders.finished(member).keys(), 'the last one'
    )
  expect(
    dict(events) == {'skip': steps - 2},
    f'{dict(events)} of {steps} publications, of which two were written',
  )
  return Result(
    f'a write that returns only after {steps - 1} more publications',
    f'{events["skip"]} publications skipped and counted; one waited',
    f'the newest was there {seconds:.1f} s after the disk was back',
  )


@contextlib.contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
  """Replaces the function that reads or writes publications."""
  real = getattr(publication, name)
  setattr(publication, name, function)
  try:
    yield
  finally:
    setattr(publication, name, real)
