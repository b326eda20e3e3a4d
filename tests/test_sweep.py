"""A sweep runs every point with every seed, exactly once, through failures."""

import json
import shlex
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import stand_ins
from commands import DNN, ROOT, start_process
from stand_ins import Signals, console_of, lease, until

from experiments import config as config_lib
from experiments import processes, sweep
from experiments.errors import UserError
from experiments.record import read_rows, read_run

STALENESS = 'imagenet_staleness:smoke'


def plan(tmp_path, *extra, seeds=1, config=STALENESS):
  return sweep.plan(config, seeds, tmp_path, extra)


def test_a_plan_has_every_point_with_every_seed(tmp_path, monkeypatch):
  runs = plan(tmp_path, seeds=2)
  points = [
    'reload_interval_steps=1',
    'reload_interval_steps=2',
    'exchange=none',
    'reload_interval_steps=1,delay_steps=1',
  ]
  assert [(run.point, run.seed) for run in runs] == [
    (point, seed) for seed in (0, 1) for point in points
  ]
  assert len({run.workdir for run in runs}) == len(runs)
  last = runs[-1]
  assert last.workdir == tmp_path / points[-1] / 'seed-1'
  assert last.command == (
    *(sys.executable, '-m', 'experiments.run'),
    *(f'--config={STALENESS}', f'--workdir={last.workdir}'),
    '--config.seed=1',
    '--config.codistill.reload_interval_steps=1',
    '--config.codistill.delay_steps=1',
  )
  # A key of the command is given to every run.
  runs = plan(tmp_path, '--config.num_steps=6')
  assert all('--config.num_steps=6' in run.command for run in runs)
  assert {run.num_steps for run in runs} == {6}
  # So is a path, as it is meant here; a flag can unset a placeholder.
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'set').mkdir()
  for path in ('~/set', 'set'):
    keys = (f'--config.data.data_dir={path}', '--config.num_devices=None')
    [run] = plan(tmp_path, *keys, config='imagenet_ensemble:smoke')
    assert f'--config.data.data_dir={tmp_path}/set' in run.command
    assert '--config.num_devices=None' in run.command
    assert run.recipe['config']['data']['data_dir'] == f'{tmp_path}/set'
  # A config without a sweep has one point.
  [run] = plan(tmp_path, config='imagenet_ensemble:smoke')
  assert (run.point, run.num_steps) == ('base', 8)


def test_the_showcase_sweeps_what_it_promises(tmp_path):
  runs = plan(tmp_path, config='imagenet_staleness:laptop')
  points = [run.point for run in runs]
  intervals = (1, 10, 50, 100, 250)
  wanted = {f'reload_interval_steps={interval}' for interval in intervals}
  assert {'exchange=none', *wanted} <= set(points)
  assert sum('delay_steps' in point for point in points) == 3


def test_diversity_and_codistillation_make_every_combination_once(tmp_path):
  combinations = []
  for name in ('imagenet_codistill:laptop', 'imagenet_diversity:laptop'):
    for point in config_lib.points(name):
      config = config_lib.load(name)
      config.update_from_flattened_dict(point)
      combinations.append(tuple(config.diversity.to_dict().values()))
  assert len(combinations) == len(set(combinations)) == 8


def test_twice_the_batch_comes_at_twice_the_rate():
  for variant in ('', ':reduced', ':laptop'):
    base = config_lib.load(f'imagenet_sync{variant}')
    _, point = config_lib.points(f'imagenet_sync{variant}')
    double = config_lib.load(f'imagenet_sync{variant}')
    double.update_from_flattened_dict(point)
    name = base.schedule.name
    assert double.batch_size == 2 * base.batch_size
    twice = 2 * base.schedule[name].peak_rate
    assert double.schedule[name].peak_rate == twice
    assert len(config_lib.overrides(base, double)) == 2


def test_what_makes_no_sense_is_one_sentence(capsys):
  where = [f'--config={STALENESS}', '--workdir=/nonexistent/never']
  for words, sentence in {
    '--config=imagenet_sinc': 'did you mean imagenet_sync',
    '--seeds=0': '--seeds must be at least 1',
    '--jobs=0': '--jobs must be at least 1',
    '--config.seed=3': 'choose --seeds=K instead',
    '--config.codistill.exchange=none': 'the sweep varies',
    '--config.num_step=3': 'did you mean num_step',
    'fast': "what is 'fast'",
    '--slurm=partition=gpu': '--launcher=slurm',
    '--launcher=slurm --slurm=time=1 --slurm=time=2': 'time is there twice',
    f'--workdir={__file__}': 'is a file; choose',
  }.items():
    assert sweep.main([*where, *words.split()]) == 2, words
    out, err = capsys.readouterr()
    assert sentence in err, words
    assert (out, err.count('\n')) == ('', 1), words


