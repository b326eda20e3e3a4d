"""What scripts complain of, which run in this process."""


def complaint(capsys, script, *arguments, status=1):
  """The one sentence of a command that fails and shows nothing else."""
  capsys.readouterr()
  assert script.main([str(argument) for argument in arguments]) == status
  captured = capsys.readouterr()
  assert captured.out == ''
  [line] = captured.err.splitlines()
  assert line.startswith(f'{script.__name__.removesuffix(".__main__")}: ')
  return line
