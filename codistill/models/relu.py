"""The rectifier of every network here."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """max(x, 0), and NaN where x is.

  XLA's maximum on CPUs gives 0 there once it is fused: a network whose weights
  are no numbers any more then has a finite loss, and nobody sees that it has
  diverged.
  """
  return jnp.where(x <= 0, 0, x)
