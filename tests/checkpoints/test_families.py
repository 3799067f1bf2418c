# SPDX-License-Identifier: Apache-2.0
"""Every family: numbers of transformers, drafts, training, and back again."""

import dataclasses

import family_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config, partitioning
from specstream_jax.checkpoints import (
  families,
  huggingface,
  huggingface_config,
)
from specstream_jax.decoding import decoder, transformer_fns
from specstream_jax.drafters import none, streams
from specstream_jax.modeling import cache as cache_lib, forward

NAMES = family_models.NAMES
LENGTH = 11  # of the prompts


@pytest.mark.parametrize('name', NAMES)
def test_both_spellings_and_our_own_give_the_same_config(name):
  cfg = family_models.load(name).cfg
  old = family_models.raw_config(name, 'config_4.json')
  assert huggingface_config.parse(old, 'config_4.json') == cfg
  ours = huggingface_config.dump(cfg, dtype='float32', eos_ids=(2,))
  assert huggingface_config.parse(ours, 'ours') == cfg
  by_type = {k: v for k, v in old.items() if k != 'architectures'}
  assert huggingface_config.parse(by_type, 'no architecture') == cfg
  # An adapter on disk names the config by its hash: JSON must bring it back.
  assert config.from_json(config.ModelConfig, config.to_json(cfg)) == cfg


@pytest.mark.parametrize('name', NAMES)
def test_transformers_reads_the_same_from_our_config(name):
  auto = pytest.importorskip('transformers').AutoConfig
  cfg = family_models.load(name).cfg
  ours = huggingface_config.dump(cfg, dtype='float32', eos_ids=(2,))
  theirs = family_models.raw_config(name)
  read = lambda raw: auto.for_model(**raw).to_dict()
  ours, theirs = read(ours), read(theirs)
  skipped = {'dtype', 'eos_token_id', 'bos_token_id', 'pad_token_id'}
  skipped |= {'transformers_version', 'max_window_layers', 'rope_parameters'}
  differ = {
    key: (value, ours.get(key))
    for key, value in theirs.items()
    if key not in skipped and ours.get(key) != value
  }
  assert differ == {}
  tables = theirs.get('rope_parameters'), ours.get('rope_parameters')
  for theirs, ours in zip(*map(_leaves, tables), strict=True):
    assert theirs == pytest.approx(ours)


def _leaves(table):
  """Numbers of a table of RoPE settings that transformers reads."""
  table = dict(table or {})
  if table.get('rope_type') in ('yarn', 'longrope'):
    known = ('rope_theta', 'factor', 'short_factor', 'long_factor')
    table = {key: table[key] for key in known if key in table}
  return jax.tree.leaves(table)


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name):
  made = family_models.load(name)
  model = made.plain.merge(made.base, {})
  hidden = family_models.train_pass(model, made.text[:, :-1]).main
  logits = np.asarray(model.logits(hidden))
  got = logits[:, :LENGTH]
  np.testing.assert_allclose(got, made.logits, atol=1e-4, rtol=0)
  assert np.abs(made.logits).max() > 1
  best = logits[:, LENGTH - 1 :].argmax(-1)
  np.testing.assert_array_equal(best, made.text[:, LENGTH:])


def decode(made, built, adapter, drafter, **options):
  """What a decoder writes after the prompts, and how many drafts it took."""
  num_new = made.text.shape[1] - LENGTH
  cfg = config.DecodeConfig(max_new_tokens=num_new, prompt_bucket=LENGTH)
  keep = options.pop('keep_nodes', 0)
  fns = lambda *args: transformer_fns.model_fns(built, *args, **options)
  decoding = decoder.Decoder(
    fns(cfg.schedule, keep), drafter, cfg, prompt_model=fns()
  )
  weights = transformer_fns.Params(made.base, adapter)
  return decoding.generate(weights, made.text[:, :LENGTH].tolist())


@pytest.mark.parametrize('name', family_models.covering())
def test_drafts_leave_greedy_tokens_as_they_are(name):
  made = family_models.load(name)
  told = decode(made, made.plain, {}, family_models.Told(made.text))
  assert told.tokens == made.text[:, LENGTH:].tolist()
  # Three right drafts are taken in every call but the last.
  assert min(row[0] for row in told.accept_lengths) == 3


