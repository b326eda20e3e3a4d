"""The cost of a config's updates: FLOPs, bytes, memory of each device.

  python -m scripts.cost CONFIG[:VARIANT] [--devices 1 8 64]
    [--microbatches 64 8 1] [--teachers=N] [--member=0] [--json=FILE]
    [--config.any.key=value …]

It compiles both updates for each number of devices, with shapes in place of
numbers: it needs no data, allocates nothing and computes nothing.
`scripts/flops.py` counts FLOPs before compilation; bytes follow from shapes;
memory is from the compiler's analysis, and applies to the backend that it
compiled for. Without an accelerator that is the CPU, for which JAX shows as
many devices as needed. --microbatches says in how many parts the batch of an
update is computed, for each number of devices; --member, whose update it is, if
members have different networks; --teachers, how many teach it, by default all
that the config gives it. Frozen teachers have the networks of the first phase,
or of the run that codistill.frozen_dir names. Where no member teaches another
the burn-in update is the only one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from codistill import precision
from codistill.models import Model
from codistill.models.convolution import plain_convolutions
from experiments import averaging, config_file, given
from experiments import config as configs
from experiments.build import build
from experiments.errors import UserError, user_errors
from experiments.experiment import Experiment
from experiments.paths import local_path
from experiments.processes import given_keys
from experiments.runs import read_runs
from experiments.stored import check_alike, rebuild
from experiments.tasks import make_task
from scripts import flops
from scripts.benchmark.measure import machine

PyTree = Any
# Keys that flags of this command set, for each number of devices.
_FLAGS = {'num_devices': '--devices', 'num_microbatches': '--microbatches'}


class Arguments(NamedTuple):
  """Shapes of an update's arguments, with one peer a teacher."""

  state: PyTree
  batch: PyTree
  peers: tuple[PyTree, ...]
  peer_memories: tuple[PyTree, ...]
  distill: bool
  models: tuple[Model, ...]


def make_experiment(name: str, num_devices: int, **changes: Any) -> Experiment:
  """An experiment without data.

  Args:
    name: of the config, as `config_file.find` reads it.
    num_devices: of this process.
    **changes: dotted keys of the config, and their values.

  Raises:
    UserError: as `configs.load_changed`, if there are not so many devices, or
      frozen teachers are not known.
  """
  config = configs.load_changed(name, {'num_devices': num_devices, **changes})
  if config.codistill.exchange == 'checkpoints':
    config.codistill.exchange = 'memory'  # It needs no folder.
  if config.fault.kind == 'slow':
    config.fault.kind = 'none'  # Nobody trains.
  models = None
  if config.codistill.exchange == 'frozen':
    models = dict(enumerate(_frozen_models(config)))
  data = make_task(config.data).without_examples()
  return build(config, None, data, models=models)


def _frozen_models(config: Any) -> list[Model]:
  """The networks of the teachers that a config's students learn from."""
  frozen = config.codistill.frozen_dir
  if frozen is None:
    first = configs.first_phase(config)
    run = build(first, None, make_task(first.data).without_examples())
  else:
    with user_errors(argparse.ArgumentTypeError):
      run = rebuild(read_runs(local_path(frozen)), with_data=False)
  check_alike(frozen, run.task, make_task(config.data))
  return run.models(run.members)


def own_teachers(config: Any, experiment: Experiment, member: int = 0) -> int:
  """How many teach a member in its codistilling updates; 0 without these.

  Args:
    config: whose `experiment` it is.
    experiment: without data.
    member: who learns.
  """
  if experiment.burn_in_steps >= experiment.num_steps:
    return 0
  if config.codistill.exchange in ('none', 'frozen'):
    return len(experiment.teachers)
  outer = experiment.outer_steps
  # The others of its group are averaged, and do not teach it.
  averaged = outer.group_size - 1 if outer else 0
  return len(averaging.make_graph(config).teachers(member, 0)) - averaged


def abstract_arguments(
  experiment: Experiment, teachers: int, member: int = 0
) -> Arguments:
  """Shapes of an update's arguments.

  Args:
    experiment: with the update.
    teachers: of the codistilling update, the members that follow this one or
      the frozen ones; 0 for the burn-in update.
    member: whose update it is.
  """
  # Without an exchange, the teachers would be its own members.
  among = experiment.teachers or experiment.members
  numbers = [
    among[(member + after) % len(among)] for after in range(1, 1 + teachers)
  ]
  models = tuple(map(experiment.updates.model_of, numbers))
  state = jax.eval_shape(lambda: experiment.init(member))
  key = jax.random.key(experiment.seed)
  return Arguments(
    state,
    experiment.task.abstract_batch(experiment.batch_size),
    tuple(
      precision.abstract(
        jax.eval_shape(model.init, key), experiment.teacher_precision
      )
      for model in models
    ),
    tuple(
      jax.eval_shape(
        lambda model=model: experiment.updates.zero_memory(
          model, experiment.batch_size
        )
      )
      for model in models
    ),
    bool(models),
    models,
  )


