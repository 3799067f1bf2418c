# SPDX-License-Identifier: Apache-2.0
"""Writes the tiny checkpoints and reference numbers of `test_families.py`.

Needs torch and transformers 5, which the tests do not:

  python tests/golden/make_families.py [--check] [FAMILY …]

--check makes all but the weights anew from what is stored, and compares.

Every family gets a folder: config.json in version 5's spelling and
config_4.json in version 4's, float16 weights, and what transformers makes of
them in float32: logits of two prompts and their greedy continuations.
"""

import copy
import functools
import json
import pathlib

import golden_files
import numpy as np
from safetensors import numpy as safetensors_numpy
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'families'
PROMPTS, NEW_TOKENS = (2, 11), 14
LEAST_MARGIN, LEAST_DISTINCT = 0.01, 4
SIZES = {
  'vocab_size': 61,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 10,
  'max_position_embeddings': 64,
  'bos_token_id': 1,
  'eos_token_id': None,
  'pad_token_id': 0,
}
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 500.0,
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
LONGROPE = {
  'rope_type': 'longrope',
  'rope_theta': 500.0,
  'short_factor': [1.0, 1.5, 2.0],
  'long_factor': [1.0, 3.0, 9.0],
}
# A sliding window that both prompt and continuation outgrow.
WINDOW = 6


def without(*names):
  return {name: SIZES[name] for name in SIZES if name not in names}


# Family -> (class of its config, settings).
MODELS = {
  'llama_yarn': (
    transformers.LlamaConfig,
    SIZES | {'rope_parameters': YARN, 'attention_bias': True, 'mlp_bias': True},
  ),
  'llama_dynamic': (
    transformers.LlamaConfig,
    SIZES
    | {
      'max_position_embeddings': 16,
      'rope_parameters': {
        'rope_type': 'dynamic',
        'factor': 3.0,
        'rope_theta': 500.0,
      },
    },
  ),
  'mistral': (transformers.MistralConfig, SIZES | {'sliding_window': WINDOW}),
  'qwen2': (
    transformers.Qwen2Config,
    without('head_dim')
    | {
      'use_sliding_window': True,
      'sliding_window': WINDOW,
      'max_window_layers': 1,
      'tie_word_embeddings': True,
    },
  ),
  'qwen3': (transformers.Qwen3Config, SIZES | {'rope_parameters': YARN}),
  'gemma': (transformers.GemmaConfig, SIZES | {'num_key_value_heads': 1}),
  'gemma2': (
    transformers.Gemma2Config,
    SIZES
    | {
      'sliding_window': WINDOW,
      'query_pre_attn_scalar': 7,
      'attn_logit_softcapping': 5.0,
      'final_logit_softcapping': 8.0,
    },
  ),
  'gemma3': (
    transformers.Gemma3TextConfig,
    SIZES
    | {
      'num_hidden_layers': 4,
      'sliding_window': WINDOW,
      'layer_types': ['sliding_attention', 'full_attention'] * 2,
      'query_pre_attn_scalar': 7,
      'rope_parameters': {
        'full_attention': {
          'rope_type': 'linear',
          'factor': 4.0,
          'rope_theta': 1000.0,
        },
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
      },
    },
  ),
  'opt': (
    transformers.OPTConfig,
    {
      'vocab_size': 61,
      'hidden_size': 24,
      'word_embed_proj_dim': 24,
      'ffn_dim': 28,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'max_position_embeddings': 40,
      'eos_token_id': None,
    },
  ),
  'gpt2': (
    transformers.GPT2Config,
    {
      'vocab_size': 61,
      'n_embd': 24,
      'n_inner': 28,
      'n_layer': 3,
      'n_head': 4,
      'n_positions': 40,
      'bos_token_id': 1,
      'eos_token_id': None,
    },
  ),
  'phi': (
    transformers.PhiConfig,
    without('head_dim')
    | {
      'hidden_size': 32,
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': 500.0,
        'partial_rotary_factor': 0.5,
      },
    },
  ),
  'phi3': (
    transformers.Phi3Config,
    without('head_dim')
    | {
      'hidden_size': 32,
      'original_max_position_embeddings': 32,
      'partial_rotary_factor': 0.75,
      'rope_parameters': LONGROPE,
      'sliding_window': WINDOW,
    },
  ),
  'gpt_neox': (
    transformers.GPTNeoXConfig,
    without('head_dim', 'num_key_value_heads')
    | {
      'hidden_size': 32,
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': 500.0,
        'partial_rotary_factor': 0.5,
      },
    },
  ),
  'smollm3': (
    transformers.SmolLM3Config,
    without('head_dim')
    | {'num_hidden_layers': 4, 'no_rope_layers': [1, 0, 1, 0]},
  ),
  'olmo2': (transformers.Olmo2Config, without('head_dim')),
  'granite': (
    transformers.GraniteConfig,
    without('head_dim')
    | {
      'embedding_multiplier': 3.0,
      'residual_multiplier': 0.4,
      'attention_multiplier': 0.3,
      'logits_scaling': 2.0,
    },
  ),
}


