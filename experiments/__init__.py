"""The paper's experiments: the only code that knows method and data."""

import io
import sys

# Characters that the terminal or file cannot encode are replaced, so that
# printing never stops a command. `scripts` begin with this.
for _stream in (sys.stdout, sys.stderr):
  if isinstance(_stream, io.TextIOWrapper):
    _stream.reconfigure(errors='replace')
