"""Metrics are fetched one report late."""

import dataclasses

import numpy as np
from commands import build_cheaply, run_command


class Watched:
  """A metric on the device: to ask it for its value, however, is taped."""

  def __init__(self, value, ask):
    self._value, self._ask = value, ask

  def __array__(self, dtype=None, copy=None):
    self._ask()
    return np.asarray(self._value, dtype)

  def __float__(self):
    return float(self.__array__())

  def __bool__(self):
    return bool(self.__array__())

  def item(self):
    return self.__array__().item()

  def block_until_ready(self):
    self._ask()
    return self


def test_metrics_are_fetched_one_report_late(tmp_path):
  tape = []

  class WatchedUpdates:
    """The updates, and a tape of what is asked of them and of their metrics."""

    def __init__(self, updates):
      self._updates = updates

    def burn_in(self, state, batch):
      return self._watch(self._updates.burn_in(state, batch))

    def codistill(self, state, batch, peers):
      return self._watch(self._updates.codistill(state, batch, peers))

    def _watch(self, result):
      state, metrics = result
      number = sum(event == 'dispatch' for event, _ in tape)
      tape.append(('dispatch', number))

      def ask():
        tape.append(('fetch', number))

      return state, {name: Watched(v, ask) for name, v in metrics.items()}

  def build_watched(config, member, **keywords):
    experiment = build_cheaply(config, member, **keywords)
    exchange = experiment.exchange
    offer = exchange.offer

    def offer_to_device(member, step, variables, task_loss=None):
      # A program that takes the loss does not fetch it.
      offer(member, step, variables, getattr(task_loss, '_value', None))

    exchange.offer = offer_to_device
    return dataclasses.replace(
      experiment, updates=WatchedUpdates(experiment.updates)
    )

  outcome = run_command(
    tmp_path,
    '--config.num_steps=10',
    '--config.eval_interval_steps=4',
    '--config.checkpoint_interval_steps=6',
    builder=build_watched,
  )
  assert outcome.status == 0
  fetched = [
    event for position, event in enumerate(tape) if event not in tape[:position]
  ]
  # Two reports a step; before evaluations at 4 and 8, the checkpoint at 6 and
  # the end at 10 there is nothing to wait for.
  caught_up = {2 * step - 1 for step in (4, 6, 8, 10)}
  expected = []
  for number in range(20):
    expected.append(('dispatch', number))
    if number and number - 1 not in caught_up:
      expected.append(('fetch', number - 1))
    if number in caught_up:
      expected.append(('fetch', number))
  assert fetched == expected
