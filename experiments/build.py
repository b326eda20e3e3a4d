"""config → Experiment: the only reader of a ConfigDict.

Config stops here. Below, everything gets keyword arguments without defaults.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from codistill import asynchronous, losses, optim, sharding
from codistill.algorithm import Exchange, Member, Peer
from codistill.evaluate import Evaluate, make_evaluate
from codistill.exchange import memory as exchange_lib
from codistill.exchange import topology
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.rules import Rules
from codistill.models import MODELS, Model, with_pixels
from codistill.train_step import (
  JittedUpdates,
  TrainState,
  init_state,
  make_updates,
  place_state,
)
from data.clicks.dataset import SHAPE as CLICK_SHAPE
from data.clicks.dataset import make_clicks
from data.images.dataset import BadDataError, NotPreparedError, make_images
from data.text.dataset import make_text
from experiments import record
from experiments.errors import UserError, user_errors
from experiments.faults import KINDS as FAULTS
from experiments.faults import Fault
from experiments.results import MACHINE_KEYS

# What a member does by itself, so that its peers may do otherwise.
_OWN_KEYS = (
  'codistill.max_age_steps',
  'codistill.max_task_loss_ratio',
  'codistill.poll_interval_s',
  'codistill.publish_precision',
  'codistill.teacher_precision',
  'data.eval_split',
  'eval_interval_steps',
)
# diversity.partition in the words of `data.partition`.
_PARTITIONS = {'own': 'disjoint', 'same': 'shared'}


class Dataset(Protocol):
  """Images, text or clicks; `data.images.dataset.ImageSet` says how."""

  num_train: int

  def train(
    self,
    *,
    member: int,
    members: int,
    partition: str,
    seed: int,
    batch_size: int,
    start: int = 0,
    rows: np.ndarray | None = None,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, batch t a pure function of the arguments and t."""
    ...

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, with a mask."""
    ...

  def num_examples(self, split: str) -> int:
    """How many `eval` counts."""
    ...

  def label_distribution(self) -> np.ndarray:
    """The training split's share of each label."""
    ...


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All that a run is made of, wired and still without state.

  Attributes:
    config: where it came from; for its own methods only.
    members: numbers of the members that this process trains.
    mesh: their devices.
    model: F.
    optimizer: of every member.
    updates: burn-in and codistilling.
    teacher_precision: what the exchange holds peers in.
    exchange: between the members.
    evaluate: exact evaluation.
    fault: what is to go wrong on purpose.
    dataset: the examples.
    burn_in_steps: n_burn_in.
    num_steps: updates of each member.
    batch_size: global, a member; images, or lanes of text.
    examples_per_step: of a member: images, or tokens.
    unit: what these are.
    eval_interval_steps: between two evaluations.
    store_predictions: whether those of the last evaluation are kept.
    predictions_interval_steps: between others of which they are; 0 for none.
    checkpoint_interval_steps: between two checkpoints.
  """

  config: ConfigDict
  members: tuple[int, ...]
  mesh: Mesh
  model: Model
  optimizer: optax.GradientTransformation
  updates: JittedUpdates
  teacher_precision: str
  exchange: Exchange
  evaluate: Evaluate
  fault: Fault
  dataset: Dataset
  burn_in_steps: int
  num_steps: int
  batch_size: int
  examples_per_step: int
  unit: str
  eval_interval_steps: int
  store_predictions: bool
  predictions_interval_steps: int
  checkpoint_interval_steps: int
  # Names of corrupt examples that nobody has asked for yet, by member, or
  # 'eval'.
  _corrupt: dict[int | str, list[str]] = dataclasses.field(
    default_factory=dict, repr=False
  )

  def init(self, member: int) -> TrainState:
    """A member's state before its first update, on the host's default device.

    The sources of diversity are here and in `batches`: what is not a member's
    own comes from the number 0.
    """
    diversity = self.config.diversity
    root = jax.random.key(self.config.seed)
    weights, noise = (jax.random.fold_in(root, purpose) for purpose in (0, 1))
    return init_state(
      self.model,
      self.optimizer,
      batch_size=self.batch_size,
      init_key=jax.random.fold_in(
        weights, _own(member, diversity.initialization)
      ),
      noise_key=jax.random.fold_in(noise, _own(member, diversity.order)),
      num_async_workers=self.config.num_async_workers,
    )

  def batches(self, member: int, start: int) -> Iterator[dict[str, Any]]:
    """A member's stream of batches on its mesh, from batch `start` on."""
    diversity = self.config.diversity
    # The order of the data has a seed of its own, apart from the weights'.
    [seed] = np.random.SeedSequence(
      (self.config.seed, _own(member, diversity.order))
    ).generate_state(1)
    rows = sharding.local_rows(self.batch_size, self.mesh)
    workers = self.config.num_async_workers
    streams = [
      self.dataset.train(
        member=member,
        members=self.config.codistill.members,
        partition=_PARTITIONS[diversity.partition],
        seed=int(seed),
        # Each worker has a batch of its own in one of all of them.
        batch_size=workers * self.batch_size,
        start=(start + workers - 1 - worker) // workers,
        rows=worker * self.batch_size + rows,
      )
      for worker in range(workers)
    ]
    return (
      sharding.split_batch(
        self._next(streams[step % workers], member), self.mesh
      )
      for step in itertools.count(start)
    )

  def start(self) -> list[Member]:
    """The members before their first update, on the mesh."""
    return [
      Member(
        member,
        place_state(self.init(member), self.mesh),
        self.batches(member, start=0),
      )
      for member in self.members
    ]

  def carried(self, member: Member) -> Any:
    """The memory that training has left a member with; of its first worker."""
    return asynchronous.carry_of(
      member.state.memory, self.config.num_async_workers, 0
    )

  def eval_batches(self, split: str = 'test') -> Iterator[dict[str, Any]]:
    """Examples of a split, each once; this process's rows of each batch."""
    batch_size = self.config.eval_batch_size
    batches = self.dataset.eval(
      split,
      batch_size=batch_size,
      rows=sharding.local_rows(batch_size, self.mesh),
    )
    while batch := self._next(batches, 'eval'):
      yield batch

  def take_corrupt(self, stream: int | str) -> list[str]:
    """Names of examples that could not be decoded, since last asked.

    Args:
      stream: number of a member, or 'eval'.
    """
    return self._corrupt.pop(stream, [])

  def _next(
    self, batches: Iterator[dict[str, Any]], stream: int | str
  ) -> dict[str, Any] | None:
    """The next batch without the names of what is corrupt in it."""
    with user_errors(BadDataError):
      batch = next(batches, None)
    if batch and 'corrupt' in batch:
      self._corrupt.setdefault(stream, []).extend(batch.pop('corrupt'))
    return batch


