# SPDX-License-Identifier: Apache-2.0
"""Logits of saved transformers models, read from their folders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax.checkpoints import loading
from specstream_jax.modeling import build, forward, params

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

ROPE = {
  'default': None,
  'linear': {'rope_type': 'linear', 'factor': 3.0, 'rope_theta': 500.0},
  'llama3': {
    'rope_type': 'llama3',
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
    'rope_theta': 500.0,
  },
}


def our_logits(folder, tokens):
  loaded = loading.load_model(folder)
  built = build.build(loaded.config)
  base = params.unflatten(
    {path: jnp.asarray(leaf) for path, leaf in loaded.params.items()}
  )

  @jax.jit
  def run(base, tokens):
    model = built.merge(base, {})
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = jnp.ones_like(tokens)
    hidden = forward.forward_train(model, tokens, positions, segments)
    return model.logits(hidden.main)

  return np.asarray(run(base, tokens))


@pytest.mark.parametrize(
  'heads, kv_heads, head_dim, tied, rope',
  [
    (6, 6, 10, True, 'default'),
    (6, 2, 14, False, 'linear'),
    (6, 1, 10, False, 'llama3'),
  ],
)
def test_logits_match(tmp_path, heads, kv_heads, head_dim, tied, rope):
  torch.manual_seed(0)
  settings = {} if ROPE[rope] is None else {'rope_parameters': ROPE[rope]}
  cfg = transformers.LlamaConfig(
    vocab_size=53,
    hidden_size=30,
    intermediate_size=41,
    num_hidden_layers=3,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=head_dim,
    max_position_embeddings=128,
    tie_word_embeddings=tied,
    initializer_range=0.3,
    **settings,
  )
  theirs = transformers.LlamaForCausalLM(cfg).eval()
  theirs.save_pretrained(tmp_path)
  tokens = np.random.default_rng(0).integers(0, 53, (2, 71))
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.float().numpy()
  got = our_logits(str(tmp_path), jnp.asarray(tokens, jnp.int32))
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
