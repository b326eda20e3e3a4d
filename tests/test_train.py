"""Uses of the reports: late metrics, the same rows again, TensorBoard."""

import dataclasses
import functools
import itertools
import json
import struct
import sys
import types

import jax
import numpy as np
import pytest
from commands import (
  DNN,
  assert_bit_for_bit,
  build_cheaply,
  rows_of,
  run_command,
)
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from codistill.optim import averaged
from codistill.storage.checkpoint import read_newest
from experiments.record import read_run


@dataclasses.dataclass
class Watched:
  """A metric on the device that records who asks for its value."""

  value: object
  ask: object

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.block_until_ready().value, dtype)

  def __float__(self):
    return float(self.__array__())

  def block_until_ready(self):
    self.ask()
    return self


@pytest.fixture(scope='module')
def watched(small, tmp_path_factory):
  """`small` again, with a tape of updates and of requests for metrics."""
  tape, numbers = [], itertools.count()

  def watch(update):
    def updated(*arguments):
      state, metrics = update(*arguments)
      number = next(numbers)
      tape.append(('dispatch', number))
      ask = functools.partial(tape.append, ('fetch', number))
      return state, {name: Watched(v, ask) for name, v in metrics.items()}

    return updated

  def build_watched(config, member, **keywords):
    experiment = build_cheaply(config, member, **keywords)
    updates, offer = experiment.updates, experiment.exchange.offer

    def offer_to_device(member, step, variables, task_loss=None):
      # A program that takes the loss does not fetch it.
      offer(member, step, variables, getattr(task_loss, 'value', None))

    experiment.exchange.offer = offer_to_device
    watched = types.SimpleNamespace(
      burn_in=watch(updates.burn_in),
      codistill=watch(updates.codistill),
      published=updates.published,
    )
    return dataclasses.replace(experiment, updates=watched)

  workdir = tmp_path_factory.mktemp('watched')
  often = ('--config.checkpoint_interval_steps=6', '--tensorboard')
  arguments = (*small.arguments, *often)
  outcome = run_command(workdir, *arguments, builder=build_watched)
  assert outcome.status == 0
  return workdir, outcome, tape


def test_metrics_are_fetched_one_report_late(watched):
  # Each step has two reports. Before evaluations at 4 and 8, the checkpoint at
  # 6 and the end at 10 there is nothing to wait for.
  caught_up = {2 * step - 1 for step in (4, 6, 8, 10)}
  expected = []
  for number in range(20):
    expected.append(('dispatch', number))
    if number and number - 1 not in caught_up:
      expected.append(('fetch', number - 1))
    if number in caught_up:
      expected.append(('fetch', number))
  assert list(dict.fromkeys(watched[2])) == expected


def test_the_same_config_twice_gives_identical_rows(watched, small):
  workdir, outcome, _ = watched
  assert rows_of(workdir) == small.rows
  assert_bit_for_bit(outcome, small.whole)


def test_averages_of_weights_are_scored_taught_and_gone_on_with(tmp_path):
  offered = {}

  def build_and_keep(config, member, **keywords):
    experiment = build_cheaply(config, member, **keywords)
    offer = experiment.exchange.offer

    def keep(member, step, variables, task_loss=None):
      offered[member, step] = jax.tree.map(np.array, variables)
      offer(member, step, variables, task_loss)

    experiment.exchange.offer = keep
    return experiment

  arguments = (
    *DNN,
    '--config.average_decay=0.9',
    '--config.codistill.publish_average=True',
    '--config.num_steps=6',
    '--config.eval_interval_steps=3',
  )
  done = run_command(tmp_path, *arguments, builder=build_and_keep)
  assert done.status == 0
  members = done.trainer.members
  averages = [
    averaged(member.state.variables, member.state.opt_state)
    for member in members
  ]
  # Computed by hand with TensorFlow's decays, from offers along the way: an
  # average divides the way from the one before to the weights in proportion.
  for member, average in zip(members, averages, strict=True):
    before, after = (offered[member.index, step]['params'] for step in (5, 6))
    jax.tree.map(
      lambda old, new, weights: np.testing.assert_allclose(
        new, 7 / 16 * old + 9 / 16 * np.asarray(weights), rtol=1e-5, atol=1e-7
      ),
      *(before, after, member.state.variables['params']),
    )
    jax.tree.map(np.testing.assert_array_equal, after, average['params'])
  experiment = done.experiment
  scored = experiment.evaluate(
    experiment.models((0, 1)), averages, experiment.eval_batches()
  )
  rows = [row for row in rows_of(tmp_path) if row['kind'] != 'train']
  assert len(rows) == 6
  for row in rows:
    assert row['average_task_loss'] != row['task_loss']
  for row, score in zip(
    rows[-3:], (*scored.members, scored.ensemble), strict=True
  ):
    assert row['average_task_loss'] == score.task_loss
    assert row['average_accuracy'] == score.accuracy
  restored = read_newest(
    tmp_path / 'checkpoints',
    experiment.abstract,
    experiment.mesh,
    experiment.teacher_precision,
  )
  for number, average in enumerate(averages):
    jax.tree.map(
      np.testing.assert_array_equal,
      restored.states[number].opt_state.average,
      average['params'],
    )


def events_of(folder):
  """The events of its only file, read as TFRecord."""
  [path] = folder.iterdir()
  data, events = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


def test_tensorboard_shows_the_rows_without_tensorflow(
  watched, small, tmp_path
):
  resumed = small.stopped_copy(tmp_path)
  assert run_command(resumed, *small.arguments, '--tensorboard').status == 0
  for workdir, start in ((watched[0], 0), (resumed, 5)):
    for who, name in ((0, 'member-0'), (1, 'member-1'), ('ensemble',) * 2):
      events = events_of(workdir / 'tensorboard' / name)
      # TensorBoard hides what an earlier process wrote from there on.
      starts = [event.step for event in events if event.HasField('session_log')]
      assert starts == [start + 1]
      found = [
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
      ]
      losses = [f for f in found if f[0].endswith('/task_loss')]
      assert losses == [
        (f'{row["kind"]}/task_loss', row['step'], np.float32(row['task_loss']))
        for row in small.rows
        if row['member'] == who and row['step'] > start
      ]
      tags = {tag for tag, _, _ in found}
      trained = {'train/distill_loss', 'train/learning_rate'} & tags
      assert len(trained) == 2 * (who != 'ensemble')
      assert ('eval/disagreement' in tags) == (who == 'ensemble')
      assert_config_is_shown(events, read_run(workdir / 'run.json')['config'])
  assert 'tensorflow' not in sys.modules


def assert_config_is_shown(events, config):
  values = {
    value.tag: value for event in events for value in event.summary.value
  }
  [text] = values['config/text_summary'].tensor.string_val
  assert json.loads(text.decode().strip('`')) == config
  plugin = HParamsPluginData.FromString(
    values['_hparams_/session_start_info'].metadata.plugin_data.content
  )
  shown = plugin.session_start_info.hparams
  assert shown['batch_size'].number_value == config['batch_size']
  assert shown['codistill.topology'].string_value == 'all'
  assert shown['codistill.delay_steps'].number_value == 2
  assert shown['model.dnn.hidden'].string_value == '[8]'
  assert shown['codistill.immediate'].bool_value is False
  assert '_hparams_/session_end_info' in values