def build(
  config: ConfigDict,
  member: int | None,
  dataset: Dataset | None = None,
  exchange_folder: epath.PathLike | None = None,
  teachers: Sequence[Peer] = (),
  teacher: Model | None = None,
) -> Experiment:
  """Wires an experiment.

  Args:
    config: as `experiments/configs` makes them.
    member: the one member that this process trains, or None for all.
    dataset: instead of the one that the config names.
    exchange_folder: where members of several processes meet, unless the config
      says.
    teachers: whom members learn from, if `codistill.exchange` is frozen.
    teacher: their network, if it may be another one.

  Returns:
    The experiment; no weight has been initialised yet.

  Raises:
    UserError: if the config, the member or this machine do not fit.
  """
  codistill = config.codistill
  _check(config, member)
  with user_errors(ValueError):
    mesh = sharding.make_mesh(config.num_devices)
    for key in ('batch_size', 'eval_batch_size'):
      sharding.check_batch_size(config[key], mesh, key)
    _check_microbatches(config, mesh)
    graph = topology.make_topology(
      codistill.topology,
      codistill.members,
      num_random=codistill.num_random_neighbours,
      seed=config.seed,
    )
    model = _make_model(config)
    optimizer = optim.make_optimizer(
      config.optimizer.name,
      config.schedule.name,
      _arguments(config.schedule),
      **_arguments(config.optimizer),
    )
    fault = Fault(seed=config.seed, **config.fault)
    optimizer = fault.prepare(optimizer)
    rules = Rules(
      max_age_steps=codistill.max_age_steps,
      max_task_loss_ratio=codistill.max_task_loss_ratio,
    )
  unlabelled = config.data.get('unlabelled_split')
  dataset = dataset or make_dataset(config)
  with user_errors(ValueError):
    # Refuses parts that are too small, before anything is written.
    dataset.train(
      member=0,
      members=codistill.members,
      partition=_PARTITIONS[config.diversity.partition],
      seed=0,
      batch_size=config.num_async_workers * config.batch_size,
      rows=np.arange(0),
    )
  members = tuple(range(codistill.members)) if member is None else (member,)
  with user_errors(ValueError):
    exchange = _make_exchange(
      config,
      graph,
      rules,
      members=members,
      folder=codistill.exchange_dir or exchange_folder,
      model=model,
      mesh=mesh,
      teachers=teachers,
    )
  updates = make_updates(
    model,
    optimizer,
    mesh,
    teacher=teacher or model,
    task_loss=losses.task_cross_entropy
    if unlabelled is None
    else losses.labelled_cross_entropy,
    distill_loss=losses.DISTILL_LOSSES[codistill.distill_loss],
    task_weight=codistill.task_weight,
    distill_weight=codistill.distill_weight,
    constant_targets=_constant_targets(config, dataset),
    memory_reset_probability=config.model.memory_reset_probability,
    loss_chunk_tokens=config.model.loss_chunk_tokens,
    num_async_workers=config.num_async_workers,
    num_microbatches=config.num_microbatches,
  )
  return Experiment(
    config=config,
    members=members,
    mesh=mesh,
    model=model,
    optimizer=optimizer,
    updates=updates,
    teacher_precision=codistill.teacher_precision,
    exchange=exchange,
    evaluate=make_evaluate(
      model, mesh, loss_chunk_tokens=config.model.loss_chunk_tokens
    ),
    fault=fault,
    dataset=dataset,
    burn_in_steps=codistill.burn_in_steps,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    examples_per_step=config.batch_size * config.data.get('sequence_length', 1),
    unit='tokens' if config.data.kind == 'text' else 'examples',
    eval_interval_steps=config.eval_interval_steps,
    store_predictions=config.store_predictions,
    predictions_interval_steps=config.predictions_interval_steps,
    checkpoint_interval_steps=config.checkpoint_interval_steps,
  )


