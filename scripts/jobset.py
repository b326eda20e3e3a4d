"""Makes a manifest for Kubernetes: a JobSet a member, a pod a host.

One JobSet for all members would not do, because a member that fails must not
stop the others: when one of its Jobs fails, a JobSet restarts all of them or
ends. (Restarting that one alone is alpha in JobSet 0.12, and off.)
"""

from __future__ import annotations

import difflib
import json
import math
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import UserError

_TEMPLATE = pathlib.Path(__file__).with_suffix('.yaml')
_EXCLUSIVE = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
_NODE_POOL = 'cloud.google.com/gke-nodepool'
# Limit of DNS labels, and a pod's name must be one.
_MOST_LETTERS = 63

# The meaning and the default of each; '' is none.
PARAMETERS = {
  'image': ('image with this repository as its working directory', ''),
  'claim': ('PersistentVolumeClaim that pods on many nodes can write', ''),
  'mount': ('where pods see it; --workdir is below', '/shared'),
  'hosts': ('pods of a member', '1'),
  'gpus': ('NVIDIA GPUs of a pod', '0'),
  'tpu': ('kind of TPU, as GKE labels its nodes', ''),
  'topology': ("topology of a member's TPU slice, as in GKE", ''),
  'chips': ('TPU chips of a pod', '0'),
  'cpu': ('processors of a pod', ''),
  'memory': ('memory of a pod, such as 64Gi', ''),
  'shm': ('part of that memory that may be shared memory', '8Gi'),
  'restarts': ('restarts of a member, without those after preemption', '20'),
  'grace': ('seconds for a checkpoint before a pod is stopped', '120'),
  'port': ('port at which the hosts of a member meet', '8476'),
  'name': ("name of the run; the config's if ''", ''),
  'namespace': ('Kubernetes namespace', 'default'),
  'queue': ('Kueue queue', ''),
}
# Folders that all pods must see.
_SHARED = ('--workdir', '--config.codistill.exchange_dir')
_REQUIRED = ('image', 'claim')
_QUANTITIES = {'cpu': '8', 'memory': '64Gi', 'shm': '8Gi'}
_QUANTITY = re.compile(r'\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?')


class _Template(string.Template):
  delimiter = '@'  # Kubernetes has $(…).


def manifest(
  *,
  name: str,
  members: int,
  command: Sequence[str],
  parameters: Mapping[str, str],
) -> str:
  """Makes a manifest for `kubectl apply`.

  Args:
    name: of the run, unless a parameter sets another.
    members: how many.
    command: of a member in its container, without --member and without the
      flags of `jax.distributed`.
    parameters: see `PARAMETERS`.

  Returns:
    YAML: a JobSet a member; the same for the same arguments.

  Raises:
    UserError: for a parameter that is unknown, missing, or makes no sense.
  """
  given = _check(parameters)
  run = _dns_label(given['name'] or name)
  values = _values(given)
  _check_paths(command, given['mount'])
  template = _Template(_TEMPLATE.read_text(encoding='utf-8'))
  documents = []
  for member in range(members):
    jobset = f'{run}-{member}'
    # Kubernetes ends a pod's name with five letters, and JobSet checks it all.
    longest = f'{jobset}-host-0-{values["hosts"] - 1}-abcde'
    if len(longest) > _MOST_LETTERS:
      raise UserError(
        f'{longest} is too long for the name of a pod; shorten --jobset name=…'
      )
    # JobSet names a pod by the set, the replicated job, its index, the pod's.
    first = f'{jobset}-host-0-0.{jobset}'
    labels = {'codistill/run': run, 'codistill/member': str(member)}
    queue = {'kueue.x-k8s.io/queue-name': given['queue']}
    own = {
      'name': jobset,
      'labels': {**labels, **(queue if given['queue'] else {})},
      'pod_labels': labels,
    }
    words = _words(
      command, member, values['hosts'], f'{first}:{values["port"]}'
    )
    documents.append(
      template.substitute(
        {key: _yaml(value) for key, value in {**values, **own}.items()},
        run=run,
        member=member,
        members=members,
        first=first,
        command='\n'.join(f'{" " * 20}- {_yaml(word)}' for word in words),
      )
    )
  return '---\n'.join(documents)


