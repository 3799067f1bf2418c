# SPDX-License-Identifier: Apache-2.0
"""Streams beside a checkpoint, described so that another engine can run them.

The folder is an adapter of ours, which `ss.load` takes, and a JSON file that
says in plain fields what each tensor is; docs/EXPORT.md tells how they are used.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from specstream_jax import arrays, config
from specstream_jax.checkpoints import adapters, families, files

FOLDER = 'streams'
DESCRIPTION = 'speculators_config.json'
ALGORITHM = 'speculative_streaming'
MEANINGS = {
  'streams/embedding': 'P_j, added to stream j at insertion [J, D]',
  'streams/insertion/down': 'f(x) = x + x down up at insertion [D, R]',
  'streams/insertion/up': 'f(x) = x + x down up at insertion [R, D]',
  'pruning/down': 'early exit: norm(x + x down up), or without x [D, R]',
  'pruning/up': 'early exit: norm(x + x down up), or without x [R, D]',
  'coupling/down': "of the parent's embedding over its RMS [D, R]",
  'coupling/state': 'of the stream state, within silu [D, R]',
  'coupling/up': 'to what is added to the stream state [R, D]',
}


def writers(
  flat: arrays.FlatParams,
  cfg: adapters.AdapterConfig,
  model: config.ModelConfig,
  verifier: Mapping[str, str],
) -> dict[str, Callable[[str], None]]:
  """What writes each file, by its place in the exported folder.

  Args:
    flat: what stays beside the model: streams, and LoRA of lossless ones.
    cfg: of the adapter that they are, on the model that was exported.
    model: sizes of it.
    verifier: name of the model, and of a LoRA to load with it, if any.
  """
  made = adapters.writers(flat, cfg)
  said = describe(flat, cfg, model, verifier)
  made[DESCRIPTION] = functools.partial(files.write_json, value=said)
  return {f'{FOLDER}/{name}': write for name, write in made.items()}


def describe(
  flat: arrays.FlatParams,
  cfg: adapters.AdapterConfig,
  model: config.ModelConfig,
  verifier: Mapping[str, str],
) -> dict[str, Any]:
  """The contents of speculators_config.json; arguments as of `writers`."""
  stream, lora = cfg.stream, None
  if cfg.lora.rank:
    lora = dataclasses.asdict(cfg.lora) | {
      'scale': cfg.lora.scale,
      'acts_on': 'tokens of the streams',
    }
  return {
    'speculators_model_type': ALGORITHM,
    'speculators_config': {
      'algorithm': ALGORITHM,
      'default_proposal_method': 'tree',
      'proposal_methods': [
        {
          'proposal_type': 'tree',
          'speculative_tokens': cfg.tree.max_depth,
          'tree': dataclasses.asdict(cfg.tree),
        }
      ],
      'verifier': {
        **verifier,
        'architectures': [families.by_name(model.family).architecture],
        'config_hash': cfg.base_config_hash,
        'fingerprint': cfg.base_fingerprint,
      },
    },
    'streams': dataclasses.asdict(stream)
    | {
      'first_msa_layer': model.num_layers - stream.num_msa_layers,
      'hidden_size': model.hidden_size,
      'vocab_size': model.vocab_size,
    },
    'lora': lora,
    'weights': adapters.WEIGHTS,
    'tensors': {
      path: {'shape': list(leaf.shape), 'meaning': _meaning(path)}
      for path, leaf in sorted(flat.items())
    },
  }


def _meaning(path: str) -> str:
  if path in MEANINGS:
    return MEANINGS[path]
  layer, factor = path.split('/')[1], path.rpartition('/')[2]
  axes = '[in, R]' if factor == 'lora_a' else '[R, out]'
  return f'LoRA of layer {layer}, for tokens of the streams {axes}'
