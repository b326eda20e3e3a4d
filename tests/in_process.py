"""Scripts that run in this process: what they build and complain of."""

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