def _values(given: Mapping[str, str]) -> dict[str, Any]:
  """Values that all members share, by their names in the template."""
  hosts = _count(given, 'hosts', 1)
  port = _count(given, 'port', 1)
  tpu = _tpu(given, hosts)
  return {
    'namespace': given['namespace'],
    # Each member gets a whole slice of its own.
    'annotations': {_EXCLUSIVE: _NODE_POOL} if tpu else {},
    'restarts': _count(given, 'restarts', 0),
    'hosts': hosts,
    'grace': _count(given, 'grace', 1),
    'selector': {
      'cloud.google.com/gke-tpu-accelerator': given['tpu'],
      'cloud.google.com/gke-tpu-topology': given['topology'],
    }
    if tpu
    else {},
    'image': given['image'],
    'port': port,
    'resources': _resources(given),
    'mount': given['mount'],
    'claim': given['claim'],
    'shm': given['shm'],
  }


def _words(
  command: Sequence[str], member: int, hosts: int, address: str
) -> list[str]:
  """The command of a member's host; Kubernetes fills in the host's number."""
  # A literal $( is written $$(.
  words = [word.replace('$(', '$$(') for word in command]
  words.append(f'--member={member}')
  if hosts > 1:
    words += [
      f'--coordinator-address={address}',
      f'--num-processes={hosts}',
      '--process-id=$(JOB_COMPLETION_INDEX)',
    ]
  return words


def _check_paths(command: Sequence[str], mount: str) -> None:
  for argument in command:
    flag, _, value = argument.partition('=')
    below = pathlib.PurePosixPath(value).is_relative_to(mount)
    is_bucket = flag != '--workdir' and '://' in value
    if flag in _SHARED and value and not (below or is_bucket):
      raise UserError(
        f'{flag} is {value}, but pods share only {mount}; choose a folder '
        'below it, or set --jobset mount=DIR'
      )
    if flag == '--config' and value.startswith('/') and not below:
      raise UserError(
        f'--config is {value}, which pods do not have; put it below {mount}, '
        'or into the repository that the image is made of'
      )


def _yaml(value: Any) -> str:
  """A value as JSON, which is YAML for any content."""
  return json.dumps(value, ensure_ascii=False)


def _check(parameters: Mapping[str, str]) -> dict[str, str]:
  """All parameters, with defaults for those that are not given."""
  for key in parameters:
    if key not in PARAMETERS:
      near = difflib.get_close_matches(key, PARAMETERS)
      hint = (
        f'did you mean {" or ".join(near)}?'
        if near
        else f'it has {", ".join(PARAMETERS)}'
      )
      raise UserError(f'--jobset has no {key}; {hint}')
  given = {
    key: parameters.get(key, default)
    for key, (_, default) in PARAMETERS.items()
  }
  for key in _REQUIRED:
    if not given[key]:
      raise UserError(f'give --jobset {key}=…, the {PARAMETERS[key][0]}')
  for key, example in _QUANTITIES.items():
    if given[key] and not _QUANTITY.fullmatch(given[key]):
      raise UserError(
        f'--jobset {key} is a quantity such as {example}, not {given[key]!r}'
      )
  if not given['mount'].startswith('/'):
    raise UserError(f'--jobset mount begins with /, not {given["mount"]!r}')
  return given


def _count(given: Mapping[str, str], key: str, least: int) -> int:
  if not given[key].isdecimal() or int(given[key]) < least:
    raise UserError(
      f'--jobset {key} is a number, {least} or more, not {given[key]!r}'
    )
  return int(given[key])


def _dns_label(name: str) -> str:
  """Turns a name into one that a host can have."""
  label = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
  if not label or not label[0].isalpha():
    raise UserError(f'no host can be called {name!r}; set --jobset name=…')
  return label


def _tpu(given: Mapping[str, str], hosts: int) -> bool:
  """Whether pods have TPUs; refuses parameters of TPUs that do not fit."""
  chips = _count(given, 'chips', 0)
  said = [bool(given['tpu']), bool(given['topology']), chips > 0]
  if not any(said):
    return False
  if not all(said) or _count(given, 'gpus', 0):
    raise UserError(
      'TPUs need --jobset tpu=KIND, topology=AxB and chips=N of each pod, and '
      'no gpus'
    )
  sides = given['topology'].split('x')
  if not all(side.isdecimal() for side in sides):
    raise UserError(
      f'--jobset topology is AxB or AxBxC, not {given["topology"]!r}'
    )
  if math.prod(int(side) for side in sides) != hosts * chips:
    raise UserError(
      f'a slice of topology {given["topology"]} is not hosts={hosts} with '
      f'chips={chips} each'
    )
  return True


def _resources(given: Mapping[str, str]) -> dict[str, dict[str, str | int]]:
  accelerators = {
    'nvidia.com/gpu': _count(given, 'gpus', 0),
    'google.com/tpu': _count(given, 'chips', 0),
  }
  limits = {key: count for key, count in accelerators.items() if count}
  requests = {key: given[key] for key in ('cpu', 'memory') if given[key]}
  return {'requests': {**requests, **limits}, 'limits': limits}
