"""The display of a run at work."""

import types

import pytest
from stand_ins import console_of

from experiments import progress as progress_lib
from experiments.progress import RunProgress
from experiments.record import FIELDS


@pytest.fixture
def clock(monkeypatch):
  """A clock that moves when it is told to."""
  clock = types.SimpleNamespace(now=1000.0)
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: clock.now)
  return clock


def show(terminal, width=160, **changes):
  """A display, and its output."""
  console = console_of(width, force_terminal=terminal, color_system=None)
  arguments = {'members': (0, 1), 'num_steps': 2_000, 'start_step': 0}
  arguments |= {'unit': 'examples', **changes}
  return RunProgress(console, 'name:laptop', **arguments), console.file


def row(step, member, **changes):
  numbers = {'task_loss': 0.25, 'examples_per_second': 1234.0}
  one = {'step': step, 'member': member, 'kind': 'train', **numbers}
  return {**dict.fromkeys(FIELDS), **one, **changes}


TAUGHT = {'distill_loss': 0.5, 'peer_age': 7}


@pytest.mark.parametrize('terminal', [False, True])
def test_lines_and_bars_say_it_all(clock, terminal):
  display, out = show(terminal)
  with display:
    for step, later in ((1, 0), (1_001, 10)):
      clock.now += later
      for member in (0, 1):
        display.trained(row(step, member, **TAUGHT))
  text = out.getvalue()
  assert ('\x1b' in text) == terminal
  assert ('name:laptop: 2000 steps to go' in text) == (not terminal)
  assert ('step 1,001/2,000' in text) == (not terminal)
  assert terminal or text.count('\n') == 2
  numbers = 'task 0.2500, distill 0.5000, age 7, 1,234 ex/s'
  names = ('#1 ', '━') if terminal else (f'member 0: {numbers}', 'member 1: ')
  # The last frame.
  last = text[text.rindex('#0 ' if terminal else 'step ') :]
  # 1,000 steps took 10 seconds, and 999 are to come.
  for words in ('1,001/2,000', numbers, *names, ' 00:10 left'):
    assert words in last, words


def test_plain_lines_come_no_more_often_than_they_should(clock):
  display, out = show(terminal=False, plain_interval_seconds=5.0)
  with display:
    for step in range(1, 101):
      clock.now += 0.3
      display.trained(row(step, 0))
  # A line comes first, and then after each five of thirty seconds.
  assert 5 <= len(out.getvalue().splitlines()) <= 7


def test_bars_say_that_they_compile_and_where_they_begin():
  display, out = show(terminal=True, start_step=500)
  with display:
    pass
  assert 'compiling' in out.getvalue()
  assert '500/2,000' in out.getvalue()


def test_a_row_is_shown_as_it_is(clock):
  for changes, shown, *absent in (
    # Fields that do not apply are left out.
    (
      *({'examples_per_second': None}, 'task 0.2500'),
      *('distill', 'age', 'ex/s', 'left'),
    ),
    (
      {'left_out': {'1': 'absent', '2': 'old'}},
      'task 0.2500, without 1 (absent), 2 (old) |',
    ),
    ({'task_loss': float('nan')}, 'task nan'),
  ):
    display, out = show(terminal=False, plain_interval_seconds=0.0)
    with display:
      clock.now += 1
      display.trained(row(1, 0, **changes))
    line = out.getvalue().splitlines()[-1]
    assert shown in line
    assert not [word for word in absent if word in line]


def test_the_time_left_is_that_of_the_steps_since_the_start(clock):
  late = {'start_step': 1_000, 'plain_interval_seconds': 0.0}
  display, out = show(terminal=False, **late)
  with display:
    clock.now += 100  # Compiling does not count for the other steps.
    display.trained(row(1_001, 0))
    clock.now += 1
    display.trained(row(1_002, 0))
  assert '1000 steps to go' in out.getvalue()
  assert ' 16:38 left' in out.getvalue().splitlines()[-1]


@pytest.mark.parametrize('terminal', [False, True])
def test_evaluations_stay_on_the_screen(terminal):
  display, out = show(terminal)
  scores = {0: 0.5, 1: 0.25, 'ensemble': 0.98765}
  with display:
    display.evaluated(
      [row(1_000, m, accuracy=a, task_loss=0.125) for m, a in scores.items()]
    )
    display.say('/runs/[a]/[/b]')
  assert (
    'step 1,000  held out: member 0 0.1250 (50.00 %), '
    'member 1 0.1250 (25.00 %), ensemble 0.1250 (98.77 %)'
  ) in out.getvalue()
  # Brackets in a line stay brackets.
  assert terminal or out.getvalue().splitlines()[-1] == '/runs/[a]/[/b]'


def test_a_line_fits_a_terminal_of_80_columns(clock):
  display, out = show(terminal=True, width=80, members=(0,), num_steps=14_100)
  numbers = {**TAUGHT, 'peer_age': 249, 'examples_per_second': 16_384.0}
  with display:
    for step in (1, 13_000):
      clock.now += 10_000
      display.trained(row(step, 0, **numbers))
  assert '13,000/14,100' in out.getvalue()
  last = out.getvalue().rpartition('#0 ')[2]
  assert ' left' in last
  assert '…' not in last