def update_flops(
  experiment: Experiment, teachers: int, member: int = 0
) -> flops.Flops:
  """FLOPs of an update, on all devices together; arguments as above."""
  *shapes, distill, models = abstract_arguments(experiment, teachers, member)
  descend = experiment.updates.descends[shapes[0].network]
  return flops.count(lambda *some: descend(*some, distill, models), *shapes)


def update_memory(
  experiment: Experiment, teachers: int, member: int = 0
) -> dict[str, int]:
  """Bytes of an update on each device, by the compiler's analysis.

  Args:
    experiment: with the update, and a mesh of the devices to compile for.
    teachers: as above.
    member: as above.

  Returns:
    Bytes of its `arguments`, bytes needed `while_it_runs`, and `in_all`, in
    which donated bytes count once.

  Raises:
    UserError: if the backend has no such analysis.
  """
  arguments = abstract_arguments(experiment, teachers, member)
  descend = experiment.updates.descends[arguments.state.network]
  # Not the patches that some convolutions have on CPUs instead.
  with plain_convolutions():
    analysis = descend.lower(*arguments).compile().memory_analysis()
  if analysis is None:
    raise UserError(
      f'the compiler for {jax.default_backend()} has no analysis of memory; '
      'use that for the CPU, with JAX_PLATFORMS=cpu'
    )
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  needed = {
    'arguments': analysis.argument_size_in_bytes,
    'while_it_runs': analysis.temp_size_in_bytes,
  }
  return needed | {'in_all': sum(needed.values()) + results}


