"""Hashed logistic regression of clicks, a baseline for the DNN (§3.5).

The paper has none. Its features are those of `codistill.models.click_dnn`: it
has a weight for each hashed category, each integer's logarithm and each flag of
a missing one. All weights begin at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from codistill.models.click_dnn import (
  INPUT_DTYPES,
  Inputs,
  check_clicks,
  look_up,
)
from codistill.models.model import Head, Model, Prediction, make_feedforward


class ClickRegression(nn.Module):
  """Integers, flags and the sum of the categories' weights: features.

  Attributes:
    table_sizes: number of weights of each categorical field.
  """

  table_sizes: Sequence[int]
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, inputs: Inputs, train: bool) -> Prediction:
    """Predicts from `integers`, `missing` and `categories`, [batch, fields]."""
    del train

    def zeros(name, *shape):
      return self.param(name, nn.initializers.zeros, shape, self.param_dtype)

    table = zeros('categories', sum(self.table_sizes), 1)
    weights = look_up(table, inputs['categories'], self.table_sizes)
    features = jnp.concatenate(
      [inputs['integers'], inputs['missing'], weights.sum(axis=1)],
      axis=-1,
      dtype=self.dtype,
    )
    kernel = zeros('kernel', features.shape[-1] - 1, 1)
    # The last feature is weighted already.
    kernel = jnp.concatenate([kernel, jnp.ones_like(kernel[:1])])
    bias = zeros('bias', 1)
    return Prediction(
      features,
      Head(
        jnp.concatenate([jnp.zeros_like(kernel), kernel], axis=-1),
        jnp.concatenate([jnp.zeros_like(bias), bias]),
      ),
    )


def make_click_regression(
  *,
  input_shape: dict[str, tuple[int, ...]],
  num_classes: int,
  table_sizes: Sequence[int],
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the regression.

  Args:
    input_shape: as for `make_click_dnn`.
    num_classes: 2: no click, click.
    table_sizes: number of weights of each categorical field.
    dtype: of the computation, e.g. 'float32'.
    param_dtype: of the parameters, e.g. 'float32'.

  Returns:
    The model. Its logits are 0 and z, the log odds of a click.

  Raises:
    ValueError: if there are not two classes, or not a table for each field.
  """
  check_clicks(input_shape, num_classes, table_sizes)
  module = ClickRegression(
    tuple(table_sizes), jnp.dtype(dtype), jnp.dtype(param_dtype)
  )
  return make_feedforward(module, input_shape, INPUT_DTYPES)
