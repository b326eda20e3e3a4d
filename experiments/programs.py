"""Compiled programs, which the next process need not compile again."""

from __future__ import annotations

import os

import jax

from experiments.paths import ROOT

_FOLDER = 'jax_compilation_cache_dir'
_LEAST_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def keep_programs() -> None:
  """Keeps all of them, unless JAX's variables say where, or which."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update(_FOLDER, str(ROOT / '.cache/jax'))
  # By default JAX keeps those that take a second. Most take less, and together
  # as much.
  if _LEAST_SECONDS.upper() not in os.environ:
    jax.config.update(_LEAST_SECONDS, 0.0)
