"""Tools that all exchanges share: making, judging and storing copies."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from codistill import precision
from codistill.algorithm import Peer, Publications
from codistill.exchange.rules import MeanLoss, Rules, TaskLosses

PyTree = Any


@dataclasses.dataclass
class Copy:
  """A copy that a member has published.

  Attributes:
    variables: parameters and batch statistics, in buffers of their own and in
      the teachers' precision.
    finite_variables: whether all of them are finite; possibly still being
      computed.
    task_loss: the publisher's mean φ since its last publication, possibly still
      being computed; None if it had made no update.
    incarnation: the publisher's life that it comes from.
  """

  variables: PyTree
  finite_variables: jax.Array | bool
  task_loss: MeanLoss | float | None
  incarnation: int = 0

  @property
  def finite(self) -> bool:
    """Whether all of it is finite; waits for the publisher's update."""
    return bool(self.finite_variables) and (
      self.task_loss is None or math.isfinite(float(self.task_loss))
    )


def check_cadence(reload_interval_steps: int, delay_steps: int) -> None:
  """Raises a ValueError for an interval or a delay out of range."""
  if reload_interval_steps < 1:
    raise ValueError(
      f'reload_interval_steps must be at least 1, not {reload_interval_steps}'
    )
  if delay_steps < 0:
    raise ValueError(f'delay_steps must not be negative: {delay_steps}')


def check_precisions(publish_precision: str, teacher_precision: str) -> None:
  """Raises a ValueError for an unknown precision."""
  precision.check_precision(publish_precision, 'publish_precision')
  precision.check_precision(teacher_precision, 'teacher_precision')


def reload_number(step: int, lag: int, interval: int) -> int:
  """Returns the number of reload intervals before a member's update, from 0."""
  return max(0, step - lag) // interval


def published_bytes(variables: PyTree, publish_precision: str) -> int:
  """Returns the bytes of a publication, uncompressed."""
  return precision.num_bytes(precision.abstract(variables, publish_precision))


def make_copy(
  variables: PyTree,
  task_loss: MeanLoss | None,
  publish_precision: str,
  held_precision: str,
) -> Copy:
  """Copies a member's weights into buffers of their own.

  Args:
    variables: the weights.
    task_loss: published with the weights.
    publish_precision: the weights are rounded to this precision first.
    held_precision: and then converted to this one.
  """
  return Copy(
    *_copy_and_check(variables, publish_precision, held_precision), task_loss
  )


def choose_peers(
  member: int,
  step: int,
  neighbours: tuple[int, ...],
  newest: Callable[[int], tuple[int, Copy] | None],
  rules: Rules,
  losses: TaskLosses,
) -> tuple[tuple[Peer, ...], dict[int, str]]:
  """Chooses the copies of neighbours that may teach.

  Args:
    member: the student.
    step: the student's update, from 1.
    neighbours: the student's teachers at this step.
    newest: a neighbour's newest visible copy with its step, or None.
    rules: decide which copies may teach.
    losses: the losses that this process's members published.

  Returns:
    The peers, and the reason for leaving out each of the others.
  """
  peers, left_out = [], {}
  for peer in neighbours:
    found = newest(peer)
    if found is None:
      left_out[peer] = 'absent'
      continue
    at, copy = found
    theirs = mine = None
    if rules.max_task_loss_ratio is not None:
      # Only if the rule needs it: this waits for a publication's update.
      mine = losses.published(member)
      theirs = None if copy.task_loss is None else float(copy.task_loss)
    objection = rules.objection(step - 1 - at, theirs, mine)
    if objection is None:
      peers.append(Peer(peer, at, copy.variables))
    else:
      left_out[peer] = objection
  return tuple(peers), left_out


def to_publications(
  copies: Mapping[int, Mapping[int, Copy]], losses: TaskLosses
) -> Publications:
  """Converts copies and losses to a checkpoint's form."""
  return Publications(
    {
      member: {at: copy.variables for at, copy in steps.items()}
      for member, steps in copies.items()
    },
    {
      'losses': losses.to_json(),
      'copies': {
        str(member): {
          str(at): {
            'task_loss': None
            if copy.task_loss is None
            else float(copy.task_loss),
            'incarnation': copy.incarnation,
          }
          for at, copy in steps.items()
        }
        for member, steps in copies.items()
      },
    },
  )


def from_publications(
  publications: Publications, losses: TaskLosses
) -> dict[int, dict[int, Copy]]:
  """Reverses `to_publications`; restores `losses`, too.

  Numbers of members and steps may have become text, as Orbax makes them.
  """
  losses.from_json(publications.notes['losses'])
  notes = publications.notes['copies']
  return {
    int(member): {
      int(at): Copy(variables, True, **notes[str(member)][str(at)])
      for at, variables in steps.items()
    }
    for member, steps in publications.variables.items()
  }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _copy_and_check(
  variables: PyTree, publish_precision: str, held_precision: str
) -> tuple[PyTree, jax.Array]:
  """Returns a copy in buffers of its own, and whether all of it is finite."""
  held = precision.convert(
    precision.encode(variables, publish_precision),
    variables,
    publish_precision,
    held_precision,
  )
  return jax.tree.map(jnp.copy, held), all_finite(variables)


@jax.jit
def all_finite(tree: PyTree) -> jax.Array:
  """Whether every number in a tree is finite, bool []."""
  leaves = jax.tree.leaves(tree)
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
