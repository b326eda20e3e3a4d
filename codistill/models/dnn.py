"""The ReLU network: fully connected layers, as in the Criteo study (§3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from codistill.models.model import (
  LinearHead,
  Model,
  Prediction,
  make_feedforward,
)
from codistill.models.relu import relu


class DNN(nn.Module):
  """Hidden ReLU layers over the flattened example, then a linear head."""

  hidden: Sequence[int]
  num_classes: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, inputs: Array, train: bool) -> Prediction:
    """Predicts from inputs of shape [batch, …]."""
    features = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
    for width in self.hidden:
      features = relu(
        nn.Dense(
          width,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          kernel_init=nn.initializers.he_normal(),
        )(features)
      )
    head = LinearHead(
      self.num_classes,
      self.param_dtype,
      nn.initializers.lecun_normal(),
      name='head',
    )
    return Prediction(features, head(features))


def make_dnn(
  *,
  input_shape: tuple[int, ...],
  num_classes: int,
  hidden: Sequence[int],
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the ReLU DNN.

  Args:
    input_shape: of one example.
    num_classes: number of logits.
    hidden: width of each hidden layer; the paper's is (2560, 1024, 256).
    dtype: of the computation, e.g. 'bfloat16'.
    param_dtype: of the parameters, e.g. 'float32'.

  Returns:
    The model.
  """
  module = DNN(
    tuple(hidden), num_classes, jnp.dtype(dtype), jnp.dtype(param_dtype)
  )
  return make_feedforward(module, input_shape)
