"""How much memory an update of the language model takes, by the compiler.

  python -m scripts.loss_memory [--chunks 512 256 128] [--dtype=float32]

For φ and ψ with one peer over 128 lanes × 32 tokens × 24,006 words: the most
temporary memory of the loss with its gradient, features and head given, and of
a whole update of the paper's LSTM with Adam. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

from codistill import losses, optim, sharding
from codistill.models import Head, Model, Prediction, make_lstm
from codistill.train_step import (
  TrainState,
  init_state,
  make_objective,
  make_updates,
)

PyTree = Any


class Sizes(NamedTuple):
  """Of a batch and a head; those of the paper's workers unless told."""

  lanes: int = 128
  tokens: int = 32
  words: int = 24_006
  embedding: int = 256
  hidden: int = 1_024


class Peak(NamedTuple):
  """The most temporary memory of a program.

  Attributes:
    what: `loss` or `update`.
    distill_loss: name of ψ.
    chunk_tokens: None for the plain loss.
    num_bytes: by the compiler's analysis.
  """

  what: str
  distill_loss: str
  chunk_tokens: int | None
  num_bytes: int


def measure(
  distill_losses: Sequence[str],
  chunks: Sequence[int],
  dtype: str,
  sizes: Sizes,
) -> Iterator[Peak]:
  """Compiles each program, plain ones before those in chunks.

  Args:
    distill_losses: names of ψ.
    chunks: tokens of a chunk.
    dtype: of the computation.
    sizes: of batch and network.

  Yields:
    The peak of each.
  """
  for name in distill_losses:
    for chunk in (None, *chunks):
      for what, lower in (('loss', _lower_loss), ('update', _lower_update)):
        program = lower(dtype, sizes, _losses(name, chunk)).compile()
        num_bytes = program.memory_analysis().temp_size_in_bytes
        yield Peak(what, name, chunk, num_bytes)


def _losses(name: str, chunk_tokens: int | None) -> dict[str, Any]:
  return {
    'task_loss': losses.task_cross_entropy,
    'distill_loss': losses.DISTILL_LOSSES[name],
    'task_weight': 1.0,
    'distill_weight': 1.0,
    'constant_targets': None,
    'memory_reset_probability': 0.0,
    'loss_chunk_tokens': chunk_tokens,
  }


def _batch(sizes: Sizes) -> PyTree:
  tokens = jax.ShapeDtypeStruct((sizes.lanes, sizes.tokens), jnp.int32)
  return {'inputs': tokens, 'labels': tokens}


def _lower_loss(dtype: str, sizes: Sizes, arguments: dict[str, Any]):
  """Loss and gradient of a network whose features are its parameters."""

  def predict(variables, inputs, memory):
    return Prediction(**variables['params']), memory

  model = Model(
    init=lambda key: {},
    predict=predict,
    forward=lambda variables, inputs, memory, key: (
      predict(variables, inputs, memory)[0],
      {},
      memory,
    ),
    memory=lambda batch_size: (),
  )
  objective = make_objective(model, **arguments, mesh=sharding.make_mesh(1))
  key = jax.random.key_data(jax.random.key(0))

  def loss(params, peer, batch):
    state = TrainState(jnp.int32(0), {'params': params}, (), (), {}, key)
    value, (metrics, *_) = objective(params, state, batch, (peer,), ((),), True)
    return value, metrics

  shape = (sizes.lanes, sizes.tokens, sizes.hidden)
  params = {
    'features': jax.ShapeDtypeStruct(shape, dtype),
    'head': Head(
      jax.ShapeDtypeStruct((sizes.hidden, sizes.words), jnp.float32),
      jax.ShapeDtypeStruct((sizes.words,), jnp.float32),
    ),
  }
  return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(
    params, {'params': params}, _batch(sizes)
  )


def _lower_update(dtype: str, sizes: Sizes, arguments: dict[str, Any]):
  """A codistilling update of the LSTM."""
  model = make_lstm(
    input_shape=(sizes.tokens,),
    num_classes=sizes.words,
    embedding_size=sizes.embedding,
    hidden_size=sizes.hidden,
    num_layers=2,
    dtype=dtype,
    param_dtype='float32',
  )
  optimizer = optim.make_optimizer('adam', 'constant', {'rate': 1e-3})
  updates = make_updates(model, optimizer, sharding.make_mesh(1), **arguments)
  key = jax.random.key(0)
  state = jax.eval_shape(
    lambda: init_state(
      model, optimizer, batch_size=sizes.lanes, init_key=key, noise_key=key
    )
  )
  return updates.descend.lower(
    state, _batch(sizes), (state.variables,), (state.memory,), True
  )


def table(peaks: Sequence[Peak]) -> Table:
  """A line a ψ and chunk; megabytes, and per cent of the plain loss's."""
  shown = Table(box=box.SIMPLE_HEAD)
  for column in ('ψ', 'tokens of a chunk', 'loss', '', 'update', ''):
    shown.add_column(column, justify='left' if column == 'ψ' else 'right')
  found = {peak[:3]: peak.num_bytes for peak in peaks}
  for what, name, chunk in found:
    if what == 'loss':
      cells = [name, 'all' if chunk is None else f'{chunk:,}']
      for part in ('loss', 'update'):
        num_bytes = found[part, name, chunk]
        share = num_bytes / found[part, name, None]
        cells += [f'{num_bytes / 1e6:,.0f} MB', f'{share:.0%}']
      shown.add_row(*cells)
  return shown


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog='scripts.loss_memory',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--chunks', type=int, nargs='+', default=[512, 256, 128])
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  arguments = parser.parse_args(argv)
  if min(arguments.chunks) < 1:
    parser.error('--chunks must be at least 1')
  peaks = list(
    measure(
      tuple(losses.DISTILL_LOSSES),
      arguments.chunks,
      arguments.dtype,
      Sizes(),
    )
  )
  Console().print(table(peaks))
  return 0


if __name__ == '__main__':
  sys.exit(main())
