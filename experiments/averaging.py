"""Local SGD and DiLoCo from a config: what is averaged, when, with whom."""

from __future__ import annotations

from jax.sharding import Mesh
from ml_collections import ConfigDict

from codistill import hosts
from codistill.exchange.topology import Topology, grouped, make_topology
from codistill.precision import FULL
from codistill.rivals.averaging import AveragingUpdates, make_outer_optimizer
from codistill.rivals.local_sgd import OuterSteps
from codistill.train_step import JittedUpdates
from experiments.errors import UserError, check_choice
from experiments.given import METHODS


def is_averaged(config: ConfigDict) -> bool:
  """Whether members average their weights."""
  return config.codistill.method != METHODS[0]


def _is_grouped(config: ConfigDict) -> bool:
  """Whether members are averaged inside several groups."""
  codistill = config.codistill
  one = (None, codistill.members)
  return is_averaged(config) and codistill.group_size not in one


def check(config: ConfigDict, member: int | None) -> None:
  """Refuses a way to average that does not work.

  Args:
    config: of the run.
    member: the one member that this process trains, or None for all.

  Raises:
    UserError: with what to do.
  """
  codistill = config.codistill
  check_choice('codistill.method', codistill.method, METHODS)
  if config.evaluate_soup and (member is not None or codistill.members < 2):
    raise UserError(
      'evaluate_soup is True, but this process has one member, which has no '
      'average; train all of two or more members in one process, or set it to '
      'False'
    )
  if codistill.publish_average and (
    is_averaged(config) or not config.average_decay
  ):
    raise UserError(
      'codistill.publish_average is True, which needs average_decay to be more '
      'than 0 and codistill.method to be codistillation; set it to False, or '
      'change these'
    )
  several = len(set(codistill.member_models)) > 1
  if several and (config.evaluate_soup or is_averaged(config)):
    raise UserError(
      'codistill.member_models names several networks, whose weights have no '
      'average; leave it out, or set codistill.method to codistillation and '
      'evaluate_soup to False'
    )
  if is_averaged(config) and (
    why := _why_not_averaged(config)
    or _why_not_groups(config)
    or _why_not_published(config)
  ):
    raise UserError(why)


def _why_not_averaged(config: ConfigDict) -> str | None:
  codistill = config.codistill
  if codistill.exchange not in ('memory', 'checkpoints'):
    return (
      f'codistill.exchange is {codistill.exchange!r}, so members cannot '
      'average their weights; set it to memory or checkpoints'
    )
  if codistill.members < 2:
    return 'codistill.members is 1, so there is no average; set it to 2 or more'
  if config.num_async_workers > 1:
    return (
      'num_async_workers is more than 1, and older weights of a member are not '
      'averaged; set it to 1'
    )
  if codistill.delay_steps >= codistill.reload_interval_steps:
    return (
      f'codistill.delay_steps is {codistill.delay_steps}; an average must be '
      'taken before the next one is due, so make it less than '
      f'reload_interval_steps, {codistill.reload_interval_steps}'
    )
  if codistill.outer_learning_rate <= 0 or not (
    0 <= codistill.outer_momentum < 1
  ):
    return (
      f'codistill.outer_learning_rate is {codistill.outer_learning_rate} and '
      f'outer_momentum {codistill.outer_momentum}; the rate must be more than '
      '0, and the momentum in [0, 1)'
    )
  if (
    hosts.are_several()
    and codistill.exchange == 'checkpoints'
    and not codistill.synchronous
  ):
    # They agree on publications too seldom to meet when an average is due.
    return (
      'a member has several processes here, and these would not see a peer in '
      'time for an average; set codistill.synchronous to True'
    )
  if (
    config.fault.kind == 'noise'
    and config.fault.step % codistill.reload_interval_steps == 0
  ):
    return (
      f'fault.step is {config.fault.step}, when members publish what they then '
      'average; choose a step between two averages'
    )
  return None


def _why_not_groups(config: ConfigDict) -> str | None:
  size, members = config.codistill.group_size, config.codistill.members
  if not _is_grouped(config) or (size > 1 and members % size == 0):
    return None
  return (
    f'codistill.group_size is {size}; it must be 2 or more and divide the '
    f'{members} members; set it to {members} to average all of them'
  )


def _why_not_published(config: ConfigDict) -> str | None:
  """Whether Θ stays equal where it must, and rounding does not lose steps."""
  codistill = config.codistill
  rounded = {codistill.publish_precision, codistill.teacher_precision} - {FULL}
  if not codistill.publish_differences:
    return rounded and (
      'codistill.publish_precision and teacher_precision must be float32 where '
      'weights are averaged, because the steps between two averages would be '
      'lost in rounding; or set publish_differences to True'
    )
  alike = (
    codistill.topology == 'all'
    and not _is_grouped(config)
    and codistill.max_age_steps is None
    and codistill.max_task_loss_ratio is None
    and (codistill.exchange == 'memory' or codistill.synchronous)
  )
  if alike:
    return None
  return (
    'codistill.publish_differences needs members that always average with the '
    'same members: set topology to all, synchronous to True if exchange is '
    'checkpoints, and leave out group_size, max_age_steps and '
    'max_task_loss_ratio; or set publish_differences to False'
  )


def make_graph(config: ConfigDict) -> Topology:
  """The graph of members, or that of groups spread over members."""
  codistill = config.codistill
  size = codistill.group_size if _is_grouped(config) else 1
  groups = make_topology(
    codistill.topology,
    codistill.members // size,
    num_random=codistill.num_random_neighbours,
    seed=config.seed,
  )
  return grouped(groups, size) if size > 1 else groups


def max_age_steps(config: ConfigDict) -> int | None:
  """The greatest age of a peer's copy; if weights are averaged, an interval.

  Otherwise the last weights of a dead member would be averaged for ever.
  """
  codistill = config.codistill
  if codistill.max_age_steps is not None or not is_averaged(config):
    return codistill.max_age_steps
  interval = codistill.reload_interval_steps
  if codistill.exchange == 'checkpoints' and not codistill.synchronous:
    # A peer's newest publication may still be on its way.
    return 2 * interval - 1
  return interval + codistill.delay_steps - 1


def burn_in_steps(config: ConfigDict) -> int:
  """Updates without ψ: all of them, if no member teaches another."""
  if is_averaged(config) and not _is_grouped(config):
    return config.num_steps
  return config.codistill.burn_in_steps


def make_outer_steps(config: ConfigDict) -> OuterSteps | None:
  """When members average and with whom; None for codistillation."""
  codistill = config.codistill
  if not is_averaged(config):
    return None
  return OuterSteps(
    codistill.reload_interval_steps,
    codistill.delay_steps,
    codistill.group_size or codistill.members,
  )


def make_updates(
  config: ConfigDict, inner: JittedUpdates, mesh: Mesh
) -> JittedUpdates:
  """The updates of the config's method, around those of Algorithm 1."""
  codistill = config.codistill
  if not is_averaged(config):
    return inner
  numbers = (
    codistill.outer_learning_rate,
    codistill.outer_momentum,
    codistill.outer_nesterov,
  )
  return AveragingUpdates(
    **vars(inner),
    optimizer=make_outer_optimizer(
      *((1.0, 0.0, False) if codistill.method == 'local_sgd' else numbers)
    ),
    mesh=mesh,
    differences=codistill.publish_differences,
    publish_precision=codistill.publish_precision,
    teacher_precision=codistill.teacher_precision,
  )
