"""Optimizers and learning-rate schedules from keywords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

PyTree = Any


def warmup_piecewise(
  *,
  initial_rate: float,
  peak_rate: float,
  warmup_steps: int,
  drop_at_steps: Sequence[int],
  drop_factor: float,
) -> optax.Schedule:
  """Linear warm-up, then drops by a factor (Goyal et al. 2017, §2.2, §5.1).

  Args:
    initial_rate: at step 0.
    peak_rate: from `warmup_steps` to the first drop.
    warmup_steps: length of the warm-up; 0 for none.
    drop_at_steps: steps of the run, ascending, at which the rate drops.
    drop_factor: factor on the rate at each.

  Returns:
    Updates done so far → learning rate.
  """
  drops = {step - warmup_steps: drop_factor for step in drop_at_steps}
  return optax.join_schedules(
    [
      optax.linear_schedule(initial_rate, peak_rate, warmup_steps),
      optax.piecewise_constant_schedule(peak_rate, drops),
    ],
    [warmup_steps],
  )


def warmup_cosine(
  *, initial_rate: float, peak_rate: float, warmup_steps: int, num_steps: int
) -> optax.Schedule:
  """Linear warm-up, then a half cosine down to zero at `num_steps`.

  Raises:
    ValueError: if the warm-up does not end before the run does.
  """
  if not 0 <= warmup_steps < num_steps:
    raise ValueError(
      f'warmup_steps is {warmup_steps}; it must be at least 0 and below '
      f'num_steps, {num_steps}'
    )
  return optax.warmup_cosine_decay_schedule(
    initial_rate, peak_rate, warmup_steps, num_steps
  )


SCHEDULES = {
  'constant': lambda *, rate: optax.constant_schedule(rate),
  'warmup_piecewise': warmup_piecewise,
  'warmup_cosine': warmup_cosine,
}


def decayed(params: PyTree) -> PyTree:
  """Marks parameters that weight decay applies to: all but BatchNorm's γ, β.

  Goyal et al. (2017, §5.1) leave those out. A normalising layer is known by
  its `scale`; biases of linear layers do decay.

  Args:
    params: nested dictionaries.

  Returns:
    The same structure with a bool a leaf.
  """

  def mark(tree: PyTree) -> PyTree:
    if not isinstance(tree, dict):
      return True
    if 'scale' in tree:
      return jax.tree.map(lambda _: False, tree)
    return {name: mark(child) for name, child in tree.items()}

  return mark(params)


def sgd(
  rate: optax.Schedule,
  *,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  weight_decay_drop_at_steps: Sequence[int],
  weight_decay_drop_factor: float,
) -> optax.GradientTransformation:
  """SGD with momentum; weight decay is part of the gradient, like L2.

  Args:
    rate: the learning rate.
    momentum: u ← momentum · u + gradient, and weights move by −rate · u.
    nesterov: look ahead.
    weight_decay: λ.
    weight_decay_drop_at_steps: ascending, where λ drops: codistillation
      regularises too (Sodhani et al., 2020).
    weight_decay_drop_factor: factor on λ at each.
  """
  decay = optax.piecewise_constant_schedule(
    weight_decay,
    dict.fromkeys(weight_decay_drop_at_steps, weight_decay_drop_factor),
  )
  return optax.chain(
    optax.add_decayed_weights(
      decay if weight_decay_drop_at_steps else weight_decay, mask=decayed
    ),
    optax.sgd(rate, momentum, nesterov),
  )


def adam(
  rate: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  clip_norm: float | None,
) -> optax.GradientTransformation:
  """Adam (Kingma & Ba, 2015), with gradients clipped to `clip_norm`."""
  optimizer = optax.adam(rate, b1, b2, eps)
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def lars(
  rate: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  trust_coefficient: float,
) -> optax.GradientTransformation:
  """LARS (You et al., 2017): a rate per layer, for large batches.

  Scales and biases have neither weight decay nor a rate of their own.
  """

  def is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.lars(
    rate,
    weight_decay,
    weight_decay_mask=is_matrix,
    trust_coefficient=trust_coefficient,
    trust_ratio_mask=is_matrix,
    momentum=momentum,
  )


def adagrad(
  rate: optax.Schedule, *, initial_accumulator: float, eps: float
) -> optax.GradientTransformation:
  """Adagrad (Duchi et al., 2011): −rate · g / √(a + eps), a ← a + g².

  Args:
    rate: the learning rate.
    initial_accumulator: a at first; until a parameter's squared gradients add
      up to as much, its steps are those of SGD at rate / √a.
    eps: added under the root.
  """
  return optax.adagrad(rate, initial_accumulator, eps)


OPTIMIZERS = {
  'sgd': sgd,
  'adam': adam,
  'adagrad': adagrad,
  'lars': lars,
}


class Averaged(NamedTuple):
  """What `averaging` keeps: the optimizer's state, updates, mean weights."""

  inner: PyTree
  count: Int[Array, '']
  average: PyTree


