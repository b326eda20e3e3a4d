"""Scripts and runs in this process: how they go wrong, and what they say."""

import jax
import numpy as np
import pytest
from commands import build_cheaply

from experiments import stored


def cheap_builds():
  """A fixture: programs are those of earlier experiments that are alike."""

  def build(config, member, dataset):
    return build_cheaply(config, member, dataset=dataset)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stored, 'build', build)
    yield


def ruin(member):
  """What a trainer does to a member that diverges, for `commands.on_row`."""

  def act(trainer):
    variables = trainer.members[member].state.variables
    params = jax.tree.map(lambda leaf: leaf * np.nan, variables['params'])
    variables['params'] = params

  return act


def run_script(script, *arguments):
  return script.main([str(argument) for argument in arguments])


def complaint(capsys, script, *arguments, status=1):
  """The one sentence of a command that fails and shows nothing else."""
  capsys.readouterr()
  assert run_script(script, *arguments) == status
  captured = capsys.readouterr()
  assert captured.out == ''
  [line] = captured.err.splitlines()
  assert line.startswith(f'{script.__name__.removesuffix(".__main__")}: ')
  return line
