"""What consumes Algorithm 1's reports: rows, evaluation, checkpoints, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from codistill import hosts
from codistill.algorithm import Account, Member, Report
from codistill.evaluate import Evaluation, Score
from codistill.exchange.folder.waiter import (
  PeerTimeoutError,
  WaitInterruptedError,
)
from codistill.optim import averaged
from codistill.rivals.averaging import mean_of
from codistill.storage.checkpoint import Checkpoints
from experiments import predictions, resume
from experiments.errors import LoneError, UserError
from experiments.experiment import Experiment
from experiments.progress import RunProgress
from experiments.record import Record
from experiments.workdir import Workdir

Row = dict[str, Any]
# Updates between two times that processes of a member ask each other whether to
# stop: each makes them wait for the device.
_AGREE_STEPS = 10


def _by_predictor(
  active: list[Member], result: Evaluation
) -> dict[int | str, Score]:
  numbers = (member.index for member in active)
  scores: dict[int | str, Score] = dict(
    zip(numbers, result.members, strict=True)
  )
  if result.ensemble is not None:
    scores['ensemble'] = result.ensemble
  return scores


class Trainer:
  """One process's part of a run, from its beginning or its last checkpoint.

  Metrics are fetched one report late: an update's numbers are asked for when
  the next update has been dispatched, so that the device never waits for the
  log. Before an evaluation or a checkpoint the late report is caught up with.

  Attributes:
    start_step: where it goes on; 0 at the beginning.
    passed_over: why not from newer checkpoints, a sentence for each.
  """

  def __init__(self, experiment: Experiment, workdir: Workdir):
    """Places the members on the mesh, restored if there is a checkpoint.

    Args:
      experiment: what to train.
      workdir: where rows, provenance and checkpoints go.

    Raises:
      UserError: if there is something to go on with, and it is not enough.
    """
    self._experiment = experiment
    self._workdir = workdir
    self._record: Record = workdir.record
    # What else sees every row, and what comes between reports and training.
    self.observers: list[Callable[[Row], None]] = []
    self.watch: Callable[[Iterator[Report]], Iterator[Report]] = iter
    self._checkpoints = Checkpoints(workdir.checkpoints)
    self._seconds_before = 0.0
    self._began = time.monotonic()
    self._last_row_at: dict[int, float] = {}
    self._late: tuple[Report, Account, list[str]] | None = None
    self.start_step = 0
    # Of the last checkpoint: its step, and whether nothing was left to train.
    self._saved = (0, False)
    self.passed_over: tuple[str, ...] = ()
    self.members = (
      self._restore() if workdir.resumes else None
    ) or experiment.start()
    self._step = self.start_step
    self._whole = True
    # What a run that was stopped at an evaluation's step has left to do.
    self._owes_evaluation = workdir.resumes and resume.keep_rows(
      experiment, workdir, self.members, self.start_step
    )
    for member in self.members:
      if not member.active:
        experiment.exchange.withdraw(member.index)

  def train(
    self, progress: RunProgress, should_stop: Callable[[], bool]
  ) -> int | None:
    """Trains to the end, or until told to stop; then writes a checkpoint.

    Args:
      progress: shows rows as they are written.
      should_stop: asked after every round.

    Returns:
      None at the end of the run, or the step at which it was stopped.

    Raises:
      PeerTimeoutError: if a synchronous member has waited too long for a peer;
        there is a checkpoint from just before.
      UserError: if the data cannot be gone on with; likewise.
    """
    self._experiment.exchange.should_stop = should_stop
    self._began = time.monotonic()
    try:
      return self._train(progress, should_stop)
    except (PeerTimeoutError, WaitInterruptedError, UserError) as error:
      # The other processes of a member do not know of bad data of this one.
      alone = hosts.are_several() and isinstance(error, UserError)
      # In the middle of a round members' states do not belong together.
      if self._whole and self._step > self.start_step and not alone:
        self._save(self._step, progress)
        self._account_for_the_rest(self._step, progress)
      if isinstance(error, WaitInterruptedError):
        return self._step
      if alone:
        raise LoneError(str(error)) from error.__cause__
      raise

  def _train(
    self, progress: RunProgress, should_stop: Callable[[], bool]
  ) -> int | None:
    experiment = self._experiment
    step = self.start_step
    distils = experiment.teachers or not experiment.updates.needs_peers
    if self._owes_evaluation:
      experiment.average(self.members, step)
      self._evaluate(step, 'eval', progress)
    for report in self.watch(experiment.reports(self.members, step)):
      self._catch_up(progress)
      account = experiment.exchange.account(report.member.index)
      corrupt = experiment.take_corrupt(report.member.index)
      self._late = (report, account, corrupt)
      step = self._step = report.step
      self._whole = report.ends_round
      if experiment.fault.strikes(report.member.index, step):
        self._strike(report.member, step, progress)
      if not report.ends_round or step == experiment.num_steps:
        continue
      if step == experiment.burn_in_steps and distils:
        progress.say(
          f'step {step:,}  burn-in ends; compiling the other update …'
        )
      stop = self._agree_to_stop(step, should_stop)
      if stop:
        # Before the evaluation, for which a scheduler may not wait.
        self._save(step, progress)
      if step % experiment.eval_interval_steps == 0:
        experiment.average(self.members, step)
        self._evaluate(step, 'eval', progress)
      if stop:
        self._account_for_the_rest(step, progress)
        return step
      if step % experiment.checkpoint_interval_steps == 0:
        self._save(step, progress)
    self._catch_up(progress)
    if step == experiment.num_steps:
      # Again, if there is one from a wait for the last average.
      self._save(step, progress, ended=True)
      self._evaluate(step, 'final', progress)
    experiment.exchange.flush()
    self._account_for_the_rest(step, progress)
    return None

  def close(self) -> None:
    """Closes files."""
    self._record.close()

  def _agree_to_stop(self, step: int, should_stop: Callable[[], bool]) -> bool:
    """Whether to stop here; the same for all processes of a member."""
    if not hosts.are_several():
      return should_stop()
    return step % _AGREE_STEPS == 0 and hosts.any_says(should_stop())

  def _catch_up(self, progress: RunProgress) -> None:
    """Writes the row of the late report."""
    if self._late is None:
      return
    (report, account, corrupt), self._late = self._late, None
    member, step = report.member, report.step
    if not member.active:
      # It was dispatched before its last loss was known. Without a row, so
      # that rows do not depend on when a loss happens to be fetched.
      return
    metrics = {
      name: float(value)
      for name, value in jax.device_get(report.metrics).items()
    }
    ages = [step - 1 - peer.step for peer in report.peers]
    seconds = self._seconds()
    before = self._last_row_at.get(member.index)
    self._last_row_at[member.index] = seconds
    row = {
      'step': step,
      'member': member.index,
      'kind': 'train',
      'seconds': round(seconds, 3),
      'examples_seen': step * self._experiment.examples_per_step,
      'distill_loss': None,
      **metrics,
      'num_peers': len(ages),
      'peers': [peer.member for peer in report.peers],
      'peer_ages': ages,
      'peer_age': max(ages, default=None),
      'left_out': {str(peer): why for peer, why in account.left_out.items()},
      'failed_loads': account.failed_loads,
      'stall_seconds': _rounded(account.stall_seconds),
      'examples_per_second': (
        None
        if before is None
        else round(self._experiment.examples_per_step / (seconds - before), 1)
      ),
      **({'corrupt': corrupt} if corrupt else {}),
    }
    self._write(row)
    for name in corrupt:
      progress.say(
        f'step {step:,}  member {member.index}: {name} cannot be decoded; the '
        'next of its examples stands in'
      )
    progress.trained(row)
    for event in account.events:
      self._write_event(member.index, step, event, progress)
    losses = [metrics['task_loss'], metrics.get('distill_loss', 0.0)]
    if not all(map(math.isfinite, losses)):
      self._give_up(member, step, metrics, progress)

  def _strike(self, member: Member, step: int, progress: RunProgress) -> None:
    """Makes a member fail on purpose."""
    self._catch_up(progress)  # The row of one that still was active.
    fault = self._experiment.fault
    progress.say(f'step {step:,}  fault of member {member.index}: {fault.kind}')
    fault.strike(member)
    if not member.active:
      self._experiment.exchange.withdraw(member.index)

  def _account_for_the_rest(self, step: int, progress: RunProgress) -> None:
    """Writes what the exchange has done since the last report."""
    for member in self.members:
      account = self._experiment.exchange.account(member.index)
      for event in account.events:
        self._write_event(member.index, step, event, progress)

  def _write_event(
    self,
    member: int,
    step: int,
    event: Mapping[str, Any],
    progress: RunProgress,
  ) -> None:
    """Writes what the exchange did; what went wrong with it is said, too."""
    if 'message' in event:
      progress.say(f'step {step:,}  {event["message"]}')
    self._write(
      {
        'step': step,
        'member': member,
        'kind': 'exchange',
        'seconds': round(self._seconds(), 3),
        'examples_seen': step * self._experiment.examples_per_step,
        **{
          key: _rounded(value) if isinstance(value, float) else value
          for key, value in event.items()
        },
      }
    )

  def _give_up(
    self,
    member: Member,
    step: int,
    metrics: dict[str, float],
    progress: RunProgress,
  ) -> None:
    """Takes a diverged member out of the run; the others go on."""
    if not member.active:
      return
    member.active = False
    self._experiment.exchange.withdraw(member.index)
    losses = {
      name: repr(value) for name, value in metrics.items() if 'loss' in name
    }
    diverged = self._workdir.run.get('diverged', {})
    self._workdir.write_run(
      diverged={**diverged, str(member.index): {'step': step, **losses}}
    )
    progress.say(f'member {member.index} diverged at step {step}: {losses}')

  def _evaluate(self, step: int, kind: str, progress: RunProgress) -> None:
    """Writes the rows of an exact evaluation of the active members."""
    self._catch_up(progress)
    active = [member for member in self.members if member.active]
    if not active:
      return
    experiment = self._experiment
    expected = experiment.dataset.num_examples('test')
    whos = [member.index for member in active]
    whos += ['ensemble'] if len(active) > 1 else []
    stores = self._stores(step, kind) and hosts.is_first()
    make_writer = predictions.Writer if stores else predictions.SilentWriter
    with make_writer(self._workdir.predictions, step, whos, expected) as writer:
      result = experiment.evaluate(
        experiment.models(member.index for member in active),
        [member.state.variables for member in active],
        experiment.eval_batches(),
        [experiment.carried(member) for member in active],
        # One program for all evaluations, whether they are stored or not.
        writer.write if experiment.store_predictions else None,
      )
      corrupt = experiment.take_corrupt('eval')
      for name in corrupt:
        progress.say(
          f'step {step:,}  {name} cannot be decoded; it counts as black'
        )
      if result.num_examples != expected:
        raise RuntimeError(
          f'evaluation counted {result.num_examples} of {expected} examples'
        )
      if all(math.isfinite(score.task_loss) for score in result.members):
        writer.commit()
    scored = list(zip(active, result.members, strict=True))
    gaps: dict[int | str, float | None] = {}
    if result.memory_gap is not None:
      numbers = [member.index for member in active]
      gaps = dict(zip(numbers, result.memory_gap, strict=True))
    # A last update may ruin weights after a loss that was still finite.
    ruined = [pair for pair in scored if not math.isfinite(pair[1].task_loss)]
    for member, score in ruined:
      losses = {'task_loss': score.task_loss}
      row = self._scored_row(step, kind, member.index, **losses)
      self._write(row)
      self._give_up(member, step, losses, progress)
    if ruined:
      self._evaluate(step, kind, progress)  # The others, and their ensemble.
      return
    scores = _by_predictor(active, result)
    if kind == 'final' and experiment.evaluate_soup and len(active) > 1:
      scores['soup'] = self._evaluate_soup(active)
    averages = self._evaluate_averages(active)
    rows = [
      self._scored_row(
        step,
        kind,
        who,
        **score.numbers(),
        **averages.get(who, {}),
        disagreement=result.disagreement if who == 'ensemble' else None,
        **({'memory_gap': gaps[who]} if gaps.get(who) is not None else {}),
        **({'corrupt': corrupt} if corrupt else {}),
      )
      for who, score in scores.items()
    ]
    for row in rows:
      self._write(row)
    progress.evaluated(rows)

  def _evaluate_averages(
    self, active: list[Member]
  ) -> dict[int | str, dict[str, float]]:
    """What averaged weights score, and their ensemble, for the same rows."""
    experiment = self._experiment
    if not experiment.average_decay:
      return {}
    result = experiment.evaluate(
      experiment.models(member.index for member in active),
      [averaged(m.state.variables, m.state.opt_state) for m in active],
      experiment.eval_batches(),
      [experiment.carried(member) for member in active],
    )
    experiment.take_corrupt('eval')  # They were named for the same examples.
    return {
      who: {f'average_{key}': value for key, value in score.numbers().items()}
      for who, score in _by_predictor(active, result).items()
    }

  def _evaluate_soup(self, active: list[Member]) -> Score:
    """What the members' average weights score."""
    experiment = self._experiment
    result = experiment.evaluate(
      experiment.models([active[0].index]),
      [mean_of(tuple(member.state.variables for member in active))],
      experiment.eval_batches(),
    )
    experiment.take_corrupt('eval')
    return result.members[0]

  def _stores(self, step: int, kind: str) -> bool:
    """Whether what is predicted in an evaluation is kept."""
    experiment = self._experiment
    often = experiment.predictions_interval_steps
    return experiment.store_predictions and (
      kind == 'final' or (often > 0 and step % often == 0)
    )

  def _scored_row(
    self, step: int, kind: str, who: int | str, **scores: float | None
  ) -> Row:
    return {
      'step': step,
      'member': who,
      'kind': kind,
      'seconds': round(self._seconds(), 3),
      'examples_seen': step * self._experiment.examples_per_step,
      'disagreement': None,
      **scores,
    }

  def _write(self, row: Row) -> None:
    self._record.write_row(row)
    for observe in self.observers:
      observe(row)

  def _save(
    self, step: int, progress: RunProgress, *, ended: bool = False
  ) -> None:
    self._catch_up(progress)
    if self._saved == (step, ended):
      return
    self._saved = (step, ended)
    why = self._checkpoints.save(
      step,
      {member.index: member.state for member in self.members},
      self._experiment.exchange.publications(),
      {
        'seconds': self._seconds(),
        'active': [m.index for m in self.members if m.active],
        'ended': ended,
      },
    )
    # So that it is missed when it is gone.
    self._workdir.write_run(checkpoint=step)
    if why:
      progress.say(f'step {step:,}  {why}')

  def _restore(self) -> list[Member] | None:
    experiment = self._experiment
    restored = resume.restore(experiment, self._workdir, self._checkpoints)
    if restored is None:
      return None
    self.start_step = restored.step
    # Older code did not say so; then it is saved again.
    self._saved = (restored.step, restored.extra.get('ended', False))
    self.passed_over = restored.passed_over
    self._seconds_before = restored.extra['seconds']
    experiment.exchange.restore(restored.publications)
    return [
      Member(
        member,
        state,
        experiment.batches(member, start=restored.step),
        active=member in restored.extra['active'],
      )
      for member, state in sorted(restored.states.items())
    ]

  def _seconds(self) -> float:
    """Seconds of training, those before a resume included."""
    return self._seconds_before + time.monotonic() - self._began


def _rounded(seconds: float | None) -> float | None:
  """To microseconds: what is below is noise."""
  return None if seconds is None else round(seconds, 6)
