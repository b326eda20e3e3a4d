"""Makes φ, ψ, their weights and teachers from a config."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from codistill import losses
from codistill.losses import Weight
from experiments import averaging
from experiments.errors import UserError, check_choice
from experiments.tasks import Dataset, Task

CONSTANT = 'constant'


def make_objective(
  config: ConfigDict,
  task: Task,
  dataset: Dataset,
  loss_chunk_tokens: int,
) -> losses.Objective:
  """Makes φ, ψ and their numbers, each from the key of the same name."""
  codistill = config.codistill
  targets = None
  if codistill.teacher != 'peers':
    targets = np.asarray(dataset.label_distribution())
    if codistill.teacher == 'uniform':
      targets = np.full(len(targets), 1 / len(targets), np.float32)
  made = {
    'task_loss': task.task_loss,
    'distill_loss': _distill_loss(config),
    'peer_average': losses.PEER_AVERAGES[codistill.peer_average],
    'constant_targets': targets,
    'loss_chunk_tokens': loss_chunk_tokens,
    **_make_weights(config),
  }
  keys = {**config.model, **codistill}
  numbers = {
    field.name: keys[field.name]
    for field in dataclasses.fields(losses.Objective)
    if field.name not in made
  }
  return losses.Objective(**made, **numbers)


def _distill_loss(config: ConfigDict) -> Callable[..., Any]:
  codistill = config.codistill
  loss = losses.DISTILL_LOSSES[codistill.distill_loss]
  if codistill.distill_loss == 'top_k_kl':
    return functools.partial(loss, k=codistill.distill_top_k)
  return loss


def _try_distill_loss(config: ConfigDict, num_classes: int) -> None:
  """Refuses a loss of one's own that is not one number an example."""
  # As images, clicks and chunks of text have it.
  shape, name = (9,), config.codistill.distill_loss
  logits = jax.ShapeDtypeStruct((*shape, num_classes), jnp.float32)
  try:
    given = jax.eval_shape(_distill_loss(config), logits, logits)
    given = getattr(given, 'shape', type(given).__name__)
  # Its code may do anything.
  except Exception as error:
    raise UserError(
      f'codistill.distill_loss {name} fails '
      f'({" ".join(str(error).split())[:200]}); it has to be a function of '
      'targets and logits, as those of codistill.losses'
    ) from error
  if given != shape:
    raise UserError(
      f'codistill.distill_loss {name} gives {given} for logits of shape '
      f'{logits.shape}; it has to give a number an example, {shape}'
    )


def check_objective(config: ConfigDict, task: Task) -> None:
  """Refuses what can be refused before any data is read."""
  codistill = config.codistill
  teacher, exchange = codistill.teacher, codistill.exchange
  check_choice('codistill.teacher', teacher, ('peers', 'uniform', 'unigram'))
  check_choice(
    'codistill.distill_loss', codistill.distill_loss, losses.DISTILL_LOSSES
  )
  check_choice(
    'codistill.peer_average', codistill.peer_average, losses.PEER_AVERAGES
  )
  k, classes = codistill.distill_top_k, task.num_classes
  if codistill.distill_loss == 'top_k_kl' and not 1 <= k <= classes:
    raise UserError(
      f'codistill.distill_top_k is {k}; it must be between 1 and the {classes} '
      'classes'
    )
  _try_distill_loss(config, classes)
  if not 0 < codistill.temperature < math.inf:
    raise UserError(
      f'codistill.temperature is {codistill.temperature}; it must be more '
      'than 0'
    )
  _make_weights(config)
  if teacher != 'peers' and exchange != 'none':
    raise UserError(
      f'codistill.teacher {teacher} stands in for the peers; set '
      'codistill.exchange to none'
    )
  unlabelled = config.data.get('unlabelled_split')
  if unlabelled and (
    averaging.burn_in_steps(config) >= config.num_steps
    or (exchange == 'none' and teacher == 'peers')
  ):
    raise UserError(
      f'data.unlabelled_split is {unlabelled!r}, but no teacher labels it; set '
      'codistill.exchange, with method codistillation and burn_in_steps less '
      'than num_steps, or leave it out'
    )


def why_untaught(config: ConfigDict) -> str | None:
  """Why nobody learns from peers though there is an exchange; None if some do.

  Members whose weights are averaged need no teachers.
  """
  codistill = config.codistill
  if codistill.exchange == 'none' or averaging.is_averaged(config):
    return None
  if codistill.burn_in_steps >= config.num_steps:
    return (
      f'codistill.burn_in_steps is {codistill.burn_in_steps:,}, and num_steps '
      f'{config.num_steps:,}'
    )
  if codistill.exchange != 'frozen' and codistill.members == 1:
    return 'codistill.members is 1'
  return None


