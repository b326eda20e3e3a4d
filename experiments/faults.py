"""Makes a member fail on purpose: what does its collapse do to the others?

The paper does not say what happens when a member fails. A fault strikes one
member between two updates: its learning rate is multiplied from there on, its
weights are replaced by noise, it makes no more updates, or it is slow.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from codistill.algorithm import Member, Report
from experiments.errors import UserError, check_choice, check_least

PyTree = Any
# How long a slow member sleeps before it looks whether it is to stop.
_NAP_S = 1.0
KINDS = ('none', 'rate', 'noise', 'death', 'slow')


@dataclasses.dataclass(frozen=True)
class Fault:
  """What goes wrong, with which member and when.

  Attributes:
    kind: `rate`, `noise`, `death`, `slow`, or `none`.
    member: number of the member that it strikes.
    step: number of its updates before that. It publishes at this step first.
    rate_factor: factor on the learning rate.
    slow_factor: factor ≥ 1 on the time of an update.
    seed: of the noise.
  """

  kind: str
  member: int
  step: int
  rate_factor: float
  slow_factor: float
  seed: int

  def check(self, num_members: int, num_here: int, num_steps: int) -> None:
    """Raises a `UserError` if it does not fit the run.

    Args:
      num_members: members of the run.
      num_here: members of this process.
      num_steps: updates of each member.
    """
    check_choice('fault.kind', self.kind, KINDS)
    check_least({'fault.slow_factor': (self.slow_factor, 1)})
    if self.kind == 'death' and num_here == 1:
      raise UserError(
        'fault.kind is death, which leaves this process without a member; to '
        'see a process die, kill it'
      )
    if self.kind == 'slow' and num_here > 1:
      raise UserError(
        'fault.kind is slow, which would slow all members of this process; '
        'give each a process of its own with python -m scripts.launch'
      )
    if self.kind != 'none' and not (
      0 <= self.member < num_members and 1 <= self.step < num_steps
    ):
      raise UserError(
        f'fault.member {self.member} at fault.step {self.step} never occurs; '
        f'choose one of {num_members} members, numbered from 0, and a step '
        f'from 1 to below {num_steps}'
      )

  def prepare(
    self, optimizer: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """Lets this fault change the rate of an optimizer."""
    if self.kind != 'rate':
      return optimizer
    return optax.chain(optimizer, _scalable())

  def rate(
    self, schedule: optax.Schedule, step: ArrayLike, opt_state: PyTree
  ) -> ArrayLike:
    """The learning rate of the update after `step`; may be traced."""
    rate = schedule(step)
    if self.kind != 'rate':
      return rate
    return rate * optax.tree.get(opt_state, 'rate_factor')

  def strikes(self, member: int, step: int) -> bool:
    """Whether this is the step after which a member fails."""
    return self.kind != 'none' and (member, step) == (self.member, self.step)

  def kills(self, member: int, step: int) -> bool:
    """Whether a member makes no update after this step."""
    return self.kind == 'death' and self.strikes(member, step)

  def strike(self, member: Member) -> None:
    """Makes the member fail; one that is slow already is."""
    state = member.state
    if self.kind == 'death':
      member.active = False
    if self.kind == 'rate':
      opt_state = optax.tree.set(
        state.opt_state,
        rate_factor=_like(
          optax.tree.get(state.opt_state, 'rate_factor'),
          jnp.float32(self.rate_factor),
        ),
      )
      member.state = dataclasses.replace(state, opt_state=opt_state)
    if self.kind == 'noise':
      noise = make_noise(state.variables['params'], jax.random.key(self.seed))
      member.state = dataclasses.replace(
        state, variables={**state.variables, 'params': noise}
      )

  def slowed(
    self, reports: Iterator[Report], should_stop: Callable[[], bool]
  ) -> Iterator[Report]:
    """The reports, each later if its member is slow by then."""
    began = time.monotonic()
    for report in reports:
      whose = (self.kind, self.member) == ('slow', report.member.index)
      if whose and report.step > self.step:
        jax.block_until_ready(report.metrics)
        now = time.monotonic()
        until = now + (self.slow_factor - 1) * (now - began)
        while (left := until - time.monotonic()) > 0 and not should_stop():
          time.sleep(min(left, _NAP_S))
      yield report
      began = time.monotonic()


def make_noise(params: PyTree, key: jax.Array) -> PyTree:
  """Normal noise with each array's own mean and standard deviation."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return tree.unflatten(
    _like(
      leaf,
      leaf.mean() + leaf.std() * jax.random.normal(one, leaf.shape, leaf.dtype),
    )
    for one, leaf in zip(keys, leaves, strict=True)
  )


class _Scale(NamedTuple):
  """State of `_scalable`: float32 []."""

  rate_factor: jax.Array


def _scalable() -> optax.GradientTransformation:
  """Multiplies steps by a factor that is part of the state; 1 at first."""

  def init(params):
    del params
    return _Scale(jnp.ones((), jnp.float32))

  def update(updates, state, params=None):
    del params
    scaled = jax.tree.map(
      lambda step: (state.rate_factor * step).astype(step.dtype), updates
    )
    return scaled, state

  return optax.GradientTransformation(init, update)


def _like(leaf: jax.Array, value: jax.Array) -> jax.Array:
  """A value on the devices of another one."""
  return jax.device_put(value, leaf.sharding)
