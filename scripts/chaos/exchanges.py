"""Members that exchange in this process and do not train."""

from __future__ import annotations

import collections
import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from codistill import precision
from codistill.exchange import topology
from codistill.exchange.folder import publication
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.publication import Notes
from codistill.exchange.folder.settings import Settings
from scripts.chaos.outcome import expect, until
from scripts.chaos.runs import World

PyTree = Any


class InProcess(World):
  """Two exchanges without training; weights tell their member and step."""

  def __init__(self, folder: pathlib.Path):
    """Opens nothing yet.

    Args:
      folder: the exchange's; it need not exist.
    """
    self.exchange = folder
    self.members = [make_exchange(folder, member) for member in (0, 1)]
    self.step = 0
    self._events: collections.Counter[str] = collections.Counter()

  def __enter__(self) -> InProcess:
    with contextlib.ExitStack() as stack:
      for exchange in self.members:
        stack.enter_context(exchange)
      self._stack = stack.pop_all()
    self.recover()
    self.events()
    return self

  def __exit__(self, *exception: object) -> None:
    self._stack.__exit__(*exception)

  def go_on(self, event: str | None = None) -> None:
    began, seen = self.step, [set(), set()]

    def done() -> bool:
      self._take_step(seen)
      return self.step >= began + 5 and all(
        event is None or event in events for events in seen
      )

    until(done, f'both to go on with {event or "nothing"}')

  def recover(self) -> float:
    began = self.step

    def done() -> bool:
      self._take_step([set(), set()])
      copies = [look(self.members[member], member) for member in (0, 1)]
      return all(copy is not None and copy > began for copy in copies)

    return until(done, 'both to load new weights')

  def events(self) -> collections.Counter[str]:
    found, self._events = self._events, collections.Counter()
    return found

  def _take_step(self, seen: Sequence[set[str]]) -> None:
    self.step += 1
    for member, exchange in enumerate(self.members):
      look(exchange, member)
      exchange.offer(member, self.step, weights(member, self.step))
      events = [event['event'] for event in exchange.account(member).events]
      seen[member].update(events)
      self._events.update(events)


@functools.lru_cache(512)
def weights(member: int, step: int) -> PyTree:
  """Weights that no other member has at any step."""
  rng = np.random.default_rng((member, step))

  def numbers(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))

  return {
    'params': {'kernel': numbers(64, 16), 'bias': numbers(16)},
    'batch_stats': {'mean': numbers(16)},
  }


def make_exchange(folder: pathlib.Path, member: int) -> CheckpointExchange:
  """Makes the exchange of one of two members that publish at every step."""
  return CheckpointExchange(
    folder,
    topology.make_topology('all', 2),
    Settings(
      reload_interval_steps=1,
      poll_interval_s=0.02,
      keep_s=1.0,
      lease_timeout_s=4.0,
    ),
    members=(member,),
    like=weights(0, 0),
  )


def look(exchange: CheckpointExchange, member: int) -> int | None:
  """The step of the copy that teaches a member now; None without one.

  Raises:
    FailedError: if its weights are not those of that step.
  """
  for peer in exchange.freshest(member, 1):
    same = jax.tree.map(
      np.array_equal, peer.variables, weights(peer.member, peer.step)
    )
    expect(
      jax.tree.all(same),
      f'the copy of step {peer.step} has weights that nobody published',
    )
    return peer.step
  return None


class Reader:
  """Member 0 in this process, and publications made up for member 1."""

  def __init__(self, folder: pathlib.Path):
    """Opens nothing yet."""
    self.folder = folder
    self.exchange = make_exchange(folder, 0)
    self.step = 0

  def __enter__(self) -> Reader:
    self.exchange.__enter__()
    self.publish()
    return self

  def __exit__(self, *exception: object) -> None:
    self.exchange.__exit__(*exception)

  def look(self) -> int | None:
    """The step of the copy that would teach now; its weights are right."""
    return look(self.exchange, 0)

  def failed_loads(self) -> int:
    """The number of failed loads so far."""
    return self.exchange.account(0).failed_loads

  def publish(self, **changes: Any) -> float:
    """Publishes the next step and waits until it is seen; returns seconds.

    Args:
      **changes: false values for its notes.
    """
    with self.about_to_appear(**changes):
      pass
    return self.sees()

  def sees(self) -> float:
    """Waits until the newest publication is seen; returns seconds."""
    return until(lambda: self.look() == self.step, f'to see step {self.step}')

  @contextlib.contextmanager
  def about_to_appear(self, **changes: Any) -> Iterator[pathlib.Path]:
    """Writes the next publication, to be spoilt; it appears after the block.

    Args:
      **changes: false values for its notes.

    Yields:
      Its folder until then.
    """
    self.step += 1
    variables = weights(1, self.step)
    notes = Notes(
      member=1,
      step=self.step,
      incarnation=1,
      wall_time=time.time(),
      task_loss=None,
      config_hash='',
      precision='float32',
      num_bytes=precision.num_bytes(variables),
    )
    aside = self.folder / 'aside'
    publication.write(epath.Path(aside), variables, notes._replace(**changes))
    yield aside / str(self.step)
    (self.folder / '1').mkdir(parents=True, exist_ok=True)
    (aside / str(self.step)).rename(self.newest)

  @property
  def newest(self) -> pathlib.Path:
    """The folder of the newest publication, once it has appeared."""
    return self.folder / '1' / str(self.step)


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder that are not empty."""
  return sorted(
    path for path in folder.rglob('*') if path.is_file() and path.stat().st_size
  )