class Rated(NamedTuple):
  """An optimizer that can say its learning rate.

  Attributes:
    init: as `optax.GradientTransformation` has it.
    update: likewise.
    learning_rate: (updates so far, the optimizer's state) → rate of the next
      update, [].
  """

  init: Callable[[PyTree], PyTree]
  update: Callable[..., tuple[PyTree, PyTree]]
  learning_rate: Callable[[Array, PyTree], ArrayLike]


Optimizer = optax.GradientTransformation | Rated


def averaging(
  optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
  """Adds a running average of the weights to an optimizer.

  After update t it is d · average + (1 − d) · weights, with the smaller of
  `decay` and (1 + t) / (10 + t) for d, as in TensorFlow, so that the first
  weights are soon forgotten.

  Args:
    optimizer: makes the updates.
    decay: in [0, 1); 0 for no average.

  Returns:
    An optimizer with the state `Averaged`; `optimizer` itself without an
    average.
  """
  if not decay:
    return optimizer

  def init(params):
    # Copies, because a state is donated, and no buffer may be donated twice. In
    # 16 bits the small steps of an average would be lost in rounding.
    average = jax.tree.map(
      lambda leaf: jnp.array(
        leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True
      ),
      params,
    )
    return Averaged(optimizer.init(params), jnp.zeros((), jnp.int32), average)

  def update(gradients, state, params):
    steps, inner = optimizer.update(gradients, state.inner, params)
    count = state.count + 1
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    average = jax.tree.map(
      lambda new, old: (keep * old + (1 - keep) * new).astype(old.dtype),
      optax.apply_updates(params, steps),
      state.average,
    )
    return steps, Averaged(inner, count, average)

  return optax.GradientTransformation(init, update)


def averaged(variables: PyTree, opt_state: PyTree) -> PyTree:
  """A member's variables with the average of its weights in their place.

  Statistics of BatchNorm stay those of the weights.

  Args:
    variables: {'params': …, …}.
    opt_state: of an optimizer that `averaging` made.
  """
  params = jax.tree.map(
    lambda average, leaf: average.astype(leaf.dtype),
    opt_state.average,
    variables['params'],
  )
  return {**variables, 'params': params}


def make_schedule(name: str, **arguments: Any) -> optax.Schedule:
  """Updates done so far → learning rate.

  Args:
    name: a key of `SCHEDULES`.
    **arguments: keywords of the schedule.

  Raises:
    ValueError: if there is no schedule of that name.
  """
  return _known('schedule', name, SCHEDULES)(**arguments)


def make_optimizer(
  name: str, rate: optax.Schedule, **arguments: Any
) -> optax.GradientTransformation:
  """The optimizer `name` with a learning rate.

  Args:
    name: a key of `OPTIMIZERS`.
    rate: of learning.
    **arguments: keywords of the optimizer, except its rate.

  Raises:
    ValueError: if there is no optimizer of that name.
  """
  return _known('optimizer', name, OPTIMIZERS)(rate, **arguments)


def _known(kind: str, name: str, table: dict[str, Any]) -> Any:
  if name not in table:
    raise ValueError(f'no {kind} {name!r}; there are {", ".join(table)}')
  return table[name]
