"""Clusters, as far as tests need none: Slurm, JobSet, the page."""

import contextlib
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import submitit
import yaml
from absl import flags
from commands import ROOT
from jax._src.clusters import SlurmCluster
from stand_ins import until
from submitit.core.utils import DelayedSubmission

from experiments import config as config_lib
from experiments import slurm as slurm_lib
from experiments.errors import UserError
from scripts import jobset
from scripts.launch import __main__ as launch

# Slurm: a stub sbatch keeps the script, and a stub srun runs it, as a job of
# two nodes with a task each.

TASKS = 2
TOOLS = {
  'sbatch': r"""#!/bin/sh
cat "$1" > {tools}/script
echo 'Submitted batch job 4711'
""",
  'srun': r"""#!/bin/sh
until [ "$1" = {python} ]; do shift; done
for task in 0 1; do
  (
    SLURM_NTASKS=2 SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 \
      SLURM_JOB_NUM_NODES=2 SLURM_STEP_NUM_NODES=2 \
      SLURM_STEP_NODELIST=localhost SLURM_JOB_NODELIST=localhost \
      "$@" > {tools}/out.$task 2> {tools}/err.$task
    echo $? > {tools}/ended.$task
  ) &
done
wait
! grep -qvx 0 {tools}/ended.*
""",
  'scontrol': r"""#!/bin/sh
(echo "$@"; ls {tools}/member) >> {tools}/requeued
""",
}


class Slurm:
  """A stand-in for a cluster: tools on PATH, and their folder."""

  def __init__(self, tools, workdir):
    self.tools = tools
    self.workdir = workdir
    self.member = tools / 'member'
    self.member.mkdir(parents=True)
    paths = {'tools': tools, 'python': sys.executable}
    quoted = {key: shlex.quote(str(path)) for key, path in paths.items()}
    for name, text in TOOLS.items():
      (tools / name).write_text(text.format(**quoted))
      (tools / name).chmod(0o755)

  def submit(self, *codes, jobs=2, **parameters):
    """Submits a run for each Python code, which gets the member's folder."""
    return slurm_lib.submit(
      [(sys.executable, '-c', code, str(self.member)) for code in codes],
      jobs,
      self.workdir,
      {'time': '240', 'nodes': '2', 'ntasks_per_node': '1', **parameters},
    )

  @contextlib.contextmanager
  def job(self, index=0):
    """Runs the script that was submitted, as one job of its array."""
    environment = os.environ | {
      # In Slurm each job of an array has an id of its own.
      'SLURM_JOB_ID': str(4711 + index),
      'SLURM_ARRAY_JOB_ID': '4711',
      'SLURM_ARRAY_TASK_ID': str(index),
    }
    # Slurm signals the step, and not the shells of a stub.
    line = ['bash', '-c', 'trap "" USR2 TERM; . "$0"', self.tools / 'script']
    own = {'cwd': ROOT, 'env': environment, 'start_new_session': True}
    with subprocess.Popen(line, **own) as process:
      try:
        yield process
      finally:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)

  def num_tasks(self):
    """The number of tasks of the first job that have not ended."""
    return TASKS - len(list(self.tools.glob('ended.*')))

  def have_all(self, name):
    """Whether each task has left a file of that name."""
    return len(list(self.member.glob(f'{name}.?'))) == TASKS

  def submissions(self):
    """The submissions, as submitit keeps them; the newest last."""
    found = (self.workdir / 'slurm').glob('*.pkl')
    return [*map(DelayedSubmission.load, sorted(found, key=os.path.getmtime))]

  def script(self):
    """Its #SBATCH lines, and the words of its commands."""
    fields, commands = {}, []
    for line in (self.tools / 'script').read_text().splitlines():
      if line.startswith('#SBATCH --'):
        key, equals, value = line.removeprefix('#SBATCH --').partition('=')
        assert key not in fields
        fields[key] = shlex.split(value)[0] if equals else True
      elif line and line[0] != '#':
        commands.append(shlex.split(line))
    return fields, commands

  def err(self):
    return ''.join(path.read_text() for path in self.tools.glob('err.*'))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  cluster = Slurm(tmp_path / 'tools', tmp_path / 'pair')
  monkeypatch.setenv('PATH', str(cluster.tools), prepend=os.pathsep)
  return cluster