def make_dataset(config: ConfigDict) -> Dataset:
  """The examples that a config names.

  Raises:
    UserError: if they are not prepared, or not what the config says they are.
  """
  return _MAKE[config.data.kind](config.data)


def _make_images(data: ConfigDict) -> Dataset:
  with user_errors(ValueError, NotPreparedError):
    dataset = make_images(
      data.name,
      train_split=data.train_split,
      eval_split=data.eval_split,
      unlabelled_split=data.unlabelled_split,
      data_dir=data.data_dir,
      augmentation=data.augmentation,
      padding=data.padding,
      image_size=data.image_shape[0],
      cache=data.cache,
      num_workers=data.num_workers,
      num_threads=data.num_threads,
      prefetch_batches=data.prefetch_batches,
    )
  found = (tuple(dataset.image_shape), dataset.num_classes)
  wanted = (tuple(data.image_shape), data.num_classes)
  if found != wanted:
    raise UserError(
      f'{data.name} has images of shape {found[0]} in {found[1]} classes; set '
      'data.image_shape and data.num_classes to that, instead of '
      f'{wanted[0]} and {wanted[1]}'
    )
  return dataset


def _make_text(data: ConfigDict) -> Dataset:
  name = 'builtin' if data.name == 'builtin' else data.data_dir
  if name is None:
    raise UserError(
      f'data.name is {data.name}: say where with --config.data.data_dir=DIR, '
      'a folder that scripts.prepare_text made; or set data.name to builtin'
    )
  with user_errors(ValueError, OSError):
    dataset = make_text(
      str(name),
      sequence_length=data.sequence_length,
      max_document_tokens=data.max_document_tokens,
      max_train_tokens=data.max_train_tokens,
      max_test_tokens=data.max_test_tokens,
      cache_dir=data.data_dir if data.name == 'builtin' else None,
    )
  if dataset.vocab_size != data.vocab_size:
    raise UserError(
      f'{name} has {dataset.vocab_size:,} pieces; set data.vocab_size to that, '
      f'instead of {data.vocab_size:,}'
    )
  return dataset


