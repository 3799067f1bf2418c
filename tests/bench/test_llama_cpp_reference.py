# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as a row of the table; the program itself is stood in for."""

import builtins
import dataclasses
import sys
import types
from typing import Any

import byte_model
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.bench import gguf_runner, llama_cpp_reference
from specstream_jax.workflows import bench

DECODE = config.DecodeConfig(max_new_tokens=6, eos_ids=(9,))


class Llama:
  """Says tokens, some of them of one pass."""

  made: tuple = ()
  text = ([5], [6, 7], [9, 8])

  def __init__(self, path, **settings):
    Llama.made = (*Llama.made, settings)
    self.was_reset = False

  def reset(self):
    self.was_reset = True

  def eval(self, tokens):
    """One pass."""

  def generate(self, prompt, **asked):
    Llama.asked = prompt, asked
    assert self.was_reset
    for call in self.text:
      self.eval(call)
      yield from call


@pytest.fixture
def package(monkeypatch):
  """The package, as far as it is used."""
  lookup = types.SimpleNamespace(
    LlamaPromptLookupDecoding=types.SimpleNamespace
  )
  package = types.SimpleNamespace(Llama=Llama, llama_speculative=lookup)
  monkeypatch.setitem(sys.modules, 'llama_cpp', package)
  monkeypatch.setattr(Llama, 'made', ())
  monkeypatch.setattr(
    gguf_runner.importlib.metadata, 'version', lambda name: '1'
  )


def _runner(name):
  target: Any = llama_cpp_reference.Target.__new__(llama_cpp_reference.Target)
  target.threads, target.dtype = 2, 'float32'
  target._files = types.SimpleNamespace(path='{}.gguf'.format)
  return llama_cpp_reference.LlamaCppRunner(target, name, DECODE)


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize('name', llama_cpp_reference.NAMES)
def test_tokens_calls_and_times(name):
  made = _runner(name).generate(
    [(1, 2, 3)], [0], bucket=64, temperature=0.0, seed=0
  )
  # It stops at EOS, though more came of the last pass.
  assert made.tokens == [[5, 6, 7, 9]] and made.finish_reasons == ['eos']
  # The first token comes of the prompt's pass.
  assert made.calls.tolist() == [2]
  assert made.prefill_seconds > 0 and made.decode_seconds > 0
  assert Llama.asked[0] == [1, 2, 3] and Llama.asked[1]['temp'] == 0.0
  [settings] = Llama.made
  assert settings['n_threads'] == settings['n_threads_batch'] == 2
  assert bool(settings['draft_model']) == name.endswith('lookup')


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize(
  ('name', 'weights'),
  [('llama_cpp', 'float32'), ('llama_cpp_q4_0_prompt_lookup', 'q4_0')],
)
def test_weights_of_a_name(monkeypatch, name, weights):
  paths = []
  monkeypatch.setattr(
    Llama, '__init__', lambda self, path, **_: paths.append(path)
  )
  runner = _runner(name)
  runner._make_room(9)
  assert paths == [f'{weights}.gguf'] and runner.settings['weights'] == weights


@pytest.mark.usefixtures('package')
def test_it_stops_at_the_length_that_is_asked_for(monkeypatch):
  monkeypatch.setattr(Llama, 'text', [[4]] * 9)
  made = _runner('llama_cpp').generate(
    [(1,)], [0], bucket=8, temperature=0.0, seed=0
  )
  assert made.tokens == [[4] * 6] and made.finish_reasons == ['length']
  assert made.calls.tolist() == [5]


@pytest.mark.usefixtures('package')
def test_it_is_loaded_anew_for_longer_prompts_alone():
  runner = _runner('llama_cpp')
  for bucket in (64, 32, 400):
    runner.generate([(1,)], [0], bucket=bucket, temperature=0.0, seed=0)
  assert [settings['n_ctx'] for settings in Llama.made] == [256, 512]


@pytest.mark.usefixtures('package')
def test_one_row_and_greedy():
  runner = _runner('llama_cpp')
  for rows, temperature in (([(1,), (2,)], 0.0), ([(1,)], 0.5)):
    with pytest.raises(ValueError, match='one row at a time, greedily'):
      runner.generate(rows, [0], bucket=8, temperature=temperature, seed=0)


def test_without_the_package_it_says_so(monkeypatch):
  real = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name == 'llama_cpp':
      raise ImportError(name=name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refuse)
  with pytest.raises(ValueError, match="pip install 'llama-cpp-python'"):
    bench.make_runners(
      tiny_runtime.model(), bench.Options(external=('llama_cpp',))
    )


@pytest.mark.usefixtures('package')
def test_a_model_of_another_format_is_refused(tmp_path):
  model = tiny_runtime.model()
  byte_model.write_model(tmp_path / 'folder', byte_model.model_config())
  source = {'base': str(tmp_path / 'folder')}
  model = dataclasses.replace(model, source=source)
  with pytest.raises(ValueError, match=r'llama.cpp references read GGUF files'):
    llama_cpp_reference.Target(model, 2)