def test_a_member_of_two_nodes_is_submitted_field_by_field(slurm):
  asked = {'partition': 'gpu', 'gpus_per_node': '8', 'cpus_per_task': '12'}
  ids = slurm.submit('pass', 'pass', jobs=1, **asked)
  assert ids == ['4711_0', '4711_1']
  folder = str(slurm.workdir / 'slurm')
  fields, commands = slurm.script()
  wanted = {key.replace('_', '-'): value for key, value in asked.items()}
  wanted |= {'array': '0-1%1', 'job-name': 'pair', 'wckey': 'submitit'}
  wanted |= {'nodes': '2', 'ntasks-per-node': '1', 'time': '240'}
  wanted |= {'requeue': True, 'signal': 'USR2@90', 'open-mode': 'append'}
  wanted |= {'error': f'{folder}/%A_%a_0_log.err'}
  wanted |= {'output': f'{folder}/%A_%a_0_log.out'}
  assert fields == wanted
  assert commands == [
    ['export', 'SUBMITIT_EXECUTOR=slurm'],
    [
      *('srun', '--unbuffered', '--output', f'{folder}/%A_%a_%t_log.out'),
      *('--error', f'{folder}/%A_%a_%t_log.err', '--kill-on-bad-exit=1'),
      *('--cpus-per-task=12', sys.executable, '-u'),
      *('-m', 'submitit.core._submit', folder),
    ],
  ]


# Starts a world of JAX from nothing but the environment of a run in a task.
WORLD = """
import json, os, sys
import jax
jax.distributed.initialize(initialization_timeout=60)
world = [jax.process_index(), jax.process_count()]
devices = os.environ.get('JAX_LOCAL_DEVICE_IDS')
print(json.dumps([*world, devices, *sys.argv[1:]]))
"""


def test_every_task_runs_the_command_in_the_world_of_its_member(slurm):
  slurm.submit(WORLD, WORLD, gpus_per_node='a100:4')
  with slurm.job(1) as process:
    assert process.wait(timeout=90) == 0, slurm.err()
  for task in range(TASKS):
    # It has all devices of its node; JAX by itself would take the first.
    world = [task, TASKS, '0,1,2,3', str(slurm.member), '--distributed']
    assert json.loads((slurm.tools / f'out.{task}').read_text()) == world


def test_a_world_is_asked_for_once_by_the_members_of_many_nodes(slurm):
  words = ['--config=imagenet_codistill:smoke', f'--workdir={slurm.workdir}']
  nodes = ['--launcher=slurm', '--slurm=time=9', '--slurm=nodes=2']
  assert launch.main([*words, *nodes]) == 0
  assert [one.function.command[-2:] for one in slurm.submissions()] == [
    (f'--member={member}', '--distributed') for member in range(2)
  ]
  # The command may ask for it already.
  two = {'time': '9', 'nodes': '2'}
  slurm_lib.submit([('python', '--distributed')], 1, slurm.workdir, two)
  assert slurm.submissions()[-1].function.command == ('python', '--distributed')
  # A job of one task is no world.
  slurm.submit('pass', nodes='1', jobs=1)
  assert '--distributed' not in slurm.submissions()[-1].function.command
  _, commands = slurm.script()
  assert not any('bad-exit' in word for word in commands[-1])


def test_two_members_that_share_a_host_do_not_meet(monkeypatch):
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'node[007-008]')
  addresses = set()
  for job in ('4711', '4712'):  # Of one array.
    monkeypatch.setenv('SLURM_JOB_ID', job)
    addresses.add(SlurmCluster.get_coordinator_address(60, None))
  assert len(addresses) == 2