def test_print_and_slurm_get_what_is_left_to_do(tmp_path, monkeypatch, capsys):
  runs = plan(tmp_path)
  finish(runs.pop(1))
  left = [run.command for run in runs]
  arguments = [f'--config={STALENESS}', f'--workdir={tmp_path}', '--jobs=2']
  assert sweep.main([*arguments, '--launcher=print']) == 0
  printed = capsys.readouterr().out.splitlines()
  assert [tuple(shlex.split(line)) for line in printed] == left
  submit = mock.Mock(return_value=['4711_0', '4711_1', '4711_2'])
  monkeypatch.setattr(sweep, 'submit', submit)
  slurm = ['--launcher=slurm', '--slurm=partition=gpu', '--slurm=time=30']
  assert sweep.main([*arguments, *slurm]) == 0
  parameters = {'partition': 'gpu', 'time': '30'}
  submit.assert_called_once_with(left, 2, tmp_path, parameters)
  assert 'submitted 3 runs: 4711_0 to 4711_2' in capsys.readouterr().out
  # It names what it cannot print: a run there has other keys.
  finish(plan(tmp_path, '--config.batch_size=64')[0])
  assert sweep.main([*arguments, '--launcher=print']) == 1
  captured = capsys.readouterr()
  assert captured.out.count('experiments.run') == 2
  assert captured.err.count('choose another --workdir') == 1


def test_a_key_is_given_to_the_points_that_read_it(tmp_path):
  key = '--config.codistill.topology=ring'
  without = [run.point for run in plan(tmp_path, key) if key not in run.command]
  assert without == ['exchange=none']
  for keys, config in (
    (('--config.model.dnn.hidden=(8,)',), STALENESS),
    # The points would differ in keys that nothing reads.
    (('--config.codistill.exchange=none',), 'lm_topology:smoke'),
    # Keys that follow count, but not a value of a wrong type.
    (
      (
        '--config.data.path=/a',
        '--config.data.synthetic_rows=9',
        '--config.model.click_dnn.hidden=8',
      ),
      'criteo_table1:smoke',
    ),
  ):
    with pytest.raises(UserError, match='changes nothing where '):
      plan(tmp_path, *keys, config=config)


# States, read from the folder.


def finish(run, status='done', **more):
  run.workdir.mkdir(parents=True)
  made = {'experiment': 'a', 'variant': '', 'member': None, 'seed': run.seed}
  made |= {'commit': None, 'dirty': None, 'started': 'now', 'status': status}
  text = json.dumps(made | run.recipe | more)
  (run.workdir / 'run.json').write_text(text)


def test_states(tmp_path):
  fresh, done, diverged, stopped = plan(tmp_path)
  finish(done)
  finish(diverged, 'diverged', diverged={'1': {'step': 4}})
  finish(stopped, 'running')
  rows = stopped.workdir / 'rows.jsonl'
  row = json.dumps({'step': 3, 'kind': 'train', 'filler': 'x' * 300})
  # A cut last line does not count, nor does one that is cut at the start.
  rows.write_text(f'{row}\n' * 40 + row[:50])
  assert sweep.state(fresh) == ('to do', 0, '')
  with lease(fresh.workdir / 'ensemble/lease.json'):
    assert sweep.state(fresh) == ('running', 0, '')
  assert sweep.state(done) == ('done', 8, '')
  assert sweep.state(diverged) == ('diverged', 8, 'member 1 at step 4')
  assert sweep.state(stopped) == ('interrupted', 3, '')
  # The only row counts, and a damaged one is a failure.
  rows.write_text(json.dumps({'step': 1}) + '\n')
  assert sweep.state(stopped).step == 1
  rows.write_text('not a row\n')
  assert sweep.state(stopped).status == 'failed'
  # The default workdir does not depend on keys; flags are no keys.
  assert sweep.state(plan(tmp_path, '--tensorboard')[1]).status == 'done'
  other = sweep.state(plan(tmp_path, '--config.batch_size=64')[1])
  assert other.status == 'failed'
  assert 'batch_size 16 there, 64 now); choose another --workdir' in other.why
  # So is one of a config file that has changed since.
  found = read_run(done.workdir / 'run.json')
  found['config']['optimizer']['sgd']['momentum'] = 0.5
  (done.workdir / 'run.json').write_text(
    json.dumps({**found, 'config_hash': 'another'})
  )
  assert 'sgd.momentum 0.5 there' in sweep.state(done).why


