"""Makes a copy of one member that can be served without this code.

  python -m scripts.export WORKDIR --member=I --out=DIR

Of the member's newest checkpoint, in a DIR that must be empty or not there:

  variables/    parameters and batch statistics, an Orbax checkpoint
  predict.bin   (variables, images [batch, …]) → probabilities, by jax.export,
                for any batch size, on CPU, CUDA and TPU
  config.json   the run's config, the member, its step, the commit
  README.md     how to load it, without this project

A DIR appears when all of it is there. Neither the data nor the device of the
run is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.export

from codistill.checkpoint import save_variables
from codistill.models import Model
from experiments.errors import UserError
from experiments.paths import local_path
from experiments.runs import (
  Run,
  commit_of,
  label_of,
  read_runs,
  some_run,
)
from experiments.stored import Stored, load_members, rebuild
from scripts.evaluate import prepare_jax

PLATFORMS = ('cpu', 'cuda', 'tpu')
# flatbuffers: jax.export serialises with it, and jax does not require it.
PACKAGES = ('jax', 'orbax-checkpoint', 'flatbuffers')
PyTree = Any

README = """\
# Member {member} of {label}, after {step:,} updates

Needs Python and these packages, by which it was written:

```
pip install {packages}
```

In this folder:

```python
import pathlib
import jax.export
from orbax.checkpoint import v1 as ocp

exported = jax.export.deserialize(pathlib.Path('predict.bin').read_bytes())
variables = ocp.load(pathlib.Path('variables').absolute())
probabilities = jax.jit(exported.call)(variables, images)
```

- `images`: uint8 [batch, {shape}], pixels as they are stored; any batch size.
  They are normalised inside, by a mean of {mean} and a deviation of {std} of
  pixels scaled to [0, 1].
- `probabilities`: float32 [batch, {num_classes}].
- Runs on: {platforms}.
- `config.json`: the config that it was trained with, and by which code.
"""


def export_predict(
  model: Model, variables: PyTree, input_shape: Sequence[int]
) -> jax.export.Exported:
  """F as probabilities, lowered for every platform that it can be lowered for.

  Args:
    model: F.
    variables: of a member, or their shapes.
    input_shape: of one example.

  Returns:
    (variables, inputs [batch, *input_shape] uint8) → probabilities
    [batch, classes], with a symbolic batch.
  """

  @jax.jit
  def predict(variables, inputs):
    memory = model.memory(inputs.shape[0])
    prediction, _ = model.predict(variables, inputs, memory)
    return jax.nn.softmax(prediction.logits)

  [batch] = jax.export.symbolic_shape('batch')
  arguments = (
    # Without the places that arrays have here.
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables
    ),
    jax.ShapeDtypeStruct((batch, *input_shape), 'uint8'),
  )

  def lower(platforms: Sequence[str]) -> jax.export.Exported:
    return jax.export.export(predict, platforms=platforms)(*arguments)

  def lowers(platform: str) -> bool:
    try:
      lower([platform])
    except Exception:  # Each primitive has its own.
      return False
    return True

  try:
    return lower(PLATFORMS)
  except Exception:
    # A network may have a kernel that only some platforms know.
    able = [platform for platform in PLATFORMS if lowers(platform)]
    if not able:
      raise
    return lower(able)


def write_export(
  folder: pathlib.Path,
  run: Run,
  member: int,
  stored: Stored,
  exported: jax.export.Exported,
) -> None:
  """Writes the four into a folder that is there and empty."""
  save_variables(folder / 'variables', stored.variables)
  (folder / 'predict.bin').write_bytes(exported.serialize())
  about = {
    'experiment': run['experiment'],
    'variant': run['variant'],
    'member': member,
    'step': stored.step,
    'commit': commit_of(run),
    'dirty': run.get('dirty'),
    'config': run['config'],
  }
  (folder / 'config.json').write_text(
    json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
  )
  data = run['config']['data']
  text = README.format(
    member=member,
    label=label_of(run),
    step=stored.step,
    packages=' '.join(f'{name}=={version(name)}' for name in PACKAGES),
    shape=', '.join(map(str, data['image_shape'])),
    mean=tuple(data['mean']),
    std=tuple(data['std']),
    num_classes=data['num_classes'],
    platforms=', '.join(exported.platforms),
  )
  (folder / 'README.md').write_text(text, encoding='utf-8')


@contextlib.contextmanager
def appearing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that gets its name when the block ends well; else it goes.

  Yields:
    A hidden folder beside `out`. A kill leaves it; it looks like what it is.

  Raises:
    UserError: if something has been put into `out` meanwhile.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  hidden = out.with_name(f'.{out.name}.unfinished.{uuid.uuid4().hex[:8]}')
  hidden.mkdir()
  try:
    yield hidden
    check_empty(out)
    hidden.replace(out)
  finally:
    shutil.rmtree(hidden, ignore_errors=True)


def check_empty(out: pathlib.Path) -> None:
  """Refuses anything but an empty folder, or none, with a `UserError`."""
  for path in (out, *out.parents):
    if os.path.lexists(path):
      if not path.is_dir() or (path == out and path.is_symlink()):
        raise UserError(f'{path} is no folder; choose another --out')
      break
  if out.exists() and any(out.iterdir()):
    raise UserError(f'{out} is not empty; choose another --out, or remove it')


def check_packages() -> None:
  """Refuses to begin without a package that is needed at the end."""
  for name in PACKAGES:
    try:
      version(name)
    except PackageNotFoundError as error:
      raise UserError(
        f'the package {name} is not installed; pip install {name}'
      ) from error


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
  """Does what the arguments say."""
  workdir, member = arguments.workdir, arguments.member
  out = arguments.out
  check_empty(out)
  check_packages()
  runs = read_runs(workdir)
  if some_run(runs)['config']['data'].get('kind') == 'text':
    raise UserError(
      f'{workdir} is a language model, whose memory whoever serves it would '
      'have to carry; only image classifiers are exported'
    )
  experiment = rebuild(runs, with_data=False)
  stored, missing = load_members(workdir, runs, experiment, [member], say)
  if missing:
    raise UserError(f'nothing to export: {missing[member]}')
  exported = export_predict(
    experiment.model,
    stored[member].variables,
    experiment.task.input_shape,
  )
  with appearing(out) as folder:
    write_export(
      folder,
      runs.get(member) or some_run(runs),
      member,
      stored[member],
      exported,
    )
  say(
    f'member {member} after {stored[member].step:,} updates, for '
    f'{", ".join(exported.platforms)}: {arguments.out}'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Makes the copy; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.export',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=local_path)
  parser.add_argument('--member', metavar='I', type=int, required=True)
  parser.add_argument('--out', metavar='DIR', type=local_path, required=True)
  arguments = parser.parse_args(argv)
  prepare_jax()
  try:
    run(arguments, print)
  except (UserError, OSError) as error:
    print(f'scripts.export: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
