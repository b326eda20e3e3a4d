"""The outer updates of `codistill.rivals.local_sgd`, jitted.

All members add up the same arrays in the same order, their own as published, so
that members that see all others have equal weights bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from codistill import precision, sharding
from codistill.algorithm import Peer
from codistill.exchange.copies import make_copy
from codistill.train_state import TrainState
from codistill.train_step import JittedUpdates

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer:
  """What an outer optimizer keeps of a member, beside the inner state.

  Attributes:
    step: s of the last outer step, int32 [].
    params: Θ; in float32 if weights have 16 bits, as in the optimizer's state,
      because small steps would be lost in rounding.
    opt_state: the outer optimizer's.
    held: the variables as they were at s, until they are averaged; () without a
      delay.
  """

  step: Any
  params: PyTree
  opt_state: PyTree
  held: PyTree


def make_outer_optimizer(
  learning_rate: float, momentum: float, nesterov: bool
) -> optax.GradientTransformation:
  """SGD; with rate 1 and without momentum, Θ becomes the mean of members."""
  return optax.sgd(learning_rate, momentum or None, nesterov)


@dataclasses.dataclass(frozen=True)
class AveragingUpdates(JittedUpdates):
  """Those of Algorithm 1, and `codistill.rivals.local_sgd.OuterUpdates`.

  Attributes:
    optimizer: the outer optimizer.
    mesh: the member's devices.
    differences: whether members publish Θ − θᵢ instead of θᵢ. Rounding harms
      differences little, but they are of use only to members with the same Θ.
      Batch statistics are published as they are.
    publish_precision: as the exchange's.
    teacher_precision: likewise.
  """

  optimizer: optax.GradientTransformation
  mesh: Mesh
  differences: bool
  publish_precision: str
  teacher_precision: str

  def begin(self, state: TrainState, *, is_delayed: bool) -> TrainState:
    """Adds Θ to a member's initial state; traceable.

    Args:
      state: before the first update.
      is_delayed: whether outer steps come later than their publications.
    """
    copy = functools.partial(jax.tree.map, jnp.copy)
    params = _widened(copy(state.variables['params']))
    outer = Outer(
      jnp.zeros((), jnp.int32),
      params,
      self.optimizer.init(params),
      copy(state.variables) if is_delayed else (),
    )
    return dataclasses.replace(state, past=outer)

  def published(self, state: TrainState) -> PyTree:
    """The member's variables, or what they differ from Θ in."""
    return self._published(state.past, state.variables)

  def hold(self, state: TrainState) -> TrainState:
    """Keeps the variables as they are now."""
    held = jax.tree.map(jnp.copy, state.variables)
    outer = dataclasses.replace(state.past, held=held)
    return dataclasses.replace(state, past=outer)

  def outer(
    self, state: TrainState, member: int, step: int, peers: tuple[Peer, ...]
  ) -> TrainState:
    """One outer step; changes nothing if it was made before."""
    mine = make_copy(
      self._published(state.past, state.past.held or state.variables),
      None,
      self.publish_precision,
      self.teacher_precision,
    )
    terms = {peer.member: peer.variables for peer in peers}
    terms[member] = mine.variables
    ordered = tuple(terms[number] for number in sorted(terms))
    variables, outer = self._step(
      state.variables, state.past, ordered, jnp.asarray(step, jnp.int32)
    )
    return dataclasses.replace(state, variables=variables, past=outer)

  def _published(self, outer: Outer, variables: PyTree) -> PyTree:
    if not self.differences:
      return variables
    params = _subtract(outer.params, variables['params'])
    return {**variables, 'params': params}

  @functools.cached_property
  def _step(self):
    whole = sharding.replicated(self.mesh)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=whole)
    def step(variables, outer, terms, at):
      mean = _mean(tuple(precision.decode(term, variables) for term in terms))
      pull = mean['params']
      if not self.differences:
        pull = jax.tree.map(jnp.subtract, outer.params, pull)
      change, opt_state = self.optimizer.update(
        pull, outer.opt_state, outer.params
      )
      params = optax.apply_updates(outer.params, change)
      own = params
      if outer.held:
        own = jax.tree.map(
          lambda new, now, held: new + (now - held),
          params,
          *map(_widened, (variables['params'], outer.held['params'])),
        )
      made = {**mean, 'params': own}, Outer(at, params, opt_state, outer.held)
      return jax.tree.map(
        lambda new, old: jnp.where(at > outer.step, new.astype(old.dtype), old),
        made,
        (variables, outer),
      )

    return step


@jax.jit
def _subtract(wide: PyTree, params: PyTree) -> PyTree:
  return _like(jax.tree.map(jnp.subtract, wide, params), params)


@jax.jit
def mean_of(trees: tuple[PyTree, ...]) -> PyTree:
  """The mean of members' variables, summed in their order: a soup."""
  return _like(_mean(trees), trees[0])


def _mean(trees: tuple[PyTree, ...]) -> PyTree:
  return jax.tree.map(
    lambda *leaves: functools.reduce(operator.add, leaves) / len(leaves),
    *map(_widened, trees),
  )


def _widened(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree
  )


def _like(tree: PyTree, other: PyTree) -> PyTree:
  """A tree in the dtypes of another."""
  return jax.tree.map(lambda one, leaf: one.astype(leaf.dtype), tree, other)