def _make_clicks(data: ConfigDict) -> Dataset:
  # A path is somebody's own log, whatever else the variant would take.
  name = data.path or data.name
  if name == 'prepared':
    raise UserError(
      'data.name is prepared: say where with --config.data.path=DIR, a folder '
      'that scripts.prepare_criteo made; or set data.name to synthetic'
    )
  with user_errors(ValueError, OSError):
    return make_clicks(
      str(name),
      synthetic_rows=data.synthetic_rows,
      table_sizes=data.table_sizes,
      max_test_rows=data.max_test_rows,
      cache_dir=None,
    )


_MAKE = {'images': _make_images, 'text': _make_text, 'clicks': _make_clicks}


def _make_exchange(
  config: ConfigDict,
  graph: topology.Topology,
  rules: Rules,
  *,
  members: tuple[int, ...],
  folder: epath.PathLike | None,
  model: Model,
  mesh: Mesh,
  teachers: Sequence[Peer],
) -> Exchange:
  """How the members see each other; raises ValueError as the constructors."""
  codistill = config.codistill
  match codistill.exchange:
    case 'none':
      return exchange_lib.FrozenExchange()
    case 'frozen':
      return exchange_lib.FrozenExchange(tuple(teachers))
    case 'memory':
      return exchange_lib.InMemoryExchange(
        graph,
        reload_interval_steps=codistill.reload_interval_steps,
        delay_steps=codistill.delay_steps,
        immediate=codistill.immediate,
        rules=rules,
        publish_precision=codistill.publish_precision,
        teacher_precision=codistill.teacher_precision,
      )
  keep = codistill.keep_publications
  if codistill.synchronous:
    # A member that has lost the steps since its last checkpoint may ask for
    # what a teacher published then, who in a ring may be ahead by an interval
    # for every member between.
    ahead = codistill.reload_interval_steps + codistill.delay_steps
    steps = config.checkpoint_interval_steps + codistill.members * ahead
    keep = max(keep, 4 + math.ceil(steps / codistill.reload_interval_steps))
  return CheckpointExchange(
    folder,
    graph,
    members=members,
    like=_abstract_variables(model, mesh),
    reload_interval_steps=codistill.reload_interval_steps,
    delay_steps=codistill.delay_steps,
    rules=rules,
    synchronous=codistill.synchronous,
    publish_precision=codistill.publish_precision,
    teacher_precision=codistill.teacher_precision,
    config_hash=record.config_hash(_comparable(config)),
    keep_publications=keep,
    keep_s=codistill.keep_s,
    poll_interval_s=codistill.poll_interval_s,
    wait_timeout_s=codistill.wait_timeout_s,
    lease_timeout_s=codistill.lease_timeout_s,
  )


