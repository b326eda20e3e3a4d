"""Stand-ins for runs, members, a terminal and a user's signals.

A word says what a process does: `command(folder, word)` is a run of a sweep,
`command(folder, word, member, process)` a process of a member of a launch.
"""

import contextlib
import io
import json
import signal
import sys
import textwrap
import time

from rich.console import Console

from codistill.exchange.folder.lease import Lease

_PROGRAM = textwrap.dedent("""
  import json, os, pathlib, signal, sys, time

  folder, word, member, process = pathlib.Path(sys.argv[1]), *sys.argv[2:]
  home, name, suffix = folder, f'{member}.{process}', f'-{member}'
  if not member:
    home, name, suffix = folder.parent.parent, folder.parent.name, ''
  with open(home / 'starts', 'a') as starts:
    starts.write(f'{name}\\n')
  lives = (home / 'starts').read_text().split().count(name)

  def write(status, step=0, **more):
    config = {'num_steps': 10, 'codistill': {'members': 2, 'exchange': 'none'}}
    run = {'experiment': 'a', 'variant': 'b', 'status': status, 'seed': 0}
    run |= {'member': int(member) if member else None, 'overrides': {}, **more}
    run |= {'commit': None, 'dirty': None, 'started': 'now'}
    run |= {'config_hash': 'alike', 'config': config}
    with open(folder / f'rows{suffix}.jsonl', 'a') as rows:
      for step in range(step + 1):
        row = {'member': int(member or 0), 'kind': 'train', 'step': step}
        row |= {'task_loss': 0.5, 'seconds': step, 'examples_seen': 4 * step}
        rows.write(json.dumps(row) + '\\n')
    # Last, as a run does: what is done has all its rows.
    new = folder / f'new-{name}'
    new.write_text(json.dumps(run))
    new.replace(folder / f'run{suffix}.json')

  def wait_for(name):
    while not (folder / name).exists():
      time.sleep(0.01)

  if word in ('work', 'slow'):
    from codistill.exchange.folder.lease import Lease
    path = folder / f'lease{suffix}.json'
    Lease(path, timeout_s=60.0, what='').acquire()
    write('running')
  if word == 'die beside':
    # Otherwise it would kill the other before that has noted its start.
    starts = folder / 'starts'
    while starts.read_text().split().count(f'{member}.0') < lives:
      time.sleep(0.01)
    word = 'die'
  if word == 'die' or word == 'die once' and lives == 1:
    print('experiments.run: the', 'first' if lives == 1 else 'last', 'word')
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
  if word == 'fail':
    sys.exit('Traceback …\\nValueError: [/bold]\\n------\\nsome advice')
  if word == 'diverge':
    write('diverged', 4, diverged={member: {'step': 4}})
    sys.exit('experiments.run: try a lower learning rate')
  if word == 'refuse' or word == 'refuse late' and lives == 2:
    print('experiments.run: it is too hot')
    sys.exit(2)
  if word == 'refuse late':
    wait_for('moved')
    sys.exit(3)
  if word == 'work':
    wait_for('seen')
    write('running', 4)
    wait_for('enough')
  if word == 'slow':
    running = home / 'running'
    running.mkdir(exist_ok=True)
    (running / name).touch()
    (home / f'began-{name}').touch()
    # As many as are to run at once have begun, however slow the machine is.
    together = home / 'together'
    least = int(together.read_text()) if together.exists() else 1
    while len(list(home.glob('began-*'))) < least:
      time.sleep(0.01)
    (folder / 'most').write_text(str(len(list(running.iterdir()))))
    time.sleep(0.3)
    (running / name).unlink()
  if word == 'terminated':
    sys.exit(143)
  if word == 'stubborn':
    told = folder / f'told{suffix}'
    signal.signal(signal.SIGTERM, lambda *_: told.touch())
  if word == 'wait':
    def stop(*_):
      write('interrupted', 4)
      sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
  if word in ('wait', 'stubborn', 'hang'):
    write('running')
    (folder / f'waits{suffix}').touch()
    (folder / f'waits-{name}').touch()
    time.sleep(60)
  write('done', 10)
""")


def command(folder, word, member='', process=''):
  words = (str(folder), word, str(member), str(process))
  return (sys.executable, '-c', _PROGRAM, *words)


def until(condition, process=None, seconds=240, what='it'):
  """Waits for a condition, and no longer than the process for it lives."""
  end = time.monotonic() + seconds
  while not condition():
    assert process is None or process.poll() is None, process.communicate()
    assert time.monotonic() < end, f'{what} did not happen'
    time.sleep(0.02)


class Signals(list):
  """SIGINT, then SIGTERM, each when the files that it waits for exist."""

  def __init__(self, *waits):
    self._due = [*zip(waits, (signal.SIGINT, signal.SIGTERM), strict=False)]

  def __len__(self):
    while self._due and all(path.exists() for path in self._due[0][0]):
      self.append(self._due.pop(0)[1])
    return super().__len__()


def console_of(width=200, **options):
  return Console(record=True, width=width, file=io.StringIO(), **options)


@contextlib.contextmanager
def lease(path, **changes):
  """A lease of this process, or of the holder in `changes`; then freed."""
  held = Lease(path, timeout_s=60.0, what='here')
  held.acquire()
  try:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
    yield content
  finally:
    held.release()
