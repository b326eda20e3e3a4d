"""Assigns devices to members' processes; does not import jax, which is slow."""

from __future__ import annotations

import collections
import importlib.util
import itertools
import re
import subprocess
from collections.abc import Mapping, Sequence

from experiments.errors import UserError

_PATIENCE_S = 60
# What makes jax use NVIDIA GPUs.
_PLUGINS = ('jax_cuda13_plugin', 'jax_cuda12_plugin')
# The part of a GPU's memory that all processes on it share.
_MEMORY = 0.9


def nvidia_gpus(environment: Mapping[str, str]) -> list[str]:
  """The GPUs that jax would find, as CUDA_VISIBLE_DEVICES names them.

  Args:
    environment: of this process; CUDA_VISIBLE_DEVICES and JAX_PLATFORMS in it
      leave out GPUs.
  """
  platforms = environment.get('JAX_PLATFORMS', '').split(',')
  if any(platforms) and not {'cuda', 'gpu'} & set(platforms):
    return []
  if not any(map(importlib.util.find_spec, _PLUGINS)):
    return []  # The jax that is installed uses CPUs only.
  try:
    listing = subprocess.run(
      ['nvidia-smi', '-L'],
      check=True,
      capture_output=True,
      text=True,
      timeout=_PATIENCE_S,
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return []  # No driver, or one that does not work.
  found = re.findall(r'^GPU (\d+):', listing, re.MULTILINE)
  visible = environment.get('CUDA_VISIBLE_DEVICES')
  if visible is None:
    return found
  # Like CUDA, stop at the first unknown name.
  return list(
    itertools.takewhile(
      lambda name: name in found or name.startswith(('GPU-', 'MIG-')),
      (name.strip() for name in visible.split(',')),
    )
  )


def assign(
  gpus: Sequence[str],
  members: int,
  per_member: int | None,
  processes: int,
  environment: Mapping[str, str],
) -> list[list[dict[str, str]]]:
  """Shares out devices, as variables for the environment of each process.

  Args:
    gpus: to share out; without any, CPU devices are made.
    members: how many.
    per_member: devices of each; by default an equal part of the GPUs, one at
      least, or jax's default for the CPU.
    processes: of each member, which divide its devices.
    environment: of this process; a share of memory set there stays.

  Returns:
    The variables, by member and process.

  Raises:
    UserError: if there are too few devices, or they cannot be divided.
  """
  if per_member is not None and per_member % processes:
    raise UserError(
      f'--devices-per-member={per_member} cannot be divided among '
      f'{processes} processes; choose a multiple of {processes}'
    )
  if not gpus:
    own = {}
    if per_member is not None:
      own['JAX_NUM_CPU_DEVICES'] = str(per_member // processes)
    return [[dict(own) for _ in range(processes)] for _ in range(members)]
  each = max(len(gpus) // members // processes, 1)
  if per_member is not None:
    each = per_member // processes
  count = each * processes
  if count > len(gpus):
    raise UserError(
      f'a member would need {count} GPUs, but there are {len(gpus)}; choose '
      'fewer --devices-per-member or --processes-per-member'
    )
  # In turn, so that no GPU has two processes more than another.
  turns = itertools.cycle(gpus)
  shares = [
    [list(itertools.islice(turns, each)) for _ in range(processes)]
    for _ in range(members)
  ]
  load = collections.Counter(
    gpu for member in shares for share in member for gpu in share
  )
  return [
    [
      {'CUDA_VISIBLE_DEVICES': ','.join(share)}
      | _memory(max(load[gpu] for gpu in share), environment)
      for share in member
    ]
    for member in shares
  ]


def _memory(sharers: int, environment: Mapping[str, str]) -> dict[str, str]:
  key = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  if sharers == 1 or key in environment:
    return {}
  return {key: f'{_MEMORY / sharers:.3f}'}


def describe(
  gpus: Sequence[str], assigned: Sequence[Sequence[Mapping[str, str]]]
) -> str:
  """Says what `assign` did, such as 'on CPU' or 'with 2 of 8 GPUs each'."""
  first = assigned[0]
  if not gpus:
    made = [int(own.get('JAX_NUM_CPU_DEVICES', 0)) for own in first]
    return f'with {sum(made)} CPU devices each' if all(made) else 'on CPU'
  names = [
    gpu
    for member in assigned
    for own in member
    for gpu in own['CUDA_VISIBLE_DEVICES'].split(',')
  ]
  shared = ', shared' if len(set(names)) < len(names) else ''
  return f'with {len(names) // len(assigned)} of {len(gpus)} GPUs each{shared}'
