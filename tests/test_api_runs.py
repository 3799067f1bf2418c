# SPDX-License-Identifier: Apache-2.0
"""The Python interface to whole data sets: options are passed on, all of them."""

import dataclasses
import inspect

import byte_model
import pytest
import tiny_runtime

import specstream_jax as ss
from specstream_jax import mesh, partitioning
from specstream_jax.data import records
from specstream_jax.workflows import adapt, bench, check, export, train

# What is left to `specstream bench`.
NOT_OF_COMPARE = {
  *('external', 'num_samples', 'drafters', 'max_prompt_tokens', 'overwrite'),
  *('sampling', 'synthetic_acceptance'),
}


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def other(value):
  """A value of the same type that is not the default."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return value[:1] * 2
  return {'auto': 'lossless', None: ('prompt_lookup',)}.get(value, value)


@pytest.mark.parametrize(
  ('function', 'module', 'left_out'),
  [
    (ss.adapt, adapt, {'chat', 'compare_lora'}),
    (ss.compare, bench, NOT_OF_COMPARE),
    (ss.check, check, set()),
    (ss.export, export, set()),
  ],
)
def test_signatures_say_every_option_and_pass_it_on(
  model, monkeypatch, function, module, left_out
):
  passed = {}

  def take(*args, **_):
    [passed['options']] = (a for a in args if isinstance(a, module.Options))

  name = 'bench' if module is bench else function.__name__
  monkeypatch.setattr(module, name, take)
  found = inspect.signature(function).parameters
  fields = [f for f in dataclasses.fields(module.Options) if f.name in found]
  names = {f.name for f in dataclasses.fields(module.Options)}
  assert names - found.keys() <= left_out
  assert all(
    found[f.name].default == f.default
    for f in fields
    if f.name != 'drafters' or module is check
  )
  given = {f.name: other(f.default) for f in fields if f.name not in left_out}
  is_of_model = module in (bench, check)
  function(*((model,) if is_of_model else ('a', 'b', 'c')), **given)
  expected = module.Options(**given)
  assert passed['options'] == expected != module.Options()


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda m: ss.compare('x'), r"the model is 'x'; load one first: ss.load"),
    (
      lambda m: ss.compare(m, temperature=1),
      r"compare has no option 'temperature'; did you mean 'temperatures'\?",
    ),
    (lambda m: ss.check(m, task_name='x'), "check has no option 'task_name'"),
    (lambda m: ss.adapt('a', 'b', 'c', minutes=1), "no option 'minutes'"),
    (lambda m: ss.adapt('a', 'b', 'c', time_limit=0), 'time_limit is 0'),
    (lambda m: ss.export('a', 'b', 'c', format='x'), "format is 'x'; accepted"),
    (lambda m: ss.prepare('a', 'b', tasks='x'), "did you mean 'task'"),
    (lambda m: ss.prepare('a', 'b', task='x'), "task 'x' is not known"),
  ],
)
def test_options_that_are_not_there(model, call, message):
  with pytest.raises(ValueError, match=message):
    call(model)


def test_records_without_tensorflow(tmp_path):
  byte_model.write_model(tmp_path / 'model', byte_model.model_config())
  made = ss.prepare(str(tmp_path / 'model'), str(tmp_path / 'records'))
  assert made['num_examples'] == 256
  assert made == records.read_manifest(str(tmp_path / 'records'))


def test_training_takes_devices_of_ones_own(tmp_path, monkeypatch):
  byte_model.write_model(tmp_path / 'model', byte_model.model_config())
  devices = partitioning.Partitioner(mesh.make_mesh(mesh.MeshConfig()))
  monkeypatch.setattr(train.train_run, 'run', lambda job, *rest: job)
  folders = [str(tmp_path / name) for name in ('model', 'records', 'run')]
  recipe = ss.Recipe(stream=ss.StreamConfig(num_msa_layers=1))
  job = ss.train(*folders, recipe=recipe, partitioner=devices)
  assert job.partitioner is devices
