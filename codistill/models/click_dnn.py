"""The click-through network: embeddings and a ReLU DNN, logistic output (§3.5).

The paper gives the hidden layers, 2560, 1024 and 256, and the logistic output,
but not the form of the inputs. Here each categorical field has a table of
embeddings, and the integers are logarithms, each with a flag for a missing one.

A logistic output is a softmax over the logits 0 and z. So φ, ψ and averages of
peers for two classes also serve for clicks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from codistill.models.model import Head, Model, Prediction, make_feedforward
from codistill.models.relu import relu

Inputs = dict[str, Array]
INPUT_DTYPES = {
  'integers': jnp.float32,
  'missing': jnp.float32,
  'categories': jnp.int32,
}


class ClickDNN(nn.Module):
  """Embeddings, integers and flags side by side, ReLU layers: features.

  Attributes:
    table_sizes: number of embeddings of each categorical field.
    embedding_size: numbers of an embedding.
    hidden: width of each layer.
  """

  table_sizes: Sequence[int]
  embedding_size: int
  hidden: Sequence[int]
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, inputs: Inputs, train: bool) -> Prediction:
    """Predicts from `integers`, `missing` and `categories`, [batch, fields]."""
    del train
    table = self.param(
      'embeddings',
      nn.initializers.normal(self.embedding_size**-0.5),
      (sum(self.table_sizes), self.embedding_size),
      self.param_dtype,
    )
    embedded = look_up(table, inputs['categories'], self.table_sizes)
    features = jnp.concatenate(
      [
        inputs['integers'],
        inputs['missing'],
        embedded.reshape(embedded.shape[0], -1),
      ],
      axis=-1,
      dtype=self.dtype,
    )
    for width in self.hidden:
      features = relu(
        nn.Dense(
          width,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          kernel_init=nn.initializers.he_normal(),
        )(features)
      )
    head = _LogisticHead(self.param_dtype, name='head')
    return Prediction(features, head(features))


def look_up(
  table: Float[Array | np.ndarray, 'rows size'],
  categories: Int[Array, 'batch fields'],
  table_sizes: Sequence[int],
) -> Float[Array, 'batch fields size']:
  """Looks up each category's row in its field's table.

  Args:
    table: all tables, one below another: this needs one gather, and one scatter
      for the gradient.
    categories: rows of the fields' own tables.
    table_sizes: number of rows of each.
  """
  starts = [0, *itertools.accumulate(table_sizes[:-1])]
  # Weights may be arrays of the host.
  return jnp.asarray(table)[categories + jnp.array(starts, jnp.int32)]


class _LogisticHead(nn.Module):
  """Parameters of z, and the head of the logits 0 and z."""

  param_dtype: Any

  @nn.compact
  def __call__(self, features: Array) -> Head:
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (features.shape[-1], 1),
      self.param_dtype,
    )
    bias = self.param('bias', nn.initializers.zeros, (1,), self.param_dtype)
    return Head(
      jnp.concatenate([jnp.zeros_like(kernel), kernel], axis=-1),
      jnp.concatenate([jnp.zeros_like(bias), bias], axis=-1),
    )


def make_click_dnn(
  *,
  input_shape: dict[str, tuple[int, ...]],
  num_classes: int,
  table_sizes: Sequence[int],
  embedding_size: int,
  hidden: Sequence[int],
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the network for click logs.

  Args:
    input_shape: shapes of one example: `integers`, `missing` and `categories`,
      a number of fields each.
    num_classes: 2: no click, click.
    table_sizes: number of embeddings of each categorical field.
    embedding_size: numbers of an embedding; not stated in the paper.
    hidden: width of each layer; (2560, 1024, 256) in the paper.
    dtype: of the computation, e.g. 'bfloat16'.
    param_dtype: of the parameters, e.g. 'float32'.

  Returns:
    The model. Its logits are 0 and z, the log odds of a click.

  Raises:
    ValueError: if there are not two classes, or not a table for each field.
  """
  check_clicks(input_shape, num_classes, table_sizes)
  module = ClickDNN(
    tuple(table_sizes),
    embedding_size,
    tuple(hidden),
    jnp.dtype(dtype),
    jnp.dtype(param_dtype),
  )
  return make_feedforward(module, input_shape, INPUT_DTYPES)


def check_clicks(
  input_shape: dict[str, tuple[int, ...]],
  num_classes: int,
  table_sizes: Sequence[int],
) -> None:
  """Raises ValueError unless there are two classes, and a table for a field."""
  fields = input_shape['categories'][0]
  if num_classes != 2 or len(table_sizes) != fields:
    raise ValueError(
      f'click models need 2 classes and {fields} tables, one for each '
      f'categorical field; got {num_classes} and {len(table_sizes)}'
    )