def test_a_damaged_run_is_failed_and_the_others_go_on(tmp_path):
  damaged, fine = fakes(tmp_path, 'done', 'done')
  damaged.workdir.mkdir(parents=True)
  for text in (b'{"status": "do', b'{}', b'[]', b'5', b'\xff'):
    (damaged.workdir / 'run.json').write_bytes(text)
    assert sweep.state(damaged).status == 'failed'
  status, shown = run_locally([damaged, fine])
  assert status == 1
  assert f'{damaged.workdir}/run.json is damaged' in ''.join(shown.split('\n'))
  assert sweep.state(fine).status == 'done'


# Stand-ins for runs: each process does what its point says.


def fakes(tmp_path, *words):
  runs = []
  for number, word in enumerate(words):
    folder = tmp_path / f'{number}-{word}' / 'seed-0'
    command = stand_ins.command(folder, word)
    recipe = {'config_hash': 'alike'}
    runs.append(sweep.Run(folder.parent.name, 0, 10, folder, command, recipe))
  return runs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(sweep, '_POLL_SECONDS', 0.02)


def run_locally(runs, jobs=2, stop=(), **options):
  console = console_of()
  status = sweep.run_locally('a sweep', runs, jobs, console, stop, **options)
  return status, console.export_text()


def starts(tmp_path):
  return sorted((tmp_path / 'starts').read_text().split())


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
  runs = fakes(tmp_path, 'fail', 'die', 'diverge', 'done', 'done')
  status, text = run_locally(runs)
  assert status == 1
  states = [sweep.state(run).status for run in runs[2:]]
  assert states == ['diverged', 'done', 'done']
  assert starts(tmp_path) == sorted(run.point for run in runs)
  lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
  # Brackets of an error stay brackets.
  assert 'ValueError: [/bold]' in lines['0-fail']
  assert str(runs[0].log) in lines['0-fail']
  assert 'killed by signal 9' in lines['1-die']
  assert '2 done, 0 running, 1 diverged, 2 failed' in text
  # Finished runs are left alone, and old reasons are not given again.
  runs[0].log.write_text('experiments.run: the disk is full\n')
  status, text = run_locally([runs[0], *runs[2:]])
  assert (status, 'disk is full' in text) == (1, False)
  assert starts(tmp_path) == sorted(['0-fail', *(run.point for run in runs)])


def test_a_terminal_shows_what_runs_and_in_the_end_all(tmp_path):
  runs = fakes(tmp_path, 'slow', 'done', 'fail')
  console = console_of(force_terminal=True)
  assert sweep.run_locally('a sweep', runs, 1, console, []) == 1
  shown = console.file.getvalue()
  assert '0 done, 1 running' in shown
  last = shown[shown.rindex('a sweep') :]
  assert all(run.point in last for run in runs)


def test_an_error_of_the_sweep_stops_its_runs(tmp_path, monkeypatch):
  [run] = fakes(tmp_path, 'wait')

  def line(self, states):
    if (run.workdir / 'waits').exists():
      raise BrokenPipeError
    return ''

  monkeypatch.setattr(sweep._Pace, 'line', line)
  with pytest.raises(BrokenPipeError):
    run_locally([run], plain_interval_seconds=0)
  assert sweep.state(run).status == 'interrupted'


def test_failed_runs_are_no_progress(tmp_path, monkeypatch):
  runs = fakes(tmp_path, 'a', 'b', 'c', 'd')
  now = [0.0]
  monkeypatch.setattr(sweep.time, 'monotonic', lambda: now[0])
  states = dict.fromkeys(runs, sweep.State('to do', 0))
  pace = sweep._Pace(states)
  states |= {
    runs[0]: sweep.State('failed', 9),
    runs[1]: sweep.State('done', 10),
    runs[2]: sweep.State('running', 5),
  }
  now[0] = 60.0
  # It did a run and a half in a minute, and has a run and a half to go.
  assert 'about 0:01:00 left' in pace.line(states)
  assert '1 done, 1 running, 1 failed' in pace.line(states)


def test_runs_of_a_killed_sweep_count_as_jobs(tmp_path, monkeypatch):
  runs = fakes(tmp_path, 'work', 'work', 'done')
  for run in runs[:2]:
    run.workdir.mkdir(parents=True)
  orphans = [subprocess.Popen(run.command) for run in runs[:2]]
  until(lambda: all((run.workdir / 'run.json').exists() for run in runs[:2]))
  real, started = sweep.LocalRuns.step, []

  def step(self):
    more = real(self)
    started.append(len(self._processes))
    if len(started) == 5:
      for run in runs[:2]:
        (run.workdir / 'seen').touch()
        (run.workdir / 'enough').touch()
    return more

  monkeypatch.setattr(sweep.LocalRuns, 'step', step)
  assert run_locally(runs)[0] == 0
  for orphan in orphans:
    orphan.wait()
  assert started[:5] == [0] * 5
  assert starts(tmp_path) == [run.point for run in runs]