# Its first life ends with a checkpoint when it is told to, the second at once.
STOP = """
import os, pathlib, signal, sys, time
here, task = pathlib.Path(sys.argv[1]), os.environ['SLURM_PROCID']
def stop(number, frame):
  time.sleep(0.3)
  (here / f'saved.{task}').touch()
  os._exit(128 + number)
if not (here / f'saved.{task}').exists():
  for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, stop)
  (here / f'ready.{task}').touch()
  time.sleep(60)
(here / f'again.{task}').touch()
"""


# The time is up, or the job is preempted.
@pytest.mark.parametrize(
  'numbers', [[signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR2]]
)
def test_all_tasks_save_and_then_one_submits_the_job_again(slurm, numbers):
  slurm.submit(STOP, STOP)
  with slurm.job(1) as process:
    until(lambda: slurm.have_all('ready'))
    for number in numbers[:-1]:
      os.killpg(process.pid, number)
      until(lambda: slurm.have_all('saved'))
      # The runs have ended; a task that did so, too, would end the job.
      time.sleep(0.5)
      assert slurm.num_tasks() == TASKS
    os.killpg(process.pid, numbers[-1])
    until((slurm.tools / 'requeued').exists)
    # The second task is there until Slurm ends it.
    until(lambda: slurm.num_tasks() < TASKS)
    time.sleep(0.5)
    assert slurm.num_tasks() == 1
  # Once, by the first task, after all had saved.
  assert (slurm.tools / 'requeued').read_text().split() == [
    *('requeue', '4711_1'),
    *('ready.0', 'ready.1', 'saved.0', 'saved.1'),
  ]
  with slurm.job(1) as process:
    assert process.wait(timeout=60) == 0, slurm.err()
  assert slurm.have_all('again')


def test_a_process_that_dies_ends_its_task_at_once(slurm):
  code = "import os; os.environ['SLURM_PROCID'] == '0' or os._exit(3)"
  slurm.submit(code, code)
  began = time.monotonic()
  with slurm.job() as process:
    assert process.wait(timeout=60) == 1
  assert time.monotonic() - began < 60
  assert 'returned non-zero exit status 3' in slurm.err()
  assert not (slurm.tools / 'requeued').exists()


def test_parameters_are_what_submitit_takes(slurm):
  given = {'exclusive': 'true', 'setup': ['module load cuda', 'export A=1']}
  given |= {'max_num_timeout': '40', 'signal_delay_s': '300'}
  slurm.submit('pass', srun_args=['--mpi=none', '-v "a b"'], **given)
  fields, commands = slurm.script()
  assert fields['exclusive'] is True
  assert fields['signal'] == 'USR2@300'
  assert commands[:2] == [['module', 'load', 'cuda'], ['export', 'A=1']]
  words = ['--kill-on-bad-exit=1', '--mpi=none', '-v', 'a b']
  assert commands[-1][6:10] == words
  [delayed] = slurm.submissions()
  assert delayed._timeout_countdown == 40
  assert 200 < delayed.function._checkpoint_seconds < 300


def test_what_slurm_does_not_take_is_one_sentence(slurm, monkeypatch):
  for parameters, sentence in (
    ({'nodes': '2-4'}, "nodes must be a number, 1 or more, not '2-4'"),
    ({'nodes': '0'}, 'nodes must be a number, 1 or more, not 0'),
    ({'ntasks_per_node': '0'}, 'must be a number, 1 or more, not 0'),
    (
      {'srun_args': ['-v', "'abc"]},
      "srun_args='abc cannot be split into words",
    ),
    ({'max_num_timeout': 'many'}, 'max_num_timeout must be a number'),
    ({'nod': '2'}, 'has no nod; did you mean nodes or nodelist?'),
    ({'additional_parameters': 'x'}, 'has no additional_parameters'),
    ({'array_parallelism': '1'}, 'has no array_parallelism'),
    ({'time': ''}, 'no time limit in minutes; add --slurm time=MINUTES'),
  ):
    with pytest.raises(UserError, match=re.escape(sentence)):
      slurm.submit('pass', **parameters)
  monkeypatch.setenv('PATH', str(slurm.workdir))
  with pytest.raises(UserError, match=r'did not take the jobs: .*srun'):
    slurm.submit('pass')
  assert not (slurm.tools / 'script').exists()


