"""Writes jobset-v1alpha2.json, from the models of a package of PyPI.

JobSet publishes its CRD in no package that we know. Kubeflow Trainer publishes
models of it in Python, generated from JobSet's own OpenAPI document and that of
Kubernetes: every kind, field, type, list and requirement, and most enumerations
(the CRD's rules in CEL, and those of the webhook, are in neither).

  python3 -m venv /tmp/schema
  /tmp/schema/bin/pip install kubeflow-trainer-api==2.3.0
  /tmp/schema/bin/python tests/schemas/make_jobset.py
"""

from __future__ import annotations

import inspect
import json
import pathlib
import re
from importlib import import_module, metadata
from typing import Any

_OUT = pathlib.Path(__file__).with_name('jobset-v1alpha2.json')
_PACKAGE = 'kubeflow-trainer-api'
# What Trainer 2.3.0 is built with, by its go.mod.
_JOBSET, _KUBERNETES = '0.12.0', '1.36'
_VERSION = 'jobset.x-k8s.io/v1alpha2'
_ENUM = re.compile(
  r"@field_validator\('(\w+)'\)\s+def \w+_validate_enum.*?"
  r'not in set\(\[(.*?)\]\)',
  re.DOTALL,
)
_VALID = re.compile(r'Valid values are ((?:\w+, )+\w+)\.')
# Kubernetes writes both as a number or text; of a quantity it says which.
_SPECIAL = {
  'IoK8sApimachineryPkgApiResourceQuantity': {
    'anyOf': [
      {'type': 'integer'},
      {
        'type': 'string',
        'pattern': r'^[+-]?(\d+(\.\d*)?|\.\d+)'
        r'([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$',
      },
    ]
  },
  'IoK8sApimachineryPkgUtilIntstrIntOrString': {
    'anyOf': [{'type': 'integer'}, {'type': 'string'}]
  },
}


def main() -> None:
  """Writes the schema."""
  models = import_module('kubeflow_trainer_api.models')
  whole = models.JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
  definitions = whole.pop('$defs')
  whole = _object(models.JobsetV1alpha2JobSet, whole)
  whole['properties']['apiVersion'] = {'const': _VERSION}
  whole['properties']['kind'] = {'const': 'JobSet'}
  whole['required'] = ['apiVersion', 'kind', 'metadata', 'spec']
  schema = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    '$comment': f'{_VERSION} of JobSet {_JOBSET}, with the Jobs and Pods of '
    f'Kubernetes {_KUBERNETES}. Made by make_jobset.py from {_PACKAGE} '
    f'{metadata.version(_PACKAGE)} of PyPI (Apache-2.0, The Kubeflow Authors): '
    'without descriptions, and stricter in that an unknown field is an error, '
    'which the API server would drop in silence.',
    **whole,
    '$defs': {
      name: _SPECIAL.get(name) or _object(getattr(models, name), definition)
      for name, definition in sorted(definitions.items())
    },
  }
  _OUT.write_text(json.dumps(schema, indent=1, sort_keys=False) + '\n')
  print(_OUT, _OUT.stat().st_size, 'bytes')


def _object(model: type, schema: dict[str, Any]) -> dict[str, Any]:
  """The schema of one kind, closed, with the enumerations of its fields."""
  properties = {}
  for alias, field in schema['properties'].items():
    properties[alias] = _plain(field)
  for name, values in _ENUM.findall(inspect.getsource(model)):
    # As it is in the source: 'A', 'B'.
    alias = model.model_fields[name].alias or name
    _element(properties[alias])['enum'] = re.findall(r"'([^']*)'", values)
  for name, field in model.model_fields.items():
    if found := _VALID.search(field.description or ''):
      alias = field.alias or name
      _element(properties[alias])['enum'] = found[1].split(', ')
  closed = {'type': 'object', 'properties': properties}
  if required := schema.get('required'):
    closed['required'] = required
  return {**closed, 'additionalProperties': False}


def _plain(schema: Any) -> Any:
  """Without descriptions, and without null, which means the same as nothing."""
  if isinstance(schema, list):
    return [_plain(part) for part in schema]
  if not isinstance(schema, dict):
    return schema
  parts = schema.get('anyOf', [])
  others = [part for part in parts if part != {'type': 'null'}]
  if len(parts) == 2 and len(others) == 1:
    return _plain(others[0])
  return {
    key: _plain(value)
    for key, value in schema.items()
    if key not in ('default', 'description', 'title')
  }


def _element(schema: dict[str, Any]) -> dict[str, Any]:
  return schema.get('items') or schema.get('additionalProperties') or schema


if __name__ == '__main__':
  main()