def _make_weights(config: ConfigDict) -> dict[str, Weight]:
  return {
    f'{loss}_weight': make_weight(
      f'codistill.{loss}_schedule',
      config.codistill[f'{loss}_weight'],
      config.codistill[f'{loss}_schedule'],
      burn_in_steps=config.codistill.burn_in_steps,
      num_steps=config.num_steps,
    )
    for loss in ('task', 'distill')
  }


def linear_ramp(num_steps: int) -> optax.Schedule:
  """Rises linearly from 0 to 1 in `num_steps`."""
  if num_steps < 1:
    raise ValueError('num_steps must be at least 1')
  return optax.linear_schedule(0.0, 1.0, num_steps)


def cosine_ramp(num_steps: int) -> optax.Schedule:
  """Rises from 0 to 1 along half a period of a cosine."""
  falling = optax.cosine_decay_schedule(1.0, num_steps)
  return lambda count: 1 - falling(count)


_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
  'linear_ramp': linear_ramp,
  'cosine_ramp': cosine_ramp,
  **{
    name: make
    for name, make in vars(optax.schedules).items()
    if inspect.isfunction(make) and name.endswith(('_schedule', '_decay'))
  },
}


def make_weight(
  key: str, weight: float, schedule: str, *, burn_in_steps: int, num_steps: int
) -> Weight:
  """A weight that follows a schedule once ψ is on.

  Args:
    key: of the schedule, for messages.
    weight: factor on the schedule.
    schedule: 'constant', or a call with keywords of `linear_ramp`,
      `cosine_ramp` or one of optax's schedules and decays; it counts from the
      first step with ψ.
    burn_in_steps: of the run.
    num_steps: of the run.

  Returns:
    The weight itself if it is constant, else a function of the updates so far.

  Raises:
    UserError: if the schedule cannot be read, or if a keyword in steps says
      that it ends after the run. Tables of boundaries are not checked.
  """
  if schedule == CONSTANT:
    return weight
  name, keywords = _parse(key, schedule)
  factor = _call(key, name, keywords)
  end = burn_in_steps + _length(name, keywords)
  if end > num_steps:
    raise UserError(
      f'{key} is {schedule}, which ends at step {end:,}, but the run ends at '
      f'{num_steps:,}; shorten the schedule by {end - num_steps:,} steps, or '
      'make the run longer'
    )
  return lambda step: weight * factor(jnp.maximum(step - burn_in_steps, 0))


def _length(name: str, keywords: Mapping[str, Any]) -> int:
  """The steps until a schedule ends, as its keywords say; 0 for no end."""
  ends = {key: at for key, at in keywords.items() if key.endswith('_steps')}
  if 'exponential' in name:
    # How fast it falls, for ever.
    ends.pop('transition_steps', None)
  elif 'transition_begin' in keywords:
    ends['transition_steps'] += keywords['transition_begin']
  return max(ends.values(), default=0)


def _parse(key: str, text: str) -> tuple[str, dict[str, Any]]:
  """'linear_ramp(num_steps=9)' → 'linear_ramp', {'num_steps': 9}."""
  try:
    call = ast.parse(text, mode='eval').body
    if not isinstance(call, ast.Call) or call.args:
      raise ValueError('it is not a call with keywords')
    keywords = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    return ast.unparse(call.func), keywords
  except (SyntaxError, ValueError) as error:
    raise UserError(
      f'{key} is {text!r}; it must be {CONSTANT}, or a call with keywords, '
      'such as linear_ramp(num_steps=200)'
    ) from error


def _call(key: str, name: str, keywords: dict[str, Any]) -> optax.Schedule:
  make = _SCHEDULES.get(name)
  if make is None:
    raise UserError(f'{key} names {name!r}; it can be {", ".join(_SCHEDULES)}')
  try:
    schedule = make(**keywords)
    if jnp.shape(schedule(jnp.zeros((), jnp.int32))):
      raise ValueError('its values are not numbers')
  except (TypeError, ValueError, AttributeError, IndexError) as error:
    names = ', '.join(inspect.signature(make).parameters)
    raise UserError(f'{key}: {error}; its keywords are {names}') from error
  return schedule
