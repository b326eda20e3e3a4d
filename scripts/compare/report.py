"""A comparison as one HTML file that needs no other: to be sent to somebody.

Without scripts, fonts or anything else from elsewhere, and without this
machine's paths.
"""

from __future__ import annotations

import collections
import html
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

from experiments import results
from experiments.results import Result
from experiments.runs import label_of
from scripts.compare import draw
from scripts.compare.measures import Arm, Metric, Table
from scripts.compare.points import Comparison, Point

# What a command cannot say: paths and what is known of their data.
_NO_KEYS = ('data.fingerprint', 'codistill.frozen_dir')
_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1b1b; --page: #fff;
  --line: #d8d8d8; --soft: #5a5a5a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #161616;
  --line: #3c3c3c; --soft: #a8a8a8; } }
body { color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 62rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: clamp(1.1rem, 5vw, 1.5rem); overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.pictures svg { flex: 1 1 21rem; min-width: 0; max-width: 100%; width: 21rem;
  height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: right;
  white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th:last-child, td:last-child,
.words th, .words td { text-align: left; }
td:first-child { white-space: normal; min-width: 9rem; }
.ends td:first-child { padding-left: 1.9rem; }
.line { display: inline-block; width: 1.4rem; margin: 0 0.5rem 0 -1.9rem;
  vertical-align: middle; }
.open { font-weight: bold; }
p.note { color: var(--soft); font-size: 0.875rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8125rem;
  margin: 0.25rem 0 1rem; }
"""


def save(
  compared: Comparison,
  arms: Sequence[Arm],
  metrics: Sequence[Metric],
  baseline: Point,
  table: Table,
  path: pathlib.Path,
) -> None:
  """Writes the page.

  Args:
    compared: what there is.
    arms: what is shown of it.
    metrics: a picture of curves and one of ends each.
    baseline: whose end is marked.
    table: the numbers.
    path: where to.

  Raises:
    OSError: if it cannot be written.
  """
  labels = {
    label_of(run.run): None for point in compared.points for run in point.runs
  }
  title = compared.title or ', '.join(labels)
  looks = draw.looks(arms)
  pictures = ''.join(
    _inline(draw.svg(panel, arms, metric, baseline), f'{place}-{number}', text)
    for place, metric in enumerate(metrics)
    for number, (panel, text) in enumerate(
      zip(
        draw.PANELS,
        (f'{metric.label} over steps', f'{metric.label} at the end'),
        strict=True,
      )
    )
  )
  light, dark = _variables({look.color for look in looks})
  body = '\n'.join(
    (
      f'<h1>{_escape(title)}</h1>',
      f'<p>{_counts(compared)}</p>',
      f'<div class="pictures">{_themed(pictures, looks)}</div>',
      f'<p class="note">{_escape(draw.seeds_note(arms, metrics[0]))}</p>',
      '<h2>The end of training</h2>',
      _ends(looks, table),
      f'<p class="note">{_escape(table.caption)}</p>',
      '<h2>Commands</h2>',
      '<p class="note">Each makes the first seed of its point. For another '
      'one change <code>--config.seed</code> and the folder.</p>',
      *map(_command_block, compared.points),
      '<h2>Where it comes from</h2>',
      _runs(compared.points),
      _software(compared.points),
    )
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_escape(title)}</title>\n<style>\n{_STYLE}'
    f':root {{ {light} }}\n'
    f'@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n'
    f'</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n',
    encoding='utf-8',
  )


def _escape(text: object) -> str:
  return html.escape(str(text))


def _inline(picture: str, prefix: str, label: str) -> str:
  """An SVG without its head, with ids that no other one of the page has."""
  picture = picture[picture.index('<svg') :]
  picture = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>p{prefix}-', picture)
  name = f'<svg role="img" aria-label="{_escape(label)}"'
  return picture.replace('<svg', name, 1)


def _themed(picture: str, looks: Iterable[draw.Look]) -> str:
  """Colours as variables, which are others on a dark page."""
  for color in {look.color for look in looks} | {draw.INK}:
    picture = picture.replace(color, _variable(color))
  return picture


def _variable(color: str) -> str:
  return 'var(--ink)' if color == draw.INK else f'var(--c{color[1:]})'


def _variables(colors: Iterable[str]) -> tuple[str, str]:
  """What they are on a light and on a dark page."""
  names = sorted({*colors} - {draw.INK})
  return (
    ' '.join(f'--c{color[1:]}: {color};' for color in names),
    ' '.join(f'--c{color[1:]}: {_lighter(color)};' for color in names),
  )


def _lighter(color: str) -> str:
  rgb = matplotlib.colors.to_rgb(color)
  return matplotlib.colors.to_hex([0.6 * part + 0.4 for part in rgb])


def _counts(compared: Comparison) -> str:
  runs = [run.run for point in compared.points for run in point.runs]
  status = collections.Counter(run['status'] for run in runs)
  parts = [
    f'{count} {"done" if name == "done" else _open(_state_word(name))}'
    for name, count in status.items()
  ]
  if compared.failed:
    names = ', '.join('/'.join(one.parts[-2:]) for one in compared.failed)
    parts.append(_open(f'failed before it began: {names}'))
  points = len(compared.points)
  return (
    f'{points} point{"s" * (points != 1)}, '
    f'{len(runs)} run{"s" * (len(runs) != 1)}: {", ".join(parts)}.'
  )


def _state_word(status: str) -> str:
  # A process that was killed leaves the same word.
  return 'not finished' if status == 'running' else status


def _open(text: str) -> str:
  return f'<span class="open">{_escape(text)}</span>'


def _table(
  header: Sequence[str], lines: Iterable[Sequence[str]], kind: str = ''
) -> str:
  """Of cells that are HTML already."""
  head = ''.join(f'<th>{_escape(name)}</th>' for name in header)
  body = '\n'.join(
    f'<tr>{"".join(f"<td>{cell}</td>" for cell in line)}</tr>' for line in lines
  )
  return (
    f'<div class="wide"><table class="{kind}">\n<thead><tr>{head}</tr></thead>'
    f'\n<tbody>\n{body}\n</tbody>\n</table></div>'
  )


def _ends(looks: Sequence[draw.Look], table: Table) -> str:
  lines = []
  for look, line in zip(looks, table.lines, strict=True):
    name, *cells, seeds = map(_escape, line)
    dash = 'solid' if look.line == '-' else 'dashed'
    style = f'border-top: 3px {dash} {_variable(look.color)}'
    if ':' in seeds:
      seeds = f'<span class="open">{seeds}</span>'
    lines.append(
      [f'<span class="line" style="{style}"></span>{name}', *cells, seeds]
    )
  return _table(table.header, lines, 'ends')


def _command_block(point: Point) -> str:
  unsaid = {
    key: value for key, value in point.runs[0].point.items() if key in _NO_KEYS
  }
  note = ''.join(
    f'<p class="note">Besides, with {_escape(key)} {_escape(value)}.</p>'
    for key, value in unsaid.items()
  )
  text = _escape(' \\\n  '.join(command(point.runs[0])))
  return f'<div>{_escape(point.name)}</div>{note}<pre>{text}</pre>'


def command(run: Result) -> list[str]:
  """What makes a run, line by line, without this machine's paths."""
  keys = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in run.point.items()
    if key not in _NO_KEYS
  }
  folder = results.stem(run.run['experiment'], run.run['variant'])
  flags = (
    *(f'--config.{key}={value}' for key, value in keys.items()),
    f'--config.seed={run.run["seed"]}',
    f'--workdir=runs/{folder}/{run.id}',
  )
  return [
    f'python -m experiments.run --config={label_of(run.run)}',
    *map(shlex.quote, flags),
  ]


def _runs(points: Sequence[Point]) -> str:
  """A line a run."""
  lines = []
  for point in points:
    for run in point.runs:
      last = max((row['step'] for row in run.rows), default=0)
      status = _escape(run.run['status'])
      if run.run['status'] != 'done':
        of = f'step {last:,} of {run.run["config"]["num_steps"]:,}'
        status = _open(f'{_state_word(run.run["status"])}, {of}')
      commits = ', '.join(str(one)[:12] for one in run.run['commits'])
      marks = [mark for mark in run.run['marked'] if mark != 'unfinished']
      cells = (
        run.run['seed'],
        run.run.get('config_hash', '')[:12],
        ', '.join([commits, *marks]),
        run.run.get('started', '')[:19].replace('T', ' '),
        _duration(run),
        _device(run.run.get('device') or {}),
      )
      lines.append([_escape(point.name), status, *map(_escape, cells)])
  return _table(
    ('run', 'status', 'seed', 'config', 'commit', 'started', 'took', 'on'),
    lines,
    'words',
  )


def _duration(run: Result) -> str:
  seconds = max((row.get('seconds') or 0 for row in run.rows), default=0)
  minutes, seconds = divmod(round(seconds), 60)
  return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def _device(device: dict[str, Any]) -> str:
  if not device:
    return '–'
  return f'{device.get("count")} × {device.get("kind")}'


def _software(points: Sequence[Point]) -> str:
  """Versions of packages, each set of them once."""
  found: dict[str, list[str]] = collections.defaultdict(list)
  for point in points:
    for run in point.runs:
      packages = run.run.get('packages') or {}
      found[json.dumps(packages, sort_keys=True)].append(
        f'{point.name}, seed {run.run["seed"]}'
      )
  paragraphs = []
  for packages, whose in found.items():
    names = ', '.join(
      f'{name} {version}' for name, version in json.loads(packages).items()
    )
    head = 'All runs' if len(found) == 1 else '; '.join(whose)
    paragraphs.append(
      f'<p class="note">{_escape(head)}: {_escape(names or "unknown")}.</p>'
    )
  return '\n'.join(paragraphs)
