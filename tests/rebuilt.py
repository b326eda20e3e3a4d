"""Runs that are rebuilt cheaply, or ruined on their way."""

import jax
import numpy as np
import pytest
from commands import build_cheaply

from experiments import stored


def cheap_builds():
  """A fixture that reuses the programs of earlier experiments like these."""

  def build(config, member, dataset):
    return build_cheaply(config, member, dataset=dataset)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stored, 'build', build)
    yield


def ruin(member):
  """Makes a member diverge, for `commands.on_row`."""

  def act(trainer):
    variables = trainer.members[member].state.variables
    params = jax.tree.map(lambda leaf: leaf * np.nan, variables['params'])
    variables['params'] = params

  return act