# JobSet.

SCHEMA = json.loads((ROOT / 'tests/schemas/jobset-v1alpha2.json').read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
COMMAND = ['python', '-m', 'experiments.run', '--workdir=/shared/runs/pair']
NEEDED = {'image': 'registry.example/codistill:1', 'claim': 'shared'}
TPU = {'tpu': 'tpu-v5-lite-podslice', 'topology': '4x4', 'chips': '4'}


def manifest(members=2, command=COMMAND, name='imagenet_codistill', **given):
  parameters = NEEDED | given
  return jobset.manifest(
    name=name, members=members, command=command, parameters=parameters
  )


def parts_of(document):
  """The manifest of a member; its job, its pod and its container."""
  # Everything that happens to a set happens to all its jobs, so it has one.
  [replicated] = document['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  [container] = pod['containers']
  return document, job, pod, container


def alone(**given):
  return parts_of(yaml.safe_load(manifest(members=1, **given)))


def test_a_manifest_is_what_its_schema_says():
  gpu = {'hosts': '2', 'gpus': '8', 'cpu': '96', 'memory': '900Gi'}
  for given in ({}, gpu, {'hosts': '4', 'queue': 'research', **TPU}):
    text = manifest(members=3, **given)
    assert text == manifest(members=3, **given)
    found = list(yaml.safe_load_all(text))
    for document in found:
      VALIDATOR.validate(document)
    assert len(found) == 3
    assert max(map(len, text.splitlines())) < 160


# Places in a manifest, and wrong values for them; ... takes the key away.
JOB = 'spec.replicatedJobs.0.template.spec'
POD = f'{JOB}.template.spec'
CONTAINER = f'{POD}.containers.0'
RULE = 'spec.failurePolicy.rules.0'
MUTANTS = [
  *(('', 'apiVersion', 'jobset.x-k8s.io/v1alpha1'), ('', 'spec', ...)),
  *(('metadata.labels', 'member', 0), ('spec', 'replicatedJob', [])),
  ('spec.network', 'enableDnsHostnames', True),
  ('spec.failurePolicy', 'maxRestart', 3),
  ('spec.failurePolicy', 'maxRestarts', None),
  *((RULE, 'action', 'RestartMember'), (RULE, 'name', ...)),
  *((JOB, 'backofLimit', 0), (JOB, 'completions', '2')),
  (JOB, 'completionMode', 'indexed'),
  *((POD, 'terminationGracePeriod', 5), (POD, 'containers', ...)),
  (CONTAINER, 'volumeMount', []),
  (f'{CONTAINER}.resources.limits', 'memory', '64 GB'),
]


def test_the_schema_refuses_what_is_wrong():
  VALIDATOR.check_schema(SCHEMA)
  assert 'v1alpha2 of JobSet 0.12.0' in SCHEMA['$comment']
  VALIDATOR.validate(alone(gpus='1')[0])
  for where, key, value in MUTANTS:
    at = document = alone(gpus='1')[0]
    for step in filter(None, where.split('.')):
      at = at[int(step) if step.isdecimal() else step]
    at[key] = value
    if value is ...:
      del at[key]
    assert not VALIDATOR.is_valid(document), (where, key)


def test_every_host_of_a_member_knows_its_place():
  found = yaml.safe_load_all(manifest(members=3, hosts='2', port='9000'))
  for member, document in enumerate(found):
    name = document['metadata']['name']
    assert name == f'imagenet-codistill-{member}'
    _, job, _, container = parts_of(document)
    [replicated] = document['spec']['replicatedJobs']
    assert replicated['replicas'] == 1
    # JobSet: <set>-<replicated job>-<its index>-<pod's index>.<set>
    first = f'{name}-{replicated["name"]}-0-0.{name}'
    assert container['command'] == [
      *(*COMMAND, f'--member={member}'),
      *(f'--coordinator-address={first}:9000', '--num-processes=2'),
      '--process-id=$(JOB_COMPLETION_INDEX)',
    ]
    assert container['ports'] == [{'containerPort': 9000}]
    # The subdomain is the set's name by default.
    assert document['spec']['network'] == {'enableDNSHostnames': True}
    assert (job['completions'], job['parallelism']) == (2, 2)
    assert job['completionMode'] == 'Indexed'
  # A member of one host is no world.
  *_, container = alone()
  assert container['command'] == [*COMMAND, '--member=0']


def test_a_member_that_lost_its_host_starts_again_without_being_counted():
  document, job, pod, container = alone(restarts='5', grace='300')
  action = 'RestartJobSetAndIgnoreMaxRestarts'
  rule = {'name': 'disrupted', 'action': action}
  rule['onJobFailureReasons'] = ['PodFailurePolicy']
  policy = {'maxRestarts': 5, 'rules': [rule]}
  assert document['spec']['failurePolicy'] == policy
  assert job['backoffLimit'] == 0
  evicted = {'type': 'DisruptionTarget', 'status': 'True'}
  # The status of experiments.run.
  told = {'operator': 'In', 'values': [128 + signal.SIGTERM]}
  told['containerName'] = container['name']
  # Nothing else fails a job for that reason.
  assert job['podFailurePolicy']['rules'] == [
    {'action': 'FailJob', 'onPodConditions': [evicted]},
    {'action': 'FailJob', 'onExitCodes': told},
  ]
  assert pod['restartPolicy'] == 'Never'  # A podFailurePolicy requires it.
  assert pod['terminationGracePeriodSeconds'] == 300


def volumes_of(pod):
  """Volumes, by mount point."""
  volumes = {volume.pop('name'): volume for volume in pod['volumes']}
  mounts = pod['containers'][0]['volumeMounts']
  return {mount['mountPath']: volumes[mount['name']] for mount in mounts}


def test_what_pods_have():
  given = {'gpus': '8', 'cpu': '96', 'memory': '900Gi', 'shm': '64Gi'}
  given |= {'namespace': 'research', 'queue': 'batch'}
  document, job, pod, container = alone(**given)
  assert container['image'] == NEEDED['image']
  gpus = {'nvidia.com/gpu': 8}
  requests = {'cpu': '96', 'memory': '900Gi', **gpus}
  assert container['resources'] == {'requests': requests, 'limits': gpus}
  shared = {'persistentVolumeClaim': {'claimName': 'shared'}}
  memory = {'emptyDir': {'medium': 'Memory', 'sizeLimit': '64Gi'}}
  assert volumes_of(pod) == {'/shared': shared, '/dev/shm': memory}
  assert document['metadata']['namespace'] == 'research'
  queue = 'kueue.x-k8s.io/queue-name'
  assert document['metadata']['labels'][queue] == 'batch'
  # Kueue would admit a pod with that label by itself.
  assert queue not in job['template']['metadata']['labels']


def test_a_member_on_tpus_is_a_slice():
  document, _, pod, container = alone(hosts='4', **TPU)
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  topology = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
  pool = 'cloud.google.com/gke-nodepool'
  assert document['metadata']['annotations'] == {topology: pool}


def test_nothing_gets_out_of_its_place_in_a_manifest():
  odd = ['a: "b" # c', "it's\n- two", '$(HOME)', '@name', 'θ', '--- {']
  _, _, pod, container = alone(command=odd, claim='a"b: @c')
  *words, member = container['command']
  # Kubernetes reads $$(…) as $(…) and leaves it.
  assert [word.replace('$$(', '$(') for word in words] == odd
  assert '$$(HOME)' in words
  assert member == '--member=0'
  claim = {'persistentVolumeClaim': {'claimName': 'a"b: @c'}}
  assert volumes_of(pod)['/shared'] == claim


def test_a_wrong_parameter_of_a_manifest_is_one_sentence():
  for given, sentence in (
    ({'gpu': '8'}, 'has no gpu; did you mean gpus'),
    ({'xyzzy': '8'}, 'has no xyzzy; it has image, claim'),
    ({'image': ''}, 'give --jobset image='),
    ({'claim': ''}, 'give --jobset claim='),
    ({'hosts': '0'}, "hosts is a number, 1 or more, not '0'"),
    ({'gpus': 'two'}, "gpus is a number, 0 or more, not 'two'"),
    ({'memory': '64 GB'}, "memory is a quantity such as 64Gi, not '64 GB'"),
    ({'mount': 'data'}, 'mount begins with /'),
    ({'mount': '/data'}, '--workdir is /shared/runs/pair'),
    (
      {'command': [*COMMAND, '--config.codistill.exchange_dir=/scratch']},
      'exchange_dir is /scratch, but pods share only /shared',
    ),
    ({'tpu': 'tpu-v6e-slice'}, 'TPUs need'),
    ({**TPU, 'hosts': '4', 'gpus': '1'}, 'no gpus'),
    ({**TPU, 'hosts': '2'}, 'topology 4x4 is not hosts=2 with chips=4'),
    ({**TPU, 'topology': 'square'}, 'topology is AxB'),
    ({'name': '8'}, 'no host can be called'),
    (
      {'name': 'x' * 47},
      'x-0-host-0-0-abcde is too long for the name of',
    ),
  ):
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
      manifest(**given)
    assert '\n' not in str(raised.value)
  # With Kubernetes' suffix a pod's name has 63 letters; a bucket is shared.
  bucket = '--config.codistill.exchange_dir=gs://bucket/pair'
  manifest(name='x' * 46, command=[*COMMAND, bucket])


# docs/clusters.md.

PAGE = (ROOT / 'docs/clusters.md').read_text(encoding='utf-8')


def commands():
  """`python -m …` in the page's code, as words, continued lines joined."""
  code = ''.join(PAGE.split('```')[1::2]).replace('\\\n', ' ')
  # A single quotation mark ends what ssh is given.
  found = re.findall(r'python -m ((?:"[^"\n]*"|[^"\n>])+)', code)
  return [shlex.split(line, comments=True) for line in found]


def flags_of(module, capsys):
  """The flags that a command's help shows."""
  if module == 'experiments.run':
    return {f'--{name.replace("_", "-")}' for name in flags.FLAGS}
  entry = f'{module}.__main__' if module == 'scripts.launch' else module
  main = importlib.import_module(entry).main
  with pytest.raises(SystemExit):
    main(['--help'])
  out = capsys.readouterr().out
  return set(re.findall(r'^  (?:-\w, )?(--[\w-]+)', out, re.MULTILINE))


def test_every_command_of_the_page_is_one(capsys):
  said = {word for line in commands() for word in line}
  assert {'experiments.run', 'scripts.launch', 'scripts.status'} <= said
  assert {'--launcher=slurm', '--launcher=jobset'} <= said
  of_submitit = submitit.SlurmExecutor._valid_parameters()
  parameters = {
    '--slurm': {*of_submitit, 'max_num_timeout'},
    '--jobset': jobset.PARAMETERS,
  }
  for module, *words in commands():
    known, keys = flags_of(module, capsys), {}
    given = [word.partition('=')[::2] for word in words]
    for flag, value in given:
      if flag.startswith('--config.'):
        keys[flag.removeprefix('--config.')] = value
      elif flag.startswith('--'):
        assert flag in known, (module, flag)
      if flag in parameters:
        assert value.partition('=')[0] in parameters[flag]
    if keys or module in ('experiments.run', 'scripts.launch'):
      config_lib.check_keys(config_lib.load(dict(given)['--config']), keys)


def test_links_and_the_manifest_of_the_page_can_be_used(capsys):
  for path in re.findall(r'\]\(((?!https?:)[\w/.-]+)', PAGE):
    assert (ROOT / 'docs' / path).exists(), path
  [words] = [words for _, *words in commands() if '--launcher=jobset' in words]
  assert launch.main(words) == 0
  found = list(yaml.safe_load_all(capsys.readouterr().out))
  assert found
  for document in found:
    VALIDATOR.validate(document)
  named = set(re.findall(r'^\| `(\w+)` \|', PAGE, re.MULTILINE))
  assert named == set(jobset.PARAMETERS)
