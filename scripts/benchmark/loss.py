"""Memory and time of φ and ψ over a vocabulary, plain and a chunk at a time.

There is one peer; full shapes are 128 lanes × 32 tokens, 24,006 words and 1,024
features. The loss with its gradient, given features and heads, is compiled and
timed; a whole update of the LSTM with Adam is compiled only. Memory is the most
that a program needs while it runs, by the compiler's analysis; limit: a quarter
of the plain loss's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from codistill import losses, sharding
from codistill.models import Head, Model, Prediction
from codistill.train_state import TrainState
from codistill.train_step import make_objective
from scripts import cost
from scripts.benchmark.measure import Limit, Measure, Measures, in_turn
from scripts.benchmark.networks import Network

PyTree = Any
TITLE = 'loss and gradient'
ROUNDS = 'rounds of a loss of each kind'


class Sizes(NamedTuple):
  """Sizes of a batch and a network, and of chunks in tokens."""

  lanes: int
  tokens: int
  words: int
  embedding: int
  hidden: int
  chunks: tuple[int, ...]


SMALL = Sizes(
  lanes=32,
  tokens=32,
  words=6_000,
  embedding=64,
  hidden=256,
  chunks=(128, 64, 32),
)
FULL = Sizes(
  lanes=128,
  tokens=32,
  words=24_006,
  embedding=256,
  hidden=1_024,
  chunks=(512, 256, 128),
)
# A share of the plain loss's memory.
_AIM = 0.25


def measure(rounds: int, shapes: Sizes) -> Iterator[list[Measure]]:
  """Times losses in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: of a batch and a network.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  arguments = _example(shapes)
  compiled = {}
  for name in losses.DISTILL_LOSSES:
    plain = None
    for chunk in (None, *shapes.chunks):
      update = _update_memory(shapes, name, chunk) / 1e6
      loss = make_loss(name, chunk).lower(*arguments).compile()
      needed = loss.memory_analysis().temp_size_in_bytes / 1e6
      plain = plain or needed
      limit = Limit('≤', _AIM * plain) if chunk else None
      kind = f'{name}, {_kind(chunk)}'
      found.note(f'memory of the loss, {kind}', 'MB', needed, limit)
      # It needs memory for more than logits, so it has no limit.
      found.note(f'memory of an update, {kind}', 'MB', update)
      if name == 'cross_entropy':
        compiled[_kind(chunk)] = functools.partial(loss, *arguments)
  for seconds in in_turn(compiled, rounds):
    for kind, each in seconds.items():
      found.note(f'time, {kind}', 'ms', 1e3 * each)
    for kind in list(seconds)[1:]:
      found.note(
        f'time, {kind}, beside plain',
        '%',
        100 * seconds[kind] / seconds[_kind(None)],
      )
    yield found.all()
  yield found.all()


def make_loss(name: str, chunk_tokens: int | None) -> Callable[..., PyTree]:
  """Loss and gradient of a network with its features as parameters.

  Args:
    name: of ψ.
    chunk_tokens: None for the plain loss.

  Returns:
    (parameters, a peer's, batch) → ((value, metrics), gradient), jitted.
  """

  def predict(variables, inputs, memory):
    return Prediction(**variables['params']), memory

  def forward(variables, inputs, memory, key):
    return predict(variables, inputs, memory)[0], {}, memory

  model = Model(lambda key: {}, predict, forward, lambda batch_size: ())
  descended = make_objective(
    model,
    _objective(name, chunk_tokens),
    sharding.make_mesh(1),
  )

  def loss(params, peer, batch):
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(0), {'params': params}, (), (), {}, key, ())
    teacher = {'params': peer}
    value, (metrics, *_) = descended(
      params, state, batch, (teacher,), ((),), True
    )
    return value, metrics

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _update_memory(sizes: Sizes, name: str, chunk_tokens: int | None) -> int:
  """Bytes that a codistilling update of the LSTM needs while it runs.

  Args:
    sizes: of batch and network.
    name: of ψ.
    chunk_tokens: None for the plain loss.
  """
  network = Network(
    'lm_codistill',
    {
      'batch_size': sizes.lanes,
      'codistill.distill_loss': name,
      'data.sequence_length': sizes.tokens,
      'data.vocab_size': sizes.words,
      'model.dtype': 'float32',
      'model.loss_chunk_tokens': chunk_tokens or 0,
      'model.lstm.embedding_size': sizes.embedding,
      'model.lstm.hidden_size': sizes.hidden,
    },
  )
  return cost.update_memory(network.build(), 1)['while_it_runs']


def _objective(name: str, chunk_tokens: int | None) -> losses.Objective:
  return dataclasses.replace(
    losses.ALGORITHM_1,
    distill_loss=losses.DISTILL_LOSSES[name],
    loss_chunk_tokens=chunk_tokens,
  )


def _example(sizes: Sizes) -> tuple[PyTree, PyTree, PyTree]:
  """A student's features and head, a teacher's, and a batch."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  def params():
    return {
      'features': 0.3 * normal(sizes.lanes, sizes.tokens, sizes.hidden),
      'head': Head(
        0.01 * normal(sizes.hidden, sizes.words), jnp.zeros(sizes.words)
      ),
    }

  shape = (sizes.lanes, sizes.tokens)
  batch = {
    name: jnp.asarray(rng.integers(sizes.words, size=shape, dtype=np.int32))
    for name in ('inputs', 'labels')
  }
  return params(), params(), batch


def _kind(chunk_tokens: int | None) -> str:
  return 'plain' if chunk_tokens is None else f'chunks of {chunk_tokens}'
