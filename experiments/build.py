"""config → Experiment.

Config stops here. Below, everything gets keyword arguments without defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from codistill import chunked, optim, sharding
from codistill.algorithm import Peer
from codistill.evaluate import make_evaluate
from codistill.models import MODELS, Model
from codistill.train_state import Network
from codistill.train_step import make_updates
from experiments import averaging, metrics
from experiments import config as config_lib
from experiments import networks as networks_lib
from experiments.errors import (
  UserError,
  check_choice,
  check_keywords,
  check_least,
  user_errors,
)
from experiments.exchange import check_members, make_exchange
from experiments.experiment import PARTITIONS, Diversity, Experiment
from experiments.faults import Fault
from experiments.objective import check_objective, make_objective
from experiments.tasks import Dataset, Task, make_task

# Keys that an experiment has under the same names.
_SAME = (
  'seed',
  'num_steps',
  'average_decay',
  'evaluate_soup',
  'batch_size',
  'eval_batch_size',
  'num_async_workers',
  'num_microbatches',
  'eval_interval_steps',
  'store_predictions',
  'predictions_interval_steps',
  'checkpoint_interval_steps',
)


def build(
  config: ConfigDict,
  member: int | None,
  dataset: Dataset | None = None,
  exchange_folder: epath.PathLike | None = None,
  teachers: Sequence[Peer] = (),
  models: Mapping[int, Model] | None = None,
) -> Experiment:
  """Wires an experiment.

  Args:
    config: as `experiments/configs` makes them.
    member: the one member that this process trains, or None for all.
    dataset: instead of the one that the config names.
    exchange_folder: where members meet, unless the config says.
    teachers: whom members learn from, if `codistill.exchange` is frozen.
    models: their networks, by number.

  Returns:
    The experiment; no weight has been initialised yet.

  Raises:
    UserError: if the config, the member or this machine do not fit.
  """
  # Long, because it wires: each part is made in a line and handed on by name.
  codistill = config.codistill
  config_lib.check_numbers(config)
  task = make_task(config.data)
  check_objective(config, task)
  averaging.check(config, member)
  members = check_members(codistill, member)
  diversity = Diversity(**config.diversity)
  fault = Fault(seed=config.seed, **config.fault)
  fault.check(codistill.members, len(members), config.num_steps)
  with user_errors(ValueError):
    mesh = sharding.make_mesh(config.num_devices)
    for key in ('batch_size', 'eval_batch_size'):
      sharding.check_batch_size(config[key], mesh, key)
    chunk_tokens = _loss_chunk_tokens(config, task, mesh)
    measures = metrics.load(config.eval_metrics, task)
    networks = _make_networks(config, task, mesh, fault)
  dataset = dataset or task.make_dataset()
  with user_errors(ValueError):
    exchange = make_exchange(
      config,
      members=members,
      networks=networks,
      mesh=mesh,
      folder=exchange_folder,
      teachers=teachers,
      vocabulary=getattr(dataset, 'vocabulary', ''),
    )
    # Refuses parts that are too small, before anything is written.
    dataset.train(
      member=0,
      members=codistill.members,
      partition=PARTITIONS[diversity.partition],
      seed=0,
      batch_size=config.num_async_workers * config.batch_size,
      rows=np.arange(0),
    )
  objective = make_objective(config, task, dataset, chunk_tokens)
  if codistill.exchange != 'frozen' or models is None:
    models = {peer: network.model for peer, network in enumerate(networks)}
  alike = {*models.values()} == {networks[0].model}
  updates = make_updates(
    list(dict.fromkeys(networks)),
    mesh,
    objective,
    num_async_workers=config.num_async_workers,
    num_microbatches=config.num_microbatches,
    model_of=None if alike else models.__getitem__,
  )
  return Experiment(
    task=task,
    diversity=diversity,
    num_members=codistill.members,
    members=members,
    mesh=mesh,
    networks=networks,
    teachers=() if codistill.exchange == 'none' else tuple(models),
    updates=averaging.make_updates(config, updates, mesh),
    outer_steps=averaging.make_outer_steps(config),
    teacher_precision=codistill.teacher_precision,
    exchange=exchange,
    evaluate=make_evaluate(
      mesh,
      loss_chunk_tokens=chunk_tokens,
      metrics=measures,
    ),
    fault=fault,
    dataset=dataset,
    burn_in_steps=averaging.burn_in_steps(config),
    **{key: config[key] for key in _SAME},
  )


def _loss_chunk_tokens(config: ConfigDict, task: Task, mesh: Mesh) -> int:
  """The tokens that a device holds logits of at a time; 0 for all of them."""
  tokens = config.model.loss_chunk_tokens
  if tokens is not None:
    return tokens
  platform = mesh.devices.flat[0].platform
  tokens = chunked.fitting_tokens(task.num_classes, platform)
  rows = max(config.batch_size, config.eval_batch_size)
  on_device = rows * task.units_per_row // mesh.size
  return tokens if tokens < on_device else 0


def _make_networks(
  config: ConfigDict, task: Task, mesh: Mesh, fault: Fault
) -> tuple[Network, ...]:
  """The network of each member; equal ones are one object."""
  members = networks_lib.of_members(config)
  made = {}
  for name, own in members:
    if name not in made:
      _check_microbatches(own, mesh)
      made[name] = Network(
        _make_model(own, task), _make_optimizer(own, fault), name
      )
  return tuple(made[name] for name, _ in members)


def _make_model(config: ConfigDict, task: Task) -> Model:
  section = config.model
  check_choice('model.name', section.name, MODELS)
  check_choice('model.dtype', section.dtype, ('float32', 'bfloat16', 'float16'))
  check_choice(
    'model.param_dtype', section.param_dtype, ('float32', 'bfloat16')
  )
  check_least(
    {
      f'model.{name}.{key}': (size, 1)
      for name, sizes in section.items()
      if isinstance(sizes, ConfigDict)
      for key, size in sizes.items()
      if isinstance(size, int) and not isinstance(size, bool)
    }
  )
  return task.make_model(
    MODELS[section.name],
    dtype=section.dtype,
    param_dtype=section.param_dtype,
    **_chosen(config, 'model', MODELS),
  )


def _make_optimizer(config: ConfigDict, fault: Fault) -> optim.Rated:
  rate = _make_schedule(config)
  name = config.optimizer.name
  keywords = _chosen(config, 'optimizer', optim.OPTIMIZERS)
  made = optim.make_optimizer(name, rate, **keywords)
  made = optim.averaging(fault.prepare(made), config.average_decay)
  return optim.Rated(*made, functools.partial(fault.rate, rate))


def _make_schedule(config: ConfigDict) -> optax.Schedule:
  keywords = _chosen(config, 'schedule', optim.SCHEDULES)
  return optim.make_schedule(config.schedule.name, **keywords)


def _chosen(
  config: ConfigDict, section: str, known: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
  """The keywords of the choice that a section names: section[section.name].

  One that is not known has none, and is refused where it would be made.
  """
  name = config[section].name
  if name not in known:
    return {}
  if name not in config[section]:
    raise UserError(
      f'{section}.name is {name!r}, and this variant has no '
      f'{section}.{name} to say how'
    )
  keywords = dict(config[section][name])
  check_keywords(known[name], f'{section}.{name}', keywords)
  return keywords


def _check_microbatches(config: ConfigDict, mesh: Mesh) -> None:
  """Raises ValueError if a batch cannot be divided as the config says."""
  parts, examples = config.num_microbatches, config.batch_size // mesh.size
  if examples % parts:
    raise ValueError(
      f'num_microbatches is {parts}, which does not divide the {examples} '
      'examples of each device; change it, batch_size or num_devices'
    )
  if config.model.name == 'wide_resnet' and parts > 1:
    raise ValueError(
      f'num_microbatches is {parts}, and BatchNorm of a wide_resnet takes the '
      'whole batch; set it to 1'
    )
  if config.model.name != 'resnet':
    return
  key = 'model.resnet.batch_norm_group_size'
  group = config.model.resnet.batch_norm_group_size
  if group is None and parts > 1:
    raise ValueError(
      f'num_microbatches is {parts}, and BatchNorm takes the whole batch; set '
      f'{key}, to 32 as Goyal et al. (2017) have it, or num_microbatches to 1'
    )
  if group and (group < 1 or examples // parts % group):
    raise ValueError(
      f'{key} is {group}, which does not divide the {examples // parts} '
      'examples that a device computes at a time; change it or num_microbatches'
    )
