# SPDX-License-Identifier: Apache-2.0
"""Draft models whose embedding is padded to another size than the target's."""

import byte_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.decoding import interface, transformer_fns

ENDLESS = config.SamplingConfig(ignore_eos=True)
PROMPTS = [[5, 9, 30], [200, 7]]


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """narrow/ of 257 tokens and wide/ of 263, the last of which draw all drafts."""
  root = tmp_path_factory.mktemp('padded')
  for name, size in (('narrow', 257), ('wide', 263)):
    cfg = byte_model.model_config(num_layers=1, vocab_size=size)
    byte_model.write_model(root / name, cfg)
  path = root / 'wide' / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  own = safetensors_numpy.load_file(root / 'narrow' / 'model.safetensors')
  tensors |= {k: v for k, v in own.items() if 'embed' not in k}
  table = tensors['model.embed_tokens.weight']
  table[:257] = own['model.embed_tokens.weight']
  table[257:] = 0.1  # never the largest in the target
  safetensors_numpy.save_file(tensors, path)
  return root


def test_tokens_stay_and_drafts_of_the_same_weights_are_right(root):
  model = ss.load(str(root / 'narrow'))
  drafter = f'draft_model:path={root / "wide"},branching=1,depth=2,num_nodes=3'
  plain, fast = (
    ss.generate(model, PROMPTS, max_new_tokens=9, drafter=d, sampling=ENDLESS)
    for d in ('none', drafter)
  )
  assert [row.tokens for row in fast] == [row.tokens for row in plain]
  for row in fast:
    assert sum(row.accept_lengths) > 0


def test_tokens_that_one_model_lacks_are_never_drafted():
  def fns(size):
    logits = lambda params, hidden: jnp.broadcast_to(
      jnp.arange(float(size)), (*hidden.shape[:-1], size)
    )
    return interface.ModelFns(None, None, logits, None)

  hidden = jnp.zeros((2, 3, 1))
  longer = transformer_fns.with_vocabulary(fns(5), 7).logits(None, hidden)
  np.testing.assert_array_equal(longer[0, 0, :5], np.arange(5.0))
  assert longer.shape == (2, 3, 7) and (longer[..., 5:] < -1e8).all()
  cut = transformer_fns.with_vocabulary(fns(5), 4).logits(None, hidden)
  assert cut.shape == (2, 3, 4)