@pytest.mark.parametrize(
  'name',
  [
    'gemma2',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('opt', 'phi3')),
  ],
)
def test_streams_pruned_and_plain_decoding_agree(name):
  made = family_models.load(name)
  tree = config.TreeConfig('best_first', 2, 3, 6, keep_nodes=4)
  speculative = decode(
    made,
    made.built,
    made.adapter,
    streams.Streams(tree, 2),
    keep_nodes=tree.keep_nodes,
  )
  plain = decode(made, made.built, made.adapter, none.NoDraft())
  assert speculative.tokens == plain.tokens
  assert plain.tokens != made.text[:, LENGTH:].tolist()  # LoRA acts


def tree_pass(model, made, cache, first, count, num_earlier, with_streams):
  """A pass over `count` tokens in a row, from `first` on."""
  tokens = jnp.asarray(made.text[:, first : first + count])
  positions = first + jnp.arange(count)[None].repeat(2, axis=0)
  mask = jnp.tri(count, num_earlier + count, num_earlier, dtype=bool)
  mask = jnp.broadcast_to(mask[None], (2, *mask.shape))
  return forward.forward_tree(
    model, tokens, positions, mask, cache, with_streams=with_streams
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', family_models.covering('gemma2', 'olmo2'))
def test_streams_are_the_same_in_every_pass(name):
  made = family_models.load(name)
  model = made.built.merge(made.base, made.adapter)
  last = LENGTH - 1
  trained = family_models.train_pass(
    model, made.text[:, :LENGTH], jnp.full((2, 1), last)
  )
  # A prompt of 8, a node, and two more that grow the tree.
  cache = cache_lib.init(made.cfg, 2, LENGTH + 2, 'float32')
  cache = tree_pass(model, made, cache, 0, 8, 0, False).cache
  cache = dataclasses.replace(cache, length=jnp.full((2,), 8))
  cache = tree_pass(model, made, cache, 8, 1, 0, False).cache
  parallel = tree_pass(model, made, cache, 9, 2, 1, True)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5)
  close(parallel.main[:, -1], trained.main[:, last])
  close(parallel.streams[:, -1], trained.streams[:, 0])
  after = dataclasses.replace(parallel.cache, length=jnp.full((2,), LENGTH))
  deferred = forward.forward_streams(
    model, trained.insertion[:, last], jnp.full((2,), last), after
  )
  close(deferred, trained.streams[:, 0])


@pytest.mark.parametrize('name', NAMES)
def test_a_saved_model_reads_back(name, tmp_path):
  made = family_models.load(name)
  huggingface.export(tmp_path, made.cfg, made.flat)
  assert huggingface.read_config(tmp_path) == made.cfg
  again = huggingface.open_params(tmp_path, made.cfg)
  assert set(again) == set(made.flat)
  for path, leaf in made.flat.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)
  family = families.by_name(made.cfg.family)
  stored = family.tensors(made.cfg)
  assert all(partitioning.logical_axes(path) for path in made.flat)
  assert {p for one in stored.values() for p in one.paths} == set(made.flat)


