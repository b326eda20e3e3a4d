"""The paper's experiments: the only code that knows method and data."""

import io
import sys

# What a command prints never decides whether it goes on: what the terminal, or
# the file in its place, cannot encode is replaced. `scripts` begin with this.
for _stream in (sys.stdout, sys.stderr):
  if isinstance(_stream, io.TextIOWrapper):
    _stream.reconfigure(errors='replace')