@pytest.mark.parametrize('jobs', [1, 3])
def test_no_more_at_a_time_than_jobs(tmp_path, jobs):
  runs = fakes(tmp_path, *['slow'] * (jobs + 1))
  (tmp_path / 'together').write_text(str(jobs))
  status, text = run_locally(runs, jobs)
  assert status == 0
  most = [int((run.workdir / 'most').read_text()) for run in runs]
  assert max(most) == jobs
  assert f'{jobs + 1} done' in text
  assert '100%' in text
  assert '0-slow seed 0: done' in text


def test_a_signal_stops_the_runs_with_a_checkpoint(tmp_path):
  runs = fakes(tmp_path, 'wait', 'wait', 'done')
  stop = Signals([run.workdir / 'waits' for run in runs[:2]])
  assert run_locally(runs, 2, stop)[0] == 128 + signal.SIGINT
  for run in runs[:2]:
    assert read_run(run.workdir / 'run.json')['status'] == 'interrupted'
  assert sweep.state(runs[2]).status == 'to do'


def test_a_second_signal_kills_what_will_not_stop(tmp_path):
  [run] = fakes(tmp_path, 'stubborn')
  # The second one comes while it waits for the run.
  stop = Signals([run.workdir / 'waits'], [run.workdir / 'told'])
  began = time.monotonic()
  assert run_locally([run], 1, stop)[0] == 128 + signal.SIGINT
  assert time.monotonic() - began < 30
  assert sweep.state(run).status == 'interrupted'


def test_processes_share_out_the_memory_of_a_gpu(tmp_path, monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  code = "import os; print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'))"
  for jobs, share in ((1, 'None'), (2, '0.45')):
    command = (sys.executable, '-c', code)
    run = sweep.Run('a', 0, 1, tmp_path / str(jobs), command, {})
    run_locally([run], jobs)
    assert run.log.read_text().strip() == share


# The real command, with real runs.


def test_killed_it_finishes_every_point_exactly_once(tmp_path, capsys):
  config = 'imagenet_sync:smoke'  # It has two points.
  keys = ('--config.num_steps=20', '--config.num_devices=1', *DNN)
  keys += ('--config.checkpoint_interval_steps=2',)
  where = (f'--config={config}', f'--workdir={tmp_path}')
  line = [sys.executable, '-m', 'experiments.sweep', *where, *keys]
  done, other = plan(tmp_path, *keys, config=config)
  finish(done)
  with start_process(line):
    # It is after a checkpoint, at step 2, and before the end.
    until(lambda: 4 <= sweep.state(other).step < 20)
    # Kill the sweep and its processes, as when a machine loses power.
    subprocess.run(['pkill', '-KILL', '-f', str(tmp_path)])
  assert sweep.main(line[3:]) == 0
  assert '2 done' in capsys.readouterr().out
  told = read_run(other.workdir / 'run.json')
  assert told['status'] == 'done'
  assert told['resumed']
  # A row of an exchange may repeat another, for another publication.
  found = [
    (row['step'], row['member'], row['kind'])
    for row in read_rows(other.workdir / 'rows.jsonl')
    if row['kind'] != 'exchange'
  ]
  assert len(set(found)) == len(found)
  assert sum(kind == 'final' for _, _, kind in found) == 1
  assert sum(kind == 'train' for _, _, kind in found) == 20
  # Finished runs have not been touched; now nothing is left to start.
  before = other.log.read_bytes()
  assert sweep.main(line[3:]) == 0
  assert other.log.read_bytes() == before
  assert not done.log.exists()


def test_two_points_of_one_name_are_an_error_of_the_config(monkeypatch):
  points = [{'codistill.delay_steps': 1}, {'other.delay_steps': 1}]
  monkeypatch.setattr(sweep.config_lib, 'points', lambda label: points)
  with pytest.raises(UserError, match='share a name'):
    sweep.plan(STALENESS, 1, ROOT, [])


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with processes.stop_signals() as stop:
      signal.raise_signal(signal.SIGHUP)
      assert not stop
      signal.raise_signal(signal.SIGTERM)
      assert stop == [signal.SIGTERM]
  finally:
    signal.signal(signal.SIGHUP, before)
