"""Members of many jobs exchange Orbax checkpoints through a folder.

The paper's members are jobs that share nothing else (§2.1). Each publishes its
weights to `<folder>/<member>/<step>/` and takes up the freshest finished ones
of its neighbours. Both happen in the background: the train loop copies its
weights on the device and goes on. Members start late, die, come back, stall or
fall ill; the others go on with the copies that they have.

With `synchronous` on, members wait for each other instead, so that each sees
exactly what it would see of members in the same process.

A member that is not restored begins anew: its publications from an earlier life
are removed, and only peers that have been at work since then teach it
(`codistill.exchange.folder.lives`).

If a member has several processes (`codistill.hosts`), the first one publishes
and holds the lease; all of them load the same copies.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from codistill import hosts
from codistill.algorithm import Account, Exchange, Peer, Publications
from codistill.exchange.copies import (
  Copy,
  choose_peers,
  from_publications,
  to_publications,
)
from codistill.exchange.folder.follower import Follower
from codistill.exchange.folder.journal import Journal
from codistill.exchange.folder.lease import LeaseLostError
from codistill.exchange.folder.lives import Lives
from codistill.exchange.folder.publication import network_note
from codistill.exchange.folder.publisher import Publisher
from codistill.exchange.folder.reader import Reader
from codistill.exchange.folder.settings import CLOSE_S, Settings
from codistill.exchange.folder.waiter import PeerTimeoutError, Waiter
from codistill.exchange.rules import ANY_PEER, Rules, TaskLosses
from codistill.exchange.topology import Topology

PyTree = Any


class CheckpointExchange(Exchange):
  """Members that exchange Orbax checkpoints through a folder.

  Enter it before use. It takes a lease on each of this process's members, so
  that a member has one job, and starts one thread that publishes and one that
  reads.
  """

  # Long, because it gives each part its arguments by name.
  def __init__(
    self,
    folder: epath.PathLike,
    topology: Topology,
    settings: Settings,
    *,
    members: Iterable[int],
    like: PyTree,
    networks: Sequence[str] = (),
    rules: Rules = ANY_PEER,
    config_hash: str = '',
    vocabulary: str = '',
  ):
    """Reads and writes nothing yet.

    Args:
      folder: shared by all members; local, or an object store that Orbax and
        etils support.
      topology: the graph of members; a random one is redrawn at a member's own
        reload intervals.
      settings: cadence, precision and patience.
      members: this process's members.
      like: a member's variables, or `jax.ShapeDtypeStruct`s of them with the
        shardings to load peers into. If members have different networks, a dict
        of these by the networks' names.
      networks: the name of each member's network, if they are different.
      rules: decide which peers may teach.
      config_hash: publications with another hash are not read.
      vocabulary: what inputs and classes mean, such as a hash of the pieces of
        a text; publications with another one are not read.
    """
    folder = epath.Path(folder)
    if '://' not in folder.as_posix():
      folder = folder.resolve()  # Orbax needs an absolute path.
    members = tuple(members)
    self._folder = folder
    self._settings = settings
    self._rules = rules
    # One of several processes cannot save or load alone: see OwnWorld.
    self._beside = hosts.OwnWorld() if hosts.are_several() else None
    outside = [m for m in members if m not in range(topology.members)]
    if outside:
      raise ValueError(
        f'member {outside[0]} is not in a graph of {topology.members} members; '
        'make the topology for as many as there are'
      )
    self._journal = Journal(members)
    self._losses = TaskLosses()
    likes = [
      like[networks[member]] if networks else like
      for member in range(topology.members)
    ]
    notes = {
      member: {
        'config_hash': config_hash,
        'network': network_note(networks[member] if networks else '', one),
        'vocabulary': vocabulary,
      }
      for member, one in enumerate(likes)
    }
    call = _here if self._beside is None else self._beside.call
    self._publisher = Publisher(
      folder,
      settings,
      members=members if hosts.is_first() else (),
      likes=likes,
      notes=notes,
      journal=self._journal,
      call=call,
      should_stop=lambda: self.should_stop(),
    )
    candidates = {
      peer for member in members for peer in topology.candidates(member)
    }
    self._lives = Lives(
      folder,
      members,
      sorted(candidates - {*members}),
      synchronous=settings.synchronous,
      incarnations=self._publisher.incarnations,
    )
    self._reader = Reader(
      folder,
      topology,
      settings,
      members=members,
      likes=likes,
      expected=notes,
      lives=self._lives,
      journal=self._journal,
      call=call,
    )
    # Keeps the copies of peers that members see.
    self._view: Follower | Waiter
    if settings.synchronous:
      self._view = Waiter(
        topology,
        settings,
        self._reader,
        check_leases=self._publisher.check_leases,
        should_stop=lambda: self.should_stop(),
      )
    else:
      self._view = Follower(topology, settings, self._reader, members)
    self._reads = self._entered = False
    self._last_step: dict[int, int] = {}
    self._left_out: dict[int, dict[int, str]] = {}
    self._stalls: dict[int, float] = {}

  def __enter__(self) -> CheckpointExchange:
    """Takes the leases and starts to publish.

    Raises:
      LeaseHeldError: if another job is at work on one of these members.
      OSError: if the folder cannot be written.
    """
    if hosts.is_first() and not self._reads:
      self._lives.look()
    self._publisher.open()
    self._entered = True
    return self

  def __exit__(self, *exception: object) -> None:
    """Publishes pending offers, for a limited time, and returns the leases."""
    finished = not any(exception)
    try:
      finished = finished and not self.should_stop()
    except LeaseLostError:
      finished = False
    self._publisher.close(self._last_step, finished=finished)
    self._view.close()
    if self._beside is not None:
      self._beside.close()

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes a copy, in the background, every k-th step.

    If the one before is still being written to a slow disk, this one waits; for
    an asynchronous member it replaces one that waits already.

    Raises:
      LeaseLostError: if another job has taken over.
    """
    began = time.monotonic()
    self._publisher.check_leases()
    self._begin()
    # A JAX integer could not be published.
    self._last_step[member] = step = operator.index(step)
    self._losses.add(member, task_loss)
    if step % self._settings.reload_interval_steps == 0:
      self._publisher.offer(
        member, step, variables, self._losses.publish(member)
      )
    self._stall(member, began)

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """Returns the freshest copy of each neighbour that may teach.

    Raises:
      LeaseLostError: if another job has taken over.
      PeerTimeoutError: if a synchronous member has waited too long.
      WaitInterruptedError: if it was told to stop while it waited.
    """
    began, step = time.monotonic(), operator.index(step)
    self._publisher.check_leases()
    self._begin()

    def newest(peer: int) -> tuple[int, Copy] | None:
      return self._view.newest(member, peer, step)

    peers, left_out = choose_peers(
      member,
      step,
      self._view.teachers(member, step),
      newest,
      self._rules,
      self._losses,
    )
    self._left_out[member] = {
      peer: self._reader.absence(peer) if why == 'absent' else why
      for peer, why in left_out.items()
    }
    self._stall(member, began)
    return peers

  def account(self, member: int) -> Account:
    """Returns the account of a member since the last call."""
    return Account(
      left_out=self._left_out.pop(member, {}),
      failed_loads=self._reader.failed_loads(member),
      stall_seconds=self._stalls.pop(member, 0.0),
      events=self._journal.take(member),
    )

  def withdraw(self, member: int) -> None:
    """Tells peers to wait for this member no longer."""
    self._publisher.withdraw(member, self._last_step.get(member, 0))
    # It asks for nothing more, either.
    self._view.withdraw(member)

  def flush(self) -> None:
    """Waits for a limited time until what was offered is in the folder."""
    self._publisher.flush(CLOSE_S)

  def publications(self) -> Publications:
    """Returns this process's copies of its neighbours.

    A synchronous member's own publications are in the folder when this returns,
    because the member will not offer them again.

    Raises:
      PeerTimeoutError: if they cannot be written in time.
    """
    if self._settings.synchronous:
      patience = self._settings.wait_timeout_s
      if self.should_stop():
        patience = min(patience, CLOSE_S)
      landed = self._publisher.flush(patience)
      gave_up = self._publisher.gave_up
      if hosts.any_says(not landed or bool(gave_up)):
        why = ''.join(f' ({text})' for text in gave_up.values())
        raise PeerTimeoutError(
          f'could not publish to {self._folder} in time{why}; check that it is '
          'writable, or allow more time (codistill.wait_timeout_s)'
        )
    found = to_publications(self._view.copies(), self._losses)
    steps = {str(member): step for member, step in self._last_step.items()}
    lives = self._lives.notes()
    notes = {**found.notes, 'last_step': steps, 'lives': lives}
    return found._replace(notes=notes)

  def restore(self, publications: Publications) -> None:
    """Restores a result of `publications`."""
    copies = from_publications(publications, self._losses)
    for member, step in publications.notes['last_step'].items():
      self._last_step[int(member)] = step
    self._view.restore(copies)
    # A checkpoint from before there was such a note lets all peers teach.
    self._publisher.go_on(self._lives.restore(publications.notes.get('lives')))
    self._read()

  def _begin(self) -> None:
    """Begins anew, unless members have begun or were restored."""
    if not self._entered:
      raise RuntimeError(
        'use the exchange in a with block, which publishes and returns leases'
      )
    if not self._reads:
      self._lives.begin(self._publisher.begin())
      self._read()

  def _read(self) -> None:
    """Starts reading, now that it is known which lives may teach."""
    if not self._reads:
      self._reads = True
      self._view.open()

  def _stall(self, member: int, began: float) -> None:
    """Adds the time that the train loop was blocked."""
    stall = time.monotonic() - began
    self._stalls[member] = self._stalls.get(member, 0.0) + stall


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
  """Calls a function in this process."""
  return function(*arguments)