REFUSED = {
  'qwen2': [
    ({'layer_types': ['odd'] * 3}, "an entry of layer_types is 'odd'"),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'; accepted: 'silu'"),
  ],
  'gemma2': [
    ({'hidden_activation': 'relu'}, "hidden_activation is 'relu'; accepted"),
    ({'sliding_window': None}, 'there is no sliding_window; write it'),
    ({'use_bidirectional_attention': True}, 'attention is True; accepted'),
  ],
  'gemma3': [
    (
      {'attn_logit_softcapping': 50.0},
      r'attn_logit_softcapping is 50\.0; accepted: None',
    ),
    (
      {'rope_parameters': {'sliding_attention': {'rope_type': 'yarn'}}},
      'rope_parameters.sliding_attention = .* is not understood',
    ),
  ],
  'opt': [
    ({'word_embed_proj_dim': 12}, 'word_embed_proj_dim is 12; accepted: hid'),
    ({'do_layer_norm_before': False}, 'do_layer_norm_before is False; accep'),
    ({'activation_function': 'tanh'}, "activation_function is 'tanh'; accep"),
    ({'rope_theta': 1e4}, 'rope_theta = 10000.0 is not understood'),
  ],
  'gpt2': [
    ({'scale_attn_weights': False}, 'scale_attn_weights is False; accepted'),
    (
      {'scale_attn_by_inverse_layer_idx': True},
      'scale_attn_by_inverse_layer_idx is True; accepted: False',
    ),
  ],
  'phi': [
    ({'qk_layernorm': True}, 'qk_layernorm is True; accepted: False'),
    ({'tie_word_embeddings': True}, 'tie_word_embeddings is True; accepted: F'),
  ],
  'phi3': [
    ({'full_attn_mod': 2}, 'full_attn_mod is 2; accepted: 1'),
    (
      {'rope_scaling': {'type': 'su', 'short_factor': [1.0]}},
      'missing RoPE long_factor',
    ),
  ],
  'gpt_neox': [({'hidden_act': 'tanh'}, "hidden_act is 'tanh'; accepted")],
  'smollm3': [
    ({'use_sliding_window': True}, 'use_sliding_window is True; accepted'),
    ({'no_rope_layers': [1]}, 'layer_kinds has 1 entries, but num_layers'),
  ],
  'olmo2': [({'clip_qkv': 8.0}, 'clip_qkv = 8.0 is not understood')],
  'granite': [
    ({'attention_multiplier': 0}, 'attention_multiplier is 0; accepted'),
  ],
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_would_change_the_maths_is_refused(name):
  raw = family_models.raw_config(name, 'config_4.json')
  for change, message in REFUSED[name]:
    with pytest.raises(ValueError, match=message):
      huggingface_config.parse(raw | change, 'config.json')


@pytest.mark.parametrize('name', ['phi', 'phi3', 'gpt_neox'])
def test_a_partial_rotary_is_read_where_either_version_keeps_it(name):
  raw = family_models.raw_config(name, 'config_4.json')
  names = ('partial_rotary_factor', 'rotary_pct', 'rope_scaling')
  bare = {k: v for k, v in raw.items() if k not in (*names, 'rope_parameters')}
  bare |= {'hidden_size': 40 * raw['num_attention_heads']}
  table = {'rope_type': 'default'}
  top = {'partial_rotary_factor': 0.4}
  found = [
    huggingface_config.parse(bare | fields, 'config.json').num_rotated
    for fields in (
      {'rope_parameters': table | top},
      {'rope_parameters': table | top, **top},
      {'rope_parameters': table} | top,
    )
  ]
  assert found == [16] * 3
  with pytest.raises(ValueError, match=r'partial_rotary_factor = 0\.4 is'):
    huggingface_config.parse(
      bare | {'rope_parameters': table | top, 'partial_rotary_factor': 0.5}, 'x'
    )


@pytest.mark.parametrize('name', NAMES)
def test_every_field_that_must_be_neutral_is_held_to_it(name):
  raw = family_models.raw_config(name, 'config_4.json')
  family = families.by_name(family_models.load(name).cfg.family)
  for field in family.neutral:
    with pytest.raises(ValueError, match=rf"refused: {field} is 'odd'; acc"):
      huggingface_config.parse(raw | {field: 'odd'}, 'config.json')
  for field, kind in family.kinds.items():
    if kind.fits({}) or field not in raw:
      continue
    with pytest.raises(ValueError, match=rf'{field} is {{}}; accepted: '):
      huggingface_config.parse(raw | {field: {}}, 'config.json')
  with pytest.raises(ValueError, match='gate_of_experts = 3 is not understood'):
    huggingface_config.parse(raw | {'gate_of_experts': 3}, 'config.json')


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (
      {'architectures': ['MixtralForCausalLM'], 'num_local_experts': 8},
      r"\['MixtralForCausalLM'\], a mixture of experts, which this package",
    ),
    (
      {'architectures': ['Gemma3ForConditionalGeneration']},
      'a multimodal model, which this package does not run',
    ),
    ({'model_type': 'mamba2'}, 'state-space or recurrent layers, which this'),
    ({'architectures': ['BloomForCausalLM']}, r"\['BloomFor.*'\]; accepted"),
  ],
)
def test_other_kinds_of_model_are_named(raw, message):
  with pytest.raises(ValueError, match=message):
    huggingface_config.parse(raw, 'config.json')


def test_a_family_without_a_place_for_a_weight():
  cfg = dataclasses.replace(family_models.load('qwen3').cfg, family='llama')
  with pytest.raises(ValueError, match="'llama' have no place for 'layers/0"):
    families.by_name('llama').tensors(cfg)
  with pytest.raises(ValueError, match=r"ModelConfig.family is 'x'; accepted"):
    families.by_name('x')