def randomise(model, seed):
  """Weights that make every part count, as float16 holds them."""
  torch.manual_seed(seed)
  is_offset = 'Gemma' in type(model).__name__
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      noise = torch.randn(leaf.shape)
      if leaf.ndim == 1 and name.endswith('weight'):
        noise = 0.3 * noise + (0.0 if is_offset else 1.0)
      elif leaf.ndim == 1:
        noise = 0.3 * noise
      elif 'emb' in name or 'wte' in name or 'wpe' in name:
        # Scaled embeddings would drown what the layers add.
        noise = (0.2 if is_offset else 0.8) * noise
      else:
        noise = 1.5 * noise / max(leaf.shape[1], 1) ** 0.5
      leaf.copy_(noise.half().float())
  model.tie_weights()


def reference(model, prompts):
  """(logits, greedy texts, smallest margin, distinct tokens of each)."""
  with torch.no_grad():
    logits = model(prompts).logits
    text = model.generate(
      prompts,
      attention_mask=torch.ones_like(prompts),
      max_new_tokens=NEW_TOKENS,
      min_new_tokens=NEW_TOKENS,
      do_sample=False,
    )
    top = model(text).logits[:, prompts.shape[1] - 1 : -1].topk(2).values
  margin = float((top[..., 0] - top[..., 1]).min())
  new = text[:, prompts.shape[1] :]
  return logits, text, margin, min(len(set(row.tolist())) for row in new)


def version_4(raw):
  """config.json as transformers 4 wrote it."""
  raw = copy.deepcopy(raw)
  raw['torch_dtype'] = raw.pop('dtype', 'float32')
  table = raw.pop('rope_parameters', None)
  if table is None:
    return raw
  if 'full_attention' in table:
    raw['rope_local_base_freq'] = table['sliding_attention']['rope_theta']
    table = table['full_attention']
  theta = table.pop('rope_theta')
  fraction = table.pop('partial_rotary_factor', None)
  if raw['model_type'] == 'gpt_neox':
    raw |= {'rotary_emb_base': theta, 'rotary_pct': fraction}
  else:
    raw['rope_theta'] = theta
    if fraction is not None:
      raw['partial_rotary_factor'] = fraction
  # Version 5 copies this into every table, version 4 into none of these.
  if table['rope_type'] in ('dynamic', 'longrope', 'default'):
    table.pop('original_max_position_embeddings', None)
  raw['rope_scaling'] = None if table['rope_type'] == 'default' else table
  return raw


def draw(name, model, prompts):
  """Gives weights: the stored ones, if any, or the first whose text is clear.

  Returns:
    The seed of new weights.
  """
  if (FOLDER / name / 'model.safetensors').is_file():
    stored = transformers.AutoModelForCausalLM.from_pretrained(
      FOLDER / name, dtype=torch.float32
    )
    model.load_state_dict(stored.state_dict())
    return None
  for seed in range(200):
    randomise(model, seed)
    _, _, margin, distinct = reference(model, prompts)
    if margin > LEAST_MARGIN and distinct >= LEAST_DISTINCT:
      return seed
  raise SystemExit(f'{name}: no seed gives a clear greedy text')


def write(name, folder):
  """One family's folder."""
  cls, settings = MODELS[name]
  cfg = cls(**copy.deepcopy(settings))
  cfg._attn_implementation = 'eager'
  model = transformers.AutoModelForCausalLM.from_config(cfg).float().eval()
  prompts = torch.tensor(
    np.random.default_rng(7).integers(3, 61, PROMPTS), dtype=torch.long
  )
  seed = draw(name, model, prompts)
  logits, text, margin, distinct = reference(model, prompts)
  model.half().save_pretrained(folder)
  (folder / 'generation_config.json').unlink(missing_ok=True)
  raw = json.loads((folder / 'config.json').read_text())
  old = version_4(raw)
  again = cls(**copy.deepcopy(old))
  if getattr(again, 'rope_parameters', None) != getattr(
    cfg, 'rope_parameters', None
  ):
    print(name, again.rope_parameters, cfg.rope_parameters)
  (folder / 'config_4.json').write_text(json.dumps(old, indent=1) + '\n')
  safetensors_numpy.save_file(
    {
      'logits': logits.numpy().astype(np.float32),
      'text': text.numpy().astype(np.int32),
    },
    folder / 'expected.safetensors',
  )
  print(
    f'{name}: seed {seed}, margin {margin:.3f}, {distinct} distinct, largest '
    f'logit {float(logits.abs().max()):.1f}',
    flush=True,
  )


if __name__ == '__main__':
  golden_files.main(
    FOLDER, {name: functools.partial(write, name) for name in MODELS}
  )
