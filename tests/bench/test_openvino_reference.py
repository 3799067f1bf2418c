# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI as a row of the table; the program itself is stood in for."""

import builtins
import dataclasses
import sys
import types

import byte_model
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.bench import gguf_runner, openvino_reference
from specstream_jax.workflows import bench

DECODE = config.DecodeConfig(max_new_tokens=6, eos_ids=(9,))


class Pipe:
  """Says tokens, some of them together."""

  asked = None

  def generate(self, inputs, asked, streamer):
    Pipe.asked = inputs.ids, asked
    for call in ([5], [6, 7], [9]):
      streamer.write(call)
    return types.SimpleNamespace(tokens=[[5, 6, 7, 9]])


@pytest.fixture
def package(monkeypatch):
  """The two packages, as far as they are used."""
  monkeypatch.setitem(
    sys.modules, 'openvino', types.SimpleNamespace(Tensor=np.array)
  )
  genai = types.SimpleNamespace(
    GenerationConfig=types.SimpleNamespace,
    TokenizedInputs=lambda ids, mask: types.SimpleNamespace(ids=ids),
    StreamerBase=object,
    StreamingStatus=types.SimpleNamespace(RUNNING=0),
  )
  monkeypatch.setitem(sys.modules, 'openvino_genai', genai)
  monkeypatch.setattr(
    gguf_runner.importlib.metadata, 'version', lambda name: '1'
  )


def _runner(name):
  target = types.SimpleNamespace(
    pipeline=lambda weights, has_lookup: Pipe(), threads=2, hint='f32'
  )
  return openvino_reference.OpenVinoRunner(target, name, DECODE)


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize('name', openvino_reference.NAMES)
def test_tokens_calls_and_times(name):
  made = _runner(name).generate(
    [(1, 2, 3)], [0], bucket=64, temperature=0.0, seed=0
  )
  assert made.tokens == [[5, 6, 7, 9]] and made.finish_reasons == ['eos']
  # The first tokens come of the prompt's pass.
  assert made.calls.tolist() == [2]
  assert made.prefill_seconds > 0 and made.decode_seconds > 0
  ids, asked = Pipe.asked
  assert ids.tolist() == [[1, 2, 3]] and not asked.do_sample
  assert (asked.max_new_tokens, asked.stop_token_ids) == (6, {9})
  assert hasattr(asked, 'num_assistant_tokens') == name.endswith('lookup')


@pytest.mark.usefixtures('package')
def test_weights_of_a_name():
  found = {name: _runner(name).settings for name in openvino_reference.NAMES}
  assert {name: made['weights'] for name, made in found.items()} == {
    'openvino': 'float16',
    'openvino_prompt_lookup': 'float16',
    'openvino_q8_0': 'q8_0',
    'openvino_q8_0_prompt_lookup': 'q8_0',
    'openvino_q4_0': 'q4_0',
    'openvino_q4_0_prompt_lookup': 'q4_0',
  }


@pytest.mark.usefixtures('package')
def test_one_row_and_greedy():
  runner = _runner('openvino')
  for rows, temperature in (([(1,), (2,)], 0.0), ([(1,)], 0.5)):
    with pytest.raises(ValueError, match='one row at a time, greedily'):
      runner.generate(rows, [0], bucket=8, temperature=temperature, seed=0)


def test_without_the_package_it_says_so(monkeypatch):
  real = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name == 'openvino_genai':
      raise ImportError(name=name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refuse)
  with pytest.raises(ValueError, match="pip install 'openvino-genai'"):
    bench.make_runners(
      tiny_runtime.model(), bench.Options(external=('openvino',))
    )


@pytest.mark.usefixtures('package')
def test_a_model_of_another_format_is_refused(tmp_path):
  model = tiny_runtime.model()
  byte_model.write_model(tmp_path / 'folder', byte_model.model_config())
  source = {'base': str(tmp_path / 'folder')}
  model = dataclasses.replace(model, source=source)
  with pytest.raises(ValueError, match='references read GGUF files'):
    openvino_reference.Target(model, 2)
