"""Writes docs/api.md: the names that `import codistill` offers.

  python -m scripts.api

Signatures are taken from the source, because those of imported objects read
differently on other versions of Python.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

import codistill

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'docs/api.md'
INTRODUCTION = """\
# What `import codistill` offers

These names are what [a training loop of your own](own_loop.md) needs. The
docstrings in the linked files say what each argument means. The command
`python -m scripts.api` writes this page.
"""
Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
  """The text of docs/api.md."""
  return '\n'.join([INTRODUCTION, *map(section, codistill.__all__)])


def section(name: str) -> str:
  """A name's heading, the first line of its docstring, how it is called."""
  module = sys.modules[getattr(codistill, name).__module__]
  path = pathlib.Path(module.__file__)
  body = ast.parse(path.read_text(encoding='utf-8')).body
  [node] = [one for one in body if getattr(one, 'name', None) == name]
  path = path.relative_to(ROOT)
  calls = '\n'.join(calls_of(node))
  return (
    f'## {name}\n\n{first_line(node)} ([{path}](../{path}))\n\n'
    f'```python\n{calls}\n```\n'
  )


def calls_of(node: Definition) -> Iterator[str]:
  """How it is called; or, of a protocol, how each of its methods is."""
  functions = [one for one in node.body if isinstance(one, ast.FunctionDef)]
  fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
  init = [one for one in functions if one.name == '__init__']
  if isinstance(node, ast.FunctionDef):
    yield call(node.name, node)
  elif 'Protocol' in map(ast.unparse, node.bases):
    for one in functions:
      if not one.name.startswith('_'):
        yield f'# {first_line(one)}\n{call(one.name, one)}'
  else:
    yield call(node.name, *(init or fields))


def call(name: str, *parts: ast.FunctionDef | ast.AnnAssign) -> str:
  """A call by name; a line for each argument if they are many.

  Args:
    name: of what is called.
    *parts: a function, or the fields of a class.
  """
  texts = [ast.unparse(getattr(part, 'args', part)) for part in parts]
  text = re.sub(r'^self(, )?', '', ', '.join(texts))
  text = re.sub(r'(\S)=(\S)', r'\1 = \2', text)
  returns = getattr(parts[0], 'returns', None)
  end = ')' if name[0].isupper() else f') -> {ast.unparse(returns)}'
  if len(name + text + end) < 80:
    return f'{name}({text}{end}'
  # At commas outside of brackets.
  lines = re.split(r', (?![^\[]*\])', text)
  return '\n'.join([f'{name}(', *(f'  {line},' for line in lines), end])


def first_line(node: Definition) -> str:
  """Of its docstring."""
  return ast.get_docstring(node).partition('\n')[0]


def main() -> int:
  """Writes the page."""
  PAGE.write_text(page(), encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())