def _abstract_variables(model: Model, mesh: Mesh) -> Any:
  """A member's variables without numbers, on all devices of the mesh."""
  variables = jax.eval_shape(model.init, jax.random.key(0))
  place = sharding.replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    variables,
  )


def _comparable(config: ConfigDict) -> dict[str, Any]:
  """What members that exchange weights must have in common."""
  plain = config.copy_and_resolve_references()
  free = {*MACHINE_KEYS, *_OWN_KEYS}
  if config.codistill.synchronous:
    # What publishers keep follows from it.
    free.remove('checkpoint_interval_steps')
  with plain.unlocked():
    for key in sorted(free):
      section, _, name = key.rpartition('.')
      holder = plain[section] if section else plain
      if name in holder:
        del holder[name]
  return plain.to_dict()


def _make_model(config: ConfigDict) -> Model:
  data, own = config.data, {}
  match data.kind:
    case 'text':
      shape, num_classes = (data.sequence_length,), data.vocab_size
    case 'clicks':
      shape, num_classes = CLICK_SHAPE, 2
      own['table_sizes'] = data.table_sizes
    case _:
      shape, num_classes = tuple(data.image_shape), data.num_classes
  model = MODELS[config.model.name](
    input_shape=shape,
    num_classes=num_classes,
    dtype=config.model.dtype,
    param_dtype=config.model.param_dtype,
    **own,
    **_arguments(config.model),
  )
  if data.kind != 'images':
    return model
  if not len(data.mean) == len(data.std) == shape[-1]:
    raise UserError(
      f'data.mean and data.std need one number per channel: images have '
      f'{shape[-1]}, got {len(data.mean)} and {len(data.std)} numbers'
    )
  return with_pixels(model, mean=data.mean, std=data.std)


def _arguments(section: ConfigDict) -> dict[str, Any]:
  """The keywords of the choice that a section names: section[section.name]."""
  return dict(section.get(section.name, {}))


def _constant_targets(
  config: ConfigDict, dataset: Dataset
) -> np.ndarray | None:
  """The distribution that stands in for the peers, if one does."""
  match config.codistill.teacher:
    case 'uniform':
      classes = len(dataset.label_distribution())
      return np.full(classes, 1 / classes, np.float32)
    case 'unigram':
      return np.asarray(dataset.label_distribution())
    case _:
      return None