def kept_bytes(experiment: Experiment, member: int = 0) -> int:
  """Bytes that a device keeps of a microbatch for the gradient, by shapes.

  They are activations, and the weights that the gradient needs, of the network
  up to its last linear layer. A compiler may keep less, zeros for example. The
  one for CPUs keeps also what was to be computed again (`remat`), so its
  analysis does not show that saving.

  Args:
    experiment: with the network.
    member: whose network.
  """
  arguments = abstract_arguments(experiment, 0, member)
  model = experiment.networks[member].model
  parts = experiment.num_microbatches * experiment.mesh.size
  state, inputs = arguments.state, arguments.batch['inputs']

  def shrink(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return leaf.update(shape=(leaf.shape[0] // parts, *leaf.shape[1:]))

  def kept(variables, inputs, memory, key):
    params = variables['params']
    others = {name: variables[name] for name in variables if name != 'params'}

    def features(params):
      prediction, *_ = model.forward(
        {'params': params, **others}, inputs, memory, key
      )
      return prediction.features

    return jax.vjp(features, params)[1]

  with plain_convolutions():
    shapes = jax.eval_shape(
      kept,
      state.variables,
      *jax.tree.map(shrink, (inputs, state.memory)),
      state.key,
    )
  return precision.num_bytes(shapes)


def describe(
  name: str,
  sizes: Sequence[tuple[int, int]],
  teachers: int | None,
  changes: Mapping[str, Any],
  member: int = 0,
) -> dict[str, Any]:
  """All that is known about a config without running it.

  Args:
    name: of the config, as `config_file.find` reads it.
    sizes: numbers of devices to compile for, each with that of microbatches.
    teachers: of the codistilling update; None for all that the member has.
    changes: dotted keys of the config, and their values.
    member: whose updates.

  Returns:
    What `--json` writes.

  Raises:
    UserError: as `make_experiment`, if microbatches do not divide a batch,
      there is no such member or not so many teachers, or a key is not read or
      is set by a flag.
  """
  for key in _FLAGS.keys() & changes.keys():
    raise UserError(
      f'--config.{key} is not for this command: {_FLAGS[key]} sets it'
    )
  config = configs.load_changed(name, changes)
  given.check_read(config, changes)
  experiments = [
    make_experiment(name, number, num_microbatches=parts, **changes)
    for number, parts in sizes
  ]
  one = experiments[0]
  if member >= one.num_members:
    raise UserError(
      f'there is no member {member}: this config has {one.num_members}, '
      'numbered from 0'
    )
  most = own_teachers(config, one, member)
  if teachers is not None and teachers > most:
    raise UserError(
      f'--teachers is {teachers}, but {most} teach member {member} of this '
      'config; leave it out to count these'
    )
  teachers = most if teachers is None else teachers
  updates = {'burn-in': 0} | ({'codistilling': teachers} if teachers else {})
  state = abstract_arguments(one, 0, member).state
  weights = jax.tree.leaves(state.variables['params'])
  return {
    'config': config_file.find(name).label,
    'changes': dict(changes),
    'teachers': teachers,
    'member': member,
    'unit': one.unit.removesuffix('s'),
    'examples_per_step': one.examples_per_step,
    'parameters': sum(leaf.size for leaf in weights),
    'bytes': {
      'state': precision.num_bytes(state),
      'memory': precision.num_bytes(state.memory),
      'publication': {
        kind: precision.num_bytes(precision.abstract(state.variables, kind))
        for kind in precision.PRECISIONS
      },
    },
    'flops': {
      update: vars(update_flops(one, number, member))
      for update, number in updates.items()
    },
    'backend': jax.default_backend(),
    'memory': [
      {'devices': devices, 'microbatches': parts, 'update': update}
      | update_memory(experiment, number, member)
      | {'kept_for_gradient': kept_bytes(experiment, member)}
      for (devices, parts), experiment in zip(sizes, experiments, strict=True)
      for update, number in updates.items()
    ],
  }


def tables(found: dict[str, Any]) -> list[Table]:
  """FLOPs by update; memory by update and number of devices."""
  unit, number = found['unit'], found['teachers']
  taught = f'codistilling, {number} teacher{"s" * (number > 1)}'
  names = {'codistilling': taught}
  work = Table(box=box.SIMPLE_HEAD)
  work.add_column(f'{found["config"]}: an update')
  for column in ('products', 'other arithmetic'):
    work.add_column(f'{column} (MFLOP/{unit})', justify='right', min_width=9)
  for update, counts in found['flops'].items():
    each = (count / found['examples_per_step'] for count in counts.values())
    work.add_row(
      names.get(update, update), *(f'{one / 1e6:,.4g}' for one in each)
    )
  memory = Table(box=box.SIMPLE_HEAD)
  memory.add_column(f'compiled for {found["backend"]}: devices')
  memory.add_column('microbatches', justify='right')
  memory.add_column('update')
  for column in ('arguments', 'while it runs', 'in all', 'kept, by shapes'):
    memory.add_column(f'{column} (GB)', justify='right')
  for line in found['memory']:
    memory.add_row(
      f'{line["devices"]}',
      f'{line["microbatches"]}',
      line['update'],
      *(
        f'{line[key] / 1e9:,.4g}'
        for key in ('arguments', 'while_it_runs', 'in_all', 'kept_for_gradient')
      ),
    )
  return [work, memory]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.cost',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('config', metavar='CONFIG')
  parser.add_argument(
    '--devices', metavar='K', type=int, nargs='+', action='extend'
  )
  parser.add_argument(
    '--microbatches', metavar='M', type=int, nargs='+', action='extend'
  )
  parser.add_argument('--teachers', metavar='N', type=int)
  parser.add_argument('--member', metavar='I', type=int, default=0)
  parser.add_argument('--json', type=local_path, metavar='FILE')
  arguments, extra = parser.parse_known_args(argv)
  devices, parts = arguments.devices or [1], arguments.microbatches or [1]
  teachers = [] if arguments.teachers is None else [arguments.teachers]
  if min(*devices, *parts, *teachers) < 1:
    parser.error('--devices, --microbatches and --teachers must be at least 1')
  if arguments.member < 0:
    parser.error('--member must be at least 0')
  if len(parts) == 1:
    parts *= len(devices)
  if len(parts) != len(devices):
    parser.error(
      'give --microbatches as many numbers as --devices, or one for all'
    )
  # This is too late if JAX has devices already; it keeps those.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', max(devices))
  try:
    found = describe(
      arguments.config,
      sorted({*zip(devices, parts, strict=True)}),
      arguments.teachers,
      {key: given.literal(value) for key, value in given_keys(extra).items()},
      arguments.member,
    )
    for table in tables(found):
      Console().print(table)
    if arguments.json:
      text = json.dumps({'machine': machine(), 'cost': found}, indent=2)
      arguments.json.write_text(text + '\n', encoding='utf-8')
  except (UserError, OSError) as error:
    print(f'scripts.cost: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
