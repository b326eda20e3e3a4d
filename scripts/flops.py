"""Counts the FLOPs of a function in its jaxpr, each loop as often as it runs.

Nothing in JAX 0.10 does so: XLA's cost analysis (`lower().cost_analysis()`) and
`jax.experimental.roofline` count a loop's body once, and the latter counts no
branches, and one of several `shard_map`s. Unrolled, an update of the paper's
language model would write out the loss 2,048 times.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from codistill.models.convolution import plain_convolutions

# One FLOP for each number of the result.
_BY_RESULT = (
  'abs add add_any atan2 ceil clamp cos div erf erf_inv exp exp2 expm1 floor '
  'integer_pow log log1p logistic max min mul neg nextafter pow rem round '
  'rsqrt sign sin sqrt square sub tan tanh'
)
# One FLOP for each number of the last operand: the terms of a sum, or the
# updates of a scatter.
_BY_OPERAND = (
  'argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce_max '
  'reduce_min reduce_prod reduce_sum scatter-add'
)


@dataclasses.dataclass(frozen=True)
class Flops:
  """Numbers of FLOPs, of two kinds.

  Attributes:
    products: of matrix products and convolutions, two for a multiplication and
      an addition; a device's peak rate is in these.
    elementwise: of other arithmetic with floats, one for each number, for a sum
      as for a logarithm.
  """

  products: int = 0
  elementwise: int = 0

  def __add__(self, other: Flops) -> Flops:
    """FLOPs of one after the other."""
    return Flops(
      self.products + other.products, self.elementwise + other.elementwise
    )

  def __mul__(self, times: int) -> Flops:
    """FLOPs of so many repetitions."""
    return Flops(times * self.products, times * self.elementwise)


def count(function: Callable[..., Any], *arguments: Any) -> Flops:
  """FLOPs of a call, on all devices together; computes nothing.

  Products with a convolution's padding, and with the zeros between dilated
  rows, do not count, so a convolution's two gradients take as many as it does.
  Of several branches the one with the most products counts. Work that the
  compiler would remove counts, too.

  Args:
    function: traceable.
    *arguments: trees of arrays, or of shapes (`jax.ShapeDtypeStruct`).

  Raises:
    ValueError: for a `while_loop` with FLOPs, since nothing tells how often it
      runs.
  """
  # Products over patches would count padding, too.
  with plain_convolutions():
    return count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def count_jaxpr(jaxpr: jex.Jaxpr) -> Flops:
  """FLOPs of a jaxpr; otherwise as `count`."""
  return sum(map(_count_equation, jaxpr.eqns), Flops())


def _count_equation(equation: jex.JaxprEqn) -> Flops:
  name, params = equation.primitive.name, equation.params
  inner = [count_jaxpr(jaxpr) for jaxpr in _jaxprs(params)]
  match name:
    case 'dot_general':
      return Flops(products=_product(equation))
    case 'conv_general_dilated':
      return Flops(products=_convolution(equation))
    case 'scan':
      return sum(inner, Flops()) * params['length']
    case 'while':
      if any(part != Flops() for part in inner):
        raise ValueError(
          'a while_loop with FLOPs does not say how often it runs; write it as '
          'a scan, or a fori_loop with constant bounds'
        )
      return Flops()
    case 'cond':
      return max(inner, key=lambda part: (part.products, part.elementwise))
    case 'shard_map':
      sizes = params['mesh'].shape
      devices = math.prod(sizes[axis] for axis in params['newly_manual_axes'])
      return sum(inner, Flops()) * devices
  if inner:
    return sum(inner, Flops())
  return Flops(elementwise=_elementwise(equation))


def _jaxprs(params: dict[str, Any]) -> Iterator[jex.Jaxpr]:
  """Jaxprs inside an operation, without a custom gradient's rules."""
  for value in params.values():
    for part in value if isinstance(value, (list, tuple)) else (value,):
      if isinstance(part, jex.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, jex.Jaxpr):
        yield part


def _product(equation: jex.JaxprEqn) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  shape = equation.invars[0].aval.shape
  depth = math.prod(shape[axis] for axis in contracted)
  return 2 * depth * equation.outvars[0].aval.size


def _convolution(equation: jex.JaxprEqn) -> int:
  params, numbers = equation.params, equation.params['dimension_numbers']
  inputs, kernel = (variable.aval.shape for variable in equation.invars)
  outputs = equation.outvars[0].aval.shape
  batch, features, *out_axes = numbers.out_spec
  # The depth of a group, if there are several.
  _, depth, *kernel_axes = numbers.rhs_spec
  pairs = math.prod(
    map(
      _pairs,
      (inputs[axis] for axis in numbers.lhs_spec[2:]),
      (kernel[axis] for axis in kernel_axes),
      (outputs[axis] for axis in out_axes),
      params['window_strides'],
      (before for before, _ in params['padding']),
      params['lhs_dilation'],
      params['rhs_dilation'],
    )
  )
  return 2 * outputs[batch] * outputs[features] * kernel[depth] * pairs


def _pairs(
  inputs: int,
  kernel: int,
  outputs: int,
  stride: int,
  padding: int,
  input_dilation: int,
  kernel_dilation: int,
) -> int:
  """Pairs of kernel places and inputs that meet along an axis."""
  place = (
    stride * np.arange(outputs)[:, None]
    + kernel_dilation * np.arange(kernel)
    - padding
  )
  index, between = np.divmod(place, input_dilation)
  return int(((between == 0) & (index >= 0) & (index < inputs)).sum())


def _elementwise(equation: jex.JaxprEqn) -> int:
  name = equation.primitive.name
  if name in _BY_RESULT.split():
    counted = equation.outvars[0].aval
  elif name in _BY_OPERAND.split():
    counted = equation.invars[-1].aval
  else:
    return 0
  return counted.size if jnp.issubdtype(counted.dtype, jnp.floating) else 0