def _check_microbatches(config: ConfigDict, mesh: Mesh) -> None:
  """Raises ValueError if a batch cannot be divided as the config says."""
  parts, examples = config.num_microbatches, config.batch_size // mesh.size
  if examples % parts:
    raise ValueError(
      f'num_microbatches is {parts}, which does not divide the {examples} '
      'examples of each device; change it, batch_size or num_devices'
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


def _own(member: int, source: str) -> int:
  return member if source == 'own' else 0


def _check(config: ConfigDict, member: int | None) -> None:
  """What no constructor further down would refuse by itself."""
  codistill, diversity = config.codistill, config.diversity
  choices = {
    'codistill.exchange': (
      codistill.exchange,
      ('memory', 'checkpoints', 'frozen', 'none'),
    ),
    'codistill.teacher': (codistill.teacher, ('peers', 'uniform', 'unigram')),
    'codistill.distill_loss': (codistill.distill_loss, losses.DISTILL_LOSSES),
    'data.kind': (config.data.kind, _MAKE),
    'fault.kind': (config.fault.kind, FAULTS),
    'model.name': (config.model.name, MODELS),
    'model.dtype': (config.model.dtype, ('float32', 'bfloat16', 'float16')),
    'model.param_dtype': (config.model.param_dtype, ('float32', 'bfloat16')),
    **{
      f'diversity.{source}': (diversity[source], _PARTITIONS)
      for source in ('initialization', 'order', 'partition')
    },
  }
  for key, (value, allowed) in choices.items():
    if value not in allowed:
      raise UserError(f'{key} is {value!r}; it can be {", ".join(allowed)}')
  for section, needs in (('model', MODELS), ('schedule', optim.SCHEDULES)):
    name = config[section].name
    if name in needs and name not in config[section]:
      raise UserError(
        f'{section}.name is {name!r}, and this variant has no '
        f'{section}.{name} to say how'
      )
  if codistill.teacher != 'peers' and codistill.exchange != 'none':
    raise UserError(
      f'codistill.teacher {codistill.teacher} stands in for the peers; set '
      'codistill.exchange to none'
    )
  unlabelled = config.data.get('unlabelled_split')
  if (
    unlabelled and codistill.exchange == 'none' and codistill.teacher == 'peers'
  ):
    raise UserError(
      f'data.unlabelled_split is {unlabelled!r}, and nobody teaches what is in '
      'it; set codistill.exchange, or leave it out'
    )
  fault = config.fault
  if fault.kind != 'none' and not (
    0 <= fault.member < codistill.members and 1 <= fault.step < config.num_steps
  ):
    raise UserError(
      f'fault.member {fault.member} after fault.step {fault.step} is nobody or '
      f'never: there are {codistill.members} members, numbered from 0, and '
      f'{config.num_steps} steps'
    )
  if codistill.immediate and codistill.exchange == 'checkpoints':
    raise UserError(
      'codistill.immediate is the letter of Algorithm 1, which parallel jobs '
      'cannot follow; set codistill.exchange to memory'
    )
  least = {
    'seed': (config.seed, 0),
    'batch_size': (config.batch_size, 1),
    'eval_batch_size': (config.eval_batch_size, 1),
    'codistill.members': (codistill.members, 1),
    'codistill.burn_in_steps': (codistill.burn_in_steps, 0),
    'num_steps': (config.num_steps, 1),
    'num_async_workers': (config.num_async_workers, 1),
    'num_microbatches': (config.num_microbatches, 1),
    'two_phase.members': (config.two_phase.members, 1),
    'two_phase.num_steps': (config.two_phase.num_steps, 0),
    **{
      f'model.{name}.{key}': (size, 1)
      for name, section in config.model.items()
      if isinstance(section, ConfigDict)
      for key, size in section.items()
      if isinstance(size, int) and not isinstance(size, bool)
    },
    'eval_interval_steps': (config.eval_interval_steps, 1),
    'predictions_interval_steps': (config.predictions_interval_steps, 0),
    'checkpoint_interval_steps': (config.checkpoint_interval_steps, 1),
  }
  for key, (value, minimum) in least.items():
    if value < minimum:
      raise UserError(f'{key} is {value}; it must be at least {minimum}')
  often = config.predictions_interval_steps
  if often % config.eval_interval_steps:
    raise UserError(
      f'predictions_interval_steps is {often}; it must be a multiple of '
      f'eval_interval_steps, {config.eval_interval_steps}: predictions are '
      'those of an evaluation'
    )
  if often and not config.store_predictions:
    raise UserError(
      f'predictions_interval_steps is {often}, and store_predictions False; '
      'set that to True, or the interval to 0'
    )
  shape = tuple(config.data.get('image_shape', (1, 1, 1)))
  if len(shape) != 3 or min(shape) < 1:
    raise UserError(
      f'data.image_shape is {shape}; it must be (height, width, channels)'
    )
  chance = config.model.memory_reset_probability
  if not 0 <= chance <= 1:
    raise UserError(
      f'model.memory_reset_probability is {chance}; it must be in [0, 1]'
    )
  if member is not None and not 0 <= member < codistill.members:
    raise UserError(
      f'--member={member} is out of range: this config has '
      f'{codistill.members} members, numbered from 0'
    )
  if member is not None and codistill.exchange == 'memory':
    raise UserError(
      f'--member={member} cannot meet its peers: codistill.exchange is memory, '
      'which holds all members in one process; use --member=all, or set '
      'codistill.exchange to checkpoints'
    )
