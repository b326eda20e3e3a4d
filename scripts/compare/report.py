"""A comparison as one HTML file that needs no other: to be sent to somebody.

Without scripts, fonts or anything else from elsewhere, and without this
machine's paths.
"""

from __future__ import annotations

import base64
import collections
import html
import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from experiments import results
from experiments.results import Result
from experiments.runs import label_of
from scripts import collect
from scripts.compare.measures import Table
from scripts.compare.points import Comparison, Point
from scripts.compare.points import text as text_of

# What a command cannot say: paths and what is known of their data.
_NO_KEYS = ('data.fingerprint', 'codistill.frozen_dir')
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; max-width: 62rem; padding: 1rem;
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: clamp(1.1rem, 5vw, 1.5rem); overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
div {{ overflow-x: auto; }}
img {{ width: 100%; min-width: 38rem; }}
@media (prefers-color-scheme: dark) {{
  img {{ filter: invert(0.93) hue-rotate(180deg); }} }}
table {{ border-collapse: collapse; font-size: 0.875rem; }}
th, td {{ padding: 0.25rem 0.75rem 0.25rem 0; text-align: right;
  white-space: nowrap; border-bottom: 1px solid #8886; }}
th:first-child, td:first-child, th:last-child, td:last-child,
.words th, .words td {{ text-align: left; }}
p.note {{ opacity: 0.75; font-size: 0.875rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8125rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{failed}
<div><img alt="{title}: learning curves and ends"
src="data:image/svg+xml;base64,{picture}"></div>
<h2>The end of training</h2>
{ends}
<p class="note">{caption}</p>
<h2>Commands</h2>
<p class="note">Each makes the first seed of its point. For another one change
<code>--config.seed</code> and the folder.</p>
{commands}
<h2>Where it comes from</h2>
{runs}
{packages}
</body>
</html>
"""


def page(compared: Comparison, table: Table, picture: bytes) -> str:
  """The report; the picture is an SVG."""
  runs = [(point, run) for point in compared.points for run in point.runs]
  labels = dict.fromkeys(label_of(run.run) for _, run in runs)
  packages: dict[str, list[str]] = collections.defaultdict(list)
  for point, run in runs:
    versions = run.run.get('all_packages') or [run.run.get('packages')]
    text = '; then '.join(
      ', '.join(f'{name} {version}' for name, version in sorted(some.items()))
      for some in (one or {'unknown': ''} for one in versions)
    )
    packages[text].append(f'{point.name}, seed {run.run["seed"]}')
  alike = len(packages) == 1
  # Of each config: what differs though no flag changes it.
  unsaid: dict[Any, set[str]] = collections.defaultdict(set)
  for point in compared.points:
    for key in point.settings.keys() - point.runs[0].point.keys():
      unsaid[point.group[0], key].add(text_of(point.settings[key]))
  differ = {key for key, values in unsaid.items() if len(values) > 1}
  return _PAGE.format(
    title=html.escape(compared.title or ', '.join(labels)),
    failed=''.join(
      _note(f'{"/".join(one.parts[-2:])} {collect.why_no_records(one)}.')
      for one in compared.failed
    ),
    picture=base64.b64encode(picture).decode(),
    ends=_table(table.header, table.lines),
    caption=html.escape(table.caption),
    commands='\n'.join(
      _command_block(point, differ) for point in compared.points
    ),
    runs=_table(
      ('run', 'status', 'seed', 'config', 'commit', 'started', 'took', 'on'),
      (_run_cells(point, run) for point, run in runs),
      'words',
    ),
    packages='\n'.join(
      _note(f'{"All runs" if alike else "; ".join(whose)}: {text}.')
      for text, whose in packages.items()
    ),
  )


def _note(text: str) -> str:
  return f'<p class="note">{html.escape(text)}</p>'


def _table(
  header: Sequence[str], lines: Iterable[Sequence[str]], kind: str = ''
) -> str:
  rows = [
    ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
    for tag, cells in (('th', header), *(('td', line) for line in lines))
  ]
  body = '\n'.join(f'<tr>{row}</tr>' for row in rows)
  return f'<div><table class="{kind}">\n{body}\n</table></div>'


def _command_block(point: Point, differ: Collection[tuple[str, str]]) -> str:
  """What makes a point; of `differ`, the config and key, says what it needs."""
  run = point.runs[0]
  unsaid = [f'{key} {run.point[key]}' for key in _NO_KEYS if key in run.point]
  unsaid += [
    f'{key} {text_of(value)}'
    for key, value in point.settings.items()
    if key not in run.point and (point.group[0], key) in differ
  ]
  note = _note(f'Besides, with {" and ".join(unsaid)}.') if unsaid else ''
  text = html.escape(' \\\n  '.join(command(run)))
  return f'<div>{html.escape(point.name)}</div>{note}<pre>{text}</pre>'


def command(run: Result) -> list[str]:
  """What makes a run, line by line, without this machine's paths."""
  values = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in (run.point | {'seed': run.run['seed']}).items()
    if key not in _NO_KEYS
  }
  folder = results.stem(run.run['experiment'], run.run['variant'])
  flags = [f'--config.{key}={value}' for key, value in values.items()]
  flags.append(f'--workdir=runs/{folder}/{run.id}')
  file = run.run.get('config_file')
  name = (file and (file['module'] or file['path'])) or run.run['experiment']
  config = ':'.join(filter(None, (name, run.run['variant'])))
  first = f'python -m experiments.run {shlex.quote(f"--config={config}")}'
  return [first, *map(shlex.quote, flags)]


def _run_cells(point: Point, run: Result) -> list[str]:
  found, status = run.run, run.run['status']
  if status != 'done':
    # A process that was killed leaves the same word as one that runs.
    name = 'not finished' if status == 'running' else status
    last = max((row['step'] for row in run.rows), default=0)
    status = f'{name}, step {last:,} of {found["config"]["num_steps"]:,}'
  seconds = max((row.get('seconds') or 0 for row in run.rows), default=0)
  minutes, seconds = divmod(round(seconds), 60)
  commits = [str(one)[:12] for one in found['commits']]
  marks = [mark for mark in found['marked'] if mark != 'unfinished']
  devices = found.get('all_device') or filter(None, [found.get('device')])
  return [
    point.name,
    status,
    str(found['seed']),
    found.get('config_hash', '')[:12],
    ', '.join(commits + marks),
    found.get('started', '')[:19].replace('T', ' '),
    f'{minutes} min {seconds} s',
    ', '.join(f'{one["count"]} × {one["kind"]}' for one in devices) or '–',
  ]
