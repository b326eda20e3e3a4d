"""The rectifier of all networks here."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Returns max(x, 0), and NaN for NaN.

  XLA's fused maximum on CPUs turns NaN into 0. A network with NaN weights would
  then have a finite loss, which hides that it has diverged.
  """
  return jnp.where(x <= 0, 0, x)
