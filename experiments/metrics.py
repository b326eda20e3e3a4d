"""Metrics of one's own, which a config names: `eval_metrics`."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from codistill.evaluate import Metric
from experiments.errors import UserError
from experiments.record import is_own_metric
from experiments.tasks import Task


def load(specs: Sequence[str], task: Task) -> dict[str, Metric]:
  """The functions by name, which have been tried on shapes alone.

  Args:
    specs: of each 'module:function'.
    task: whose labels they will see.

  Raises:
    UserError: for one that cannot be imported, or that does not give a number
      for each label.
  """
  found: dict[str, Metric] = {}
  for spec in specs:
    module, _, name = str(spec).partition(':')
    if name in found or not is_own_metric(name):
      raise UserError(
        f'eval_metrics has {spec!r}, and rows have another {name!r}; call the '
        'function something else'
      )
    found[name] = _load(spec, module, name)
    labels = task.abstract_batch(5)['labels'].shape
    # A chunk of text has one axis instead of two.
    for shape in (labels, (9,)):
      _try(spec, found[name], shape, task)
  return found


def files(specs: Sequence[str]) -> list[pathlib.Path]:
  """Where functions are written; without those that cannot be found."""
  found = []
  for spec in specs:
    # To find a module is to run its package, whose code may do anything.
    with contextlib.suppress(Exception):
      module = importlib.util.find_spec(spec.partition(':')[0])
      if module.has_location:
        found.append(pathlib.Path(module.origin))
  return found


def _load(spec: str, module: str, name: str) -> Any:
  if not module or not name.isidentifier():
    raise UserError(
      f"eval_metrics has {spec!r}; name a function as 'module:function'"
    )
  try:
    return getattr(importlib.import_module(module), name)
  # Its code may do anything.
  except Exception as error:
    raise UserError(
      f'eval_metrics has {spec!r}, which cannot be imported ({error}); start '
      'the run where Python finds the module, or put its folder into PYTHONPATH'
    ) from error


def _try(spec: str, metric: Any, shape: tuple[int, ...], task: Task) -> None:
  labels = jax.ShapeDtypeStruct(shape, jnp.int32)
  log_probs = jax.ShapeDtypeStruct((*shape, task.num_classes), jnp.float32)
  says = 'takes (labels, log of the predictions) and gives a number a label'
  try:
    values = jax.eval_shape(metric, labels, log_probs)
    given = getattr(values, 'shape', type(values).__name__)
  except Exception as error:
    raise UserError(
      f'eval_metrics has {spec!r}, which fails '
      f'({" ".join(str(error).split())[:200]}); it has to be a function of '
      f'jax.numpy that {says}'
    ) from error
  if given != shape:
    raise UserError(
      f'eval_metrics has {spec!r}, which gives {given} for labels of shape '
      f'{shape}; it has to be a function that {says}'
    )
