"""Metrics of one's own: named by a config, in rows, tables and scores."""

import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DNN, error_sentence, rows_of, run_command, stop_command
from in_process import run_script

from experiments import config as config_lib
from experiments import metrics, record
from experiments.errors import UserError
from experiments.record import read_run
from experiments.tasks import make_task
from scripts import evaluate


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A file of functions, where Python finds it."""
  folder = tmp_path / 'own'
  folder.mkdir()
  (folder / 'own_metrics.py').write_text(
    textwrap.dedent("""
      import jax.numpy as jnp


      def brier(labels, log_probs):
        right = jnp.arange(log_probs.shape[-1]) == labels[..., None]
        return ((jnp.exp(log_probs) - right) ** 2).sum(-1)


      def mean(labels, log_probs):
        return log_probs.mean()


      def task_loss(labels, log_probs):
        return labels


      def on_host(labels, log_probs):
        return float(labels[0])
    """)
  )
  (folder / 'broken').mkdir()
  (folder / 'broken/__init__.py').write_text('1 / 0\n')
  monkeypatch.syspath_prepend(folder)
  yield 'own_metrics'
  sys.modules.pop('own_metrics', None)


def test_a_metric_is_in_rows_table_and_scores(module, tmp_path, capfd):
  workdir = tmp_path / 'run'
  named = f"--config.eval_metrics=('{module}:brier',)"
  short = ('--config.num_steps=4', '--config.eval_interval_steps=2')
  done = run_command(workdir, *DNN, *short, named)
  assert done.status == 0
  assert 'brier' in capfd.readouterr().out
  experiment = done.experiment
  states = [member.state.variables for member in done.trainer.members]
  probs, labels = [], []
  for batch in experiment.eval_batches():
    there = np.asarray(batch['mask']) > 0
    labels.append(np.asarray(batch['labels'])[there])
    probs.append(
      [
        jax.nn.softmax(
          experiment.networks[0]
          .model.predict(one, jnp.asarray(batch['inputs']), ())[0]
          .logits
        )[there]
        for one in states
      ]
    )
  one, other = (np.concatenate(p) for p in zip(*probs, strict=True))
  right = np.eye(one.shape[1])[np.concatenate(labels)]
  wanted = {
    who: ((p - right) ** 2).sum(1).mean()
    for who, p in ((0, one), (1, other), ('ensemble', (one + other) / 2))
  }
  rows = rows_of(workdir)
  final = {row['member']: row for row in rows if row['kind'] == 'final'}
  found = {who: row['brier'] for who, row in final.items()}
  assert found == pytest.approx(wanted, rel=1e-5)
  assert len([row for row in rows if 'brier' in row]) == 6
  # Scored again, from its checkpoint.
  assert run_script(evaluate, workdir) == 0
  shown = capfd.readouterr().out
  assert 'brier' in shown
  for value in found.values():
    assert f'{value:.4f}' in shown


def test_functions_that_change_are_other_code(module, tmp_path, capfd):
  workdir = tmp_path / 'run'
  arguments = (
    *DNN,
    '--config.num_steps=4',
    '--config.eval_interval_steps=2',
    f"--config.eval_metrics=('{module}:brier',)",
  )
  stop_command(2, workdir, *arguments)
  with open(tmp_path / 'own/own_metrics.py', 'a') as file:
    file.write('# Changed.\n')
  record.code_hash.cache_clear()  # As a new process has it.
  assert run_command(workdir, *arguments).status == 2
  assert '--allow-code-change' in error_sentence(capfd)
  assert read_run(workdir / 'run.json')['status'] == 'interrupted'


@pytest.mark.parametrize(
  ('name', 'why'),
  [
    ('own_metrics', "name a function as 'module:function'"),
    ('own_metrics:', "name a function as 'module:function'"),
    ('no_such_module:brier', "No module named 'no_such_module'"),
    ('own_metrics:no_such', "no attribute 'no_such'"),
    ('broken.metrics:brier', 'division by zero'),
    ('sys:exit', 'which fails'),
    ('own_metrics:mean', r'gives \(\) for labels of shape \(5,\)'),
    ('own_metrics:task_loss', "rows have another 'task_loss'"),
    ('own_metrics:on_host', 'a function of jax.numpy'),
    ('own_metrics:jnp', 'not callable|which fails'),
  ],
)
def test_what_is_no_metric_is_one_sentence(module, name, why):
  task = make_task(config_lib.load('imagenet_sync:smoke').data)
  with pytest.raises(UserError, match=why):
    metrics.load((name,), task)
  # It is looked for before that.
  assert len(metrics.files((name,))) == name.startswith('own_')


def test_labels_are_those_of_the_kind_of_data(module):
  text = make_task(config_lib.load('lm_sync:smoke').data)
  clicks = make_task(config_lib.load('criteo_dnn:smoke').data)
  for task in (text, clicks):
    assert list(metrics.load((f'{module}:brier',), task)) == ['brier']
  with pytest.raises(UserError, match="another 'brier'"):
    metrics.load((f'{module}:brier',) * 2, task)
