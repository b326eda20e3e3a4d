"""What every exchange of copies does in the same way.

A copy is made, judged, handed to a student and put into a checkpoint alike,
wherever it lies meanwhile.
"""

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
  """What a member has published.

  Attributes:
    variables: parameters and batch statistics, in buffers of their own and in
      the precision that teachers are held in.
    finite_variables: whether all of these are finite; possibly still being
      computed.
    task_loss: the publisher's mean φ since it last published, likewise; None
      if it had made no update.
    incarnation: which life of the publisher it is from.
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
  """Refuses an interval or a delay that is out of range with a ValueError."""
  if reload_interval_steps < 1:
    raise ValueError(
      f'reload_interval_steps must be at least 1, not {reload_interval_steps}'
    )
  if delay_steps < 0:
    raise ValueError(f'delay_steps must not be negative: {delay_steps}')


def check_precisions(publish_precision: str, teacher_precision: str) -> None:
  """Refuses an unknown precision with a ValueError."""
  precision.check_precision(publish_precision, 'publish_precision')
  precision.check_precision(teacher_precision, 'teacher_precision')


def reload_number(step: int, lag: int, interval: int) -> int:
  """How many reload intervals lie behind a member's update, from 0."""
  return max(0, step - lag) // interval


def published_bytes(variables: PyTree, publish_precision: str) -> int:
  """What a publication takes, uncompressed."""
  return precision.num_bytes(precision.abstract(variables, publish_precision))


def make_copy(
  variables: PyTree,
  task_loss: MeanLoss | None,
  publish_precision: str,
  held_precision: str,
) -> Copy:
  """A copy of a member's weights, in buffers of its own.

  Args:
    variables: the weights.
    task_loss: to be published with them.
    publish_precision: what they are rounded to first.
    held_precision: and what they are held in.
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
  """Those neighbours' copies that may teach.

  Args:
    member: who is to be taught.
    step: in which of its updates, from 1.
    neighbours: whom it learns from now.
    newest: a neighbour's newest visible copy with its step, or None.
    rules: which of these may teach.
    losses: what this process's members published.

  Returns:
    The peers, and why each of the others was left out.
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
      # Fetched for the rule alone: it waits for the update of a publication.
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
  """Copies and losses, as a checkpoint stores them."""
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
  """The copies that `to_publications` was given; `losses` gets its own back."""
  losses.from_json(publications.notes['losses'])
  notes = publications.notes['copies']
  return {
    member: {
      at: Copy(variables, True, **notes[str(member)][str(at)])
      for at, variables in steps.items()
    }
    for member, steps in publications.variables.items()
  }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _copy_and_check(
  variables: PyTree, publish_precision: str, held_precision: str
) -> tuple[PyTree, jax.Array]:
  """A copy in buffers of its own, and whether all of it was finite."""
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
