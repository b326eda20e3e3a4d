"""Runs scripts in this process, and reads their errors."""


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
