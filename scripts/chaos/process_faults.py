"""Faults of processes: killed, doubled, frozen, late, slow, ASCII only."""

from __future__ import annotations

import pathlib
import re
import signal
import statistics
import time
from typing import Any

from scripts.chaos.outcome import LONG_S, LOOK_S, Result, expect, until
from scripts.chaos.runs import Row, Run, Stage, Tail
from scripts.status import last_rows


def kills(
  stage: Stage, *, members: int = 3, num_steps: int = 6_000, **config: Any
) -> Result:
  """Random members are killed at random times; each starts again at once."""
  chance = stage.random('kills')
  run = Run(
    stage,
    stage.folder('kills'),
    members=members,
    num_steps=num_steps,
    checkpoint_interval_steps=min(200, num_steps // 4),
    **config,
  )
  lives = [run.start(member) for member in range(members)]
  for member in range(members):
    run.until_trained(member)
  repeated = {member: -num_steps for member in range(members)}
  losses, killed = [], 0
  while killed < stage.kills:
    pause, began = chance.uniform(1.0, 11.0), time.monotonic()
    # On a fast machine, too, all kills come before the run is over.
    share = (killed + 1) / (stage.kills + 1)
    while time.monotonic() - began < pause:
      for job in run.jobs.values():
        job.trained()
      if min(job.step() for job in run.jobs.values()) > share * num_steps:
        break
      time.sleep(LOOK_S)
    alive = [m for m, job in run.jobs.items() if job.process.poll() is None]
    expect(alive, f'the run was over after {killed} kills')
    member = chance.choice(alive)
    job = run.jobs[member]
    job.kill()
    if job.process.returncode != -signal.SIGKILL:
      job.wait(0, f'member {member} to its end')
      continue
    reached, trained = job.step(), job.trained()
    repeated[member] += trained
    killed += 1
    again = run.start(member)
    lives.append(again)
    losses.append((again, reached))
    stage.say(
      f'kill {killed} of {stage.kills}: member {member} at step {reached:,}, '
      f'after {trained:,} steps of this life'
    )
  stage.say('no more kills; the run goes on to its end …')
  until(
    lambda: all(job.process.poll() is not None for job in run.jobs.values()),
    'the run to end',
    progress=lambda: sum(job.trained() for job in run.jobs.values()),
  )
  run.finish()
  for member, job in run.jobs.items():
    repeated[member] += job.trained()
    run.check_rows(member, num_steps)
  lost = [
    reached - job.start_step()
    for job, reached in losses
    if job.seconds_to_row is not None
  ]
  seconds = [
    job.seconds_to_row
    for job in lives[members:]
    if job.seconds_to_row is not None
  ]
  return Result(
    f'kill -9 × {killed}, {members} members of {num_steps:,} steps, each '
    'started again at once',
    f'{sum(repeated.values()):,} steps trained again, at most '
    f'{max(lost, default=0):,} a kill; no row; {_left_behind(run.workdir)} '
    'half-written files or folders left behind',
    f'next row after {statistics.median(seconds or [0.0]):.1f} s, at most '
    f'{max(seconds, default=0.0):.1f} s',
  )


def _left_behind(workdir: pathlib.Path) -> int:
  """Number of files that killed processes left in the exchange for good."""
  names = [path.name for path in (workdir / 'exchange').glob('*/*')]
  half = r'tmp|removed|\.lease\.json\.\w{32}|\.clock'
  return len([name for name in names if re.search(half, name)])


def second_job(stage: Stage) -> Result:
  """A second process for a member is refused; a killed first one frees it."""
  run = Run(stage, stage.folder('second-job'), members=2)
  first = run.start(0)
  run.until_trained(0)
  elsewhere = run.workdir / 'elsewhere'
  second = [
    run.start(0),
    run.start(
      0,
      f'--workdir={elsewhere}',
      f'--config.codistill.exchange_dir={run.workdir / "exchange"}',
    ),
  ]
  for job in second:
    job.wait(2, 'a second job')
    expect(
      'another process is at work' in job.complaint(),
      f'a second job was told: {job.complaint()}',
    )
  expect(not list(elsewhere.glob('rows*')), 'a second job wrote rows')
  step = first.step()
  until(lambda: first.step() > step + 50, 'the first job to go on', [first])
  first.kill()
  third = run.start(0)
  run.until_trained(0)
  third.stop()
  run.check_rows(0)
  return Result(
    'a second process in the same workdir and one in another with the same '
    'exchange; then kill -9 of the first',
    'nothing: both refused with a sentence and status 2',
    f'next row {third.seconds_to_row or 0.0:.1f} s after the next start',
  )


def frozen_job(stage: Stage) -> Result:
  """A process that hangs is replaced, and stops when it wakes."""
  run = Run(stage, stage.folder('frozen-job'), members=2)
  first = run.start(0)
  run.until_trained(0, 250)
  first.process.send_signal(signal.SIGSTOP)
  began = time.monotonic()
  while True:
    second = run.start(0)
    until(
      lambda job=second: job.trained() or job.process.poll() is not None,
      'a second job',
    )
    if second.process.poll() is None:
      break
    second.wait(2, 'a second job before the timeout')
    expect(time.monotonic() - began < LONG_S, 'the lease was never free')
  seconds = time.monotonic() - began
  first.process.send_signal(signal.SIGCONT)
  first.wait(1, 'the first job when it wakes')
  expect(
    'another process has taken over' in first.complaint(),
    f'the first job was told: {first.complaint()}',
  )
  run.until_trained(0, second.trained() + 50)
  start = second.start_step()
  second.stop()
  run.check_rows(0)
  return Result(
    'SIGSTOP for longer than lease_timeout_s (8 s), another process for the '
    'member, SIGCONT',
    f'no row; the second went on from the checkpoint of step {start:,}; the '
    'first stopped with a sentence and status 1',
    f'next row after {seconds:.1f} s',
  )


def missing(stage: Stage) -> Result:
  """One of three members never starts."""
  run = Run(stage, stage.folder('missing'), members=3, num_steps=600)
  for member in (0, 1):
    run.start(member)
  run.finish()
  taught = 0
  for member in (0, 1):
    rows = run.check_rows(member, 600)
    expect(
      rows[-1]['left_out'].get('2') == 'absent',
      f'member {member} ends with {rows[-1]["left_out"]} left out',
    )
    taught += sum(row['num_peers'] for row in rows)
  # The first one done may not have seen the other, but then the other saw it.
  expect(taught, 'nobody was taught')
  return Result(
    'two processes of a run of three members',
    'one teacher of two',
    'none: both were done',
  )


def late(stage: Stage) -> Result:
  """One of two members starts long after the other."""
  run = Run(stage, stage.folder('late'), members=2)
  first = run.start(0)
  run.until_trained(0, 300)
  expect(
    last_rows(run.rows_path(0), 8 << 10)[-1].get('peers') in ([], None),
    'a peer taught before it started',
  )
  ahead = first.step()
  second = run.start(1)
  for member, job in ((0, first), (1, second)):
    until(
      lambda member=member: any(
        row.get('peers') == [1 - member]
        for row in last_rows(run.rows_path(member), 8 << 10)
      ),
      f'member {member} to be taught',
      [job],
    )
  seconds = time.monotonic() - second.began
  for member, job in ((0, first), (1, second)):
    job.stop()
    run.check_rows(member)
  return Result(
    f'the second of two members started when the first was at step {ahead:,}',
    'the teacher until then',
    f'both taught {seconds:.1f} s after the start',
  )


def slow_jobs(stage: Stage, seconds: float = 2.0) -> Result:
  """One process reads slowly, and the other one writes slowly."""
  run = Run(
    stage,
    stage.folder('slow-jobs'),
    members=2,
    codistill__reload_interval_steps=10,
  )
  run.start(0, slow=f'load={seconds}')
  run.start(1, slow=f'write={seconds}')
  for member, job in run.jobs.items():
    until(
      lambda member=member: any(
        row.get('peers') for row in last_rows(run.rows_path(member), 8 << 10)
      ),
      f'member {member} to be taught',
      [job],
    )
  tails = [Tail(run.rows_path(member)) for member in (0, 1)]
  rows: list[list[Row]] = [[], []]

  def done() -> bool:
    for found, tail in zip(rows, tails, strict=True):
      found += tail.read()
    events = [{row.get('event') for row in found} for found in rows]
    return 'load' in events[0] and {'skip', 'publish'} <= events[1]

  until(done, 'a slow load and a skipped publication', run.jobs.values())
  stopping = [job.stop() for job in run.jobs.values()]
  shares = []
  for member, found in enumerate(rows):
    train = [row for row in found if row['kind'] == 'train']
    passed = train[-1]['seconds'] - train[0]['seconds']
    share = sum(row['stall_seconds'] for row in train[1:]) / passed
    expect(share < 0.1, f'member {member} was stalled {share:.0%} of its time')
    shares.append(share)
  skipped = [row for row in rows[1] if row.get('event') == 'skip']
  age = max(row['peer_age'] or 0 for row in rows[0] if row['kind'] == 'train')
  return Result(
    f'{seconds:g} s of sleep before each load of member 0 and each write of '
    'member 1',
    f'{len(skipped)} publications skipped and counted; peers up to {age} steps '
    f'old; the train loops were kept {max(shares):.1%} of their time',
    f'stopped within {max(stopping):.1f} s',
  )


def output(stage: Stage, *, num_steps: int = 100, **config: Any) -> Result:
  """The output can encode ASCII only, but a run prints "…" and "×"."""
  folder = stage.folder('output')
  run = Run(stage, folder, members=2, num_steps=num_steps, **config)
  for member in (0, 1):
    run.start(member, encoding='ascii')
  run.finish()
  for member, job in run.jobs.items():
    run.check_rows(member, num_steps)
    expect(job.said().isascii(), f'member {member} wrote more than ASCII')
    expect('?' in job.said(), f'member {member} had nothing to replace')
  return Result(
    'two members with output that can encode ASCII only',
    'nothing: other characters become question marks',
    f'both trained {num_steps} steps, rows 1, 2, 3, …',
  )


def stop(stage: Stage) -> Result:
  """SIGTERM stops the two processes of the faults before."""
  pair = stage.pair()
  seconds = [job.stop() for job in pair.jobs]
  for member in (0, 1):
    pair.run.check_rows(member)
  stage.kill_all()
  return Result(
    'SIGTERM to the two members of the faults before',
    'nothing: status 143 and rows 1, 2, 3, …',
    f'stopped within {max(seconds):.1f} s',
  )
