# SPDX-License-Identifier: Apache-2.0
"""`specstream info PATH`: what a model, an adapter, heads or records hold."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import os
import shutil
import sys
import textwrap

from specstream_jax import config
from specstream_jax.checkpoints import (
  adapters,
  dart,
  eos,
  families,
  huggingface,
  loading,
  medusa,
  peft,
  peft_config,
  shipped,
  weights,
)
from specstream_jax.config import model as config_model
from specstream_jax.data import records

TAKES_NAMES = True  # besides flags


def define_flags() -> None:
  """This command has no flags of its own."""


def main(argv: Sequence[str]) -> None:
  """Prints a page on every path."""
  if not argv[1:]:
    raise ValueError(
      'name an adapter folder, a folder of Medusa heads or of a DART layer, a '
      'model (known name, folder, hub id, GGUF file) or a folder of records'
    )
  for path in argv[1:]:
    for line in describe(path).splitlines():
      print(_wrapped(line) if sys.stdout.isatty() else line)


def _wrapped(line: str) -> str:
  """The line in as many as the terminal needs, values below each other."""
  value = line.partition(':')[2]
  indent = len(line) - len(value.lstrip())
  width = max(shutil.get_terminal_size().columns, indent + 20)
  return textwrap.fill(
    line, width, subsequent_indent=' ' * indent, break_on_hyphens=False
  )


def describe(path: str) -> str:
  """A page of text on whatever lies at `path`.

  Raises:
    ValueError: it is none of these kinds, or is damaged.
  """
  if path in shipped.shipped_adapters() and not os.path.exists(path):
    path = shipped.adapter_folder(path)
  is_model = os.path.isfile(os.path.join(path, 'config.json'))
  if not is_model and (below := adapters.KIND.below(path)):
    path = below  # it is the folder of a run
  if peft_config.is_peft(path):
    rows = _peft_rows(path)
  elif adapters.is_adapter(path):
    rows = _adapter_rows(path)
  elif medusa.is_medusa(path):
    rows = _medusa_rows(path)
  elif dart.is_dart(path):
    rows = _dart_rows(path)
  elif os.path.isfile(os.path.join(path, records.MANIFEST)):
    rows = _records_rows(path)
  else:
    rows = _model_rows(path)
  return '\n'.join(f'{name + ":":18} {value}' for name, value in rows)


def _adapter_rows(path: str) -> Iterator[tuple[str, object]]:
  flat, cfg = adapters.load_adapter(path)
  counts, stream = adapters.parameter_counts(flat), cfg.stream
  yield 'adapter', path
  yield 'base', cfg.base_model_id
  yield 'base config', cfg.base_config_hash
  yield 'base fingerprint', cfg.base_fingerprint
  yield 'streams', f'{stream.num_streams} (γ), mode {stream.mode}'
  yield 'MSA layers', f'{stream.num_msa_layers} (N_s)'
  yield 'insertion', _fields(stream, ('insertion', 'embedding', 'position'))
  yield 'LoRA', _lora(cfg.lora)
  if cfg.folded_lora.rank:
    yield 'folded LoRA', _lora(cfg.folded_lora)
  yield 'tree', _fields(cfg.tree)
  yield (
    'stream parameters',
    f'{counts["streams"]:,} = {counts["embedding"]:,} embeddings (γh) + '
    f'{counts["pruning"]:,} pruning (2·{stream.pruning_rank}·h) + '
    f'{counts["insertion"]:,} insertion'
    + (f' + {counts["coupling"]:,} coupling' if counts['coupling'] else ''),
  )
  yield (
    'LoRA parameters',
    f'{counts["lora"]:,}'
    + (f' + {counts["folded"]:,} folded' if counts['folded'] else ''),
  )
  if cfg.eos_ids:
    yield 'EOS of its answers', eos.words(cfg.eos_ids, None)
  yield 'prompts', "chats, by the model's template" if cfg.is_chat else 'plain'
  yield from _nested('trained', cfg.provenance)


def _peft_rows(path: str) -> Iterator[tuple[str, object]]:
  cfg = peft_config.read(path)
  shapes = peft.shapes(path)
  yield 'PEFT LoRA', path
  yield 'base', cfg.base or 'not said'
  scale = ', scale α/√r' if cfg.is_rank_stabilised else ''
  yield 'LoRA', f'rank {cfg.rank}, alpha {cfg.alpha:g}{scale}'
  for kind, values in (('rank', cfg.ranks), ('alpha', cfg.alphas)):
    if values:
      pairs = (f'{pattern} {value:g}' for pattern, value in values.items())
      yield f'{kind} by module', ', '.join(pairs)
  yield (
    'modules',
    ', '.join(
      sorted({name.split('.')[-3] for name in shapes if '.lora_' in name})
    ),
  )
  yield 'LoRA parameters', f'{sum(map(math.prod, shapes.values())):,}'
  yield (
    'streams',
    f'none; `specstream train --fold_adapter={path}` teaches some',
  )


def _nested(
  name: str, values: Mapping[str, object], depth: int = 0
) -> Iterator[tuple[str, str]]:
  """A line for every dict in dicts: what it holds beside other dicts.

  Of an adapter that another one started from, its recipe is left out.
  """
  inner = {key: v for key, v in values.items() if isinstance(v, Mapping)}
  own = [
    f'{key} {_plain(v)}'
    for key, v in values.items()
    if key not in inner and v not in (None, '', [])
  ]
  if own:
    yield name, ', '.join(own)
  for key, value in inner.items():
    if key in ('init_adapter', 'fold_adapter'):
      yield from _nested(key, value, depth + 1)
    elif key == 'provenance':
      yield from _nested(name, value, depth)
    elif key == 'recipe' and not depth:
      yield from _nested('recipe', value)
    elif key != 'recipe':
      yield from _nested(f'{name} {key}', value, depth)


def _plain(value: object) -> str:
  """A value as people write it."""
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return ' '.join(map(_plain, value))
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:g}' if isinstance(value, float) else str(value)


def _lora(cfg: config.LoraConfig) -> str:
  if not cfg.rank:
    return 'none'
  return f'rank {cfg.rank}, alpha {cfg.alpha:g}, on {", ".join(cfg.modules)}'


def _medusa_rows(path: str) -> Iterator[tuple[str, object]]:
  flat, cfg = medusa.load_heads(path)
  num_heads, (width, vocab_size) = cfg.num_heads, medusa.sizes(flat)
  total = sum(leaf.size for leaf in flat.values())
  yield 'Medusa heads', path
  yield 'base', cfg.base_model_id
  yield 'adapter', cfg.adapter or 'none'
  yield 'base config', cfg.base_config_hash
  yield 'base fingerprints', ', '.join(cfg.base_fingerprints)
  yield 'heads', f'{num_heads} (γ)'
  yield 'tree', _fields(cfg.tree)
  yield (
    'head parameters',
    f'{total:,} = γ(h² + hV) + γh biases, γ = {num_heads}, h = {width}, '
    f'V = {vocab_size:,}',
  )
  streams = num_heads * width + 16 * width
  yield (
    'as streams',
    f'{streams:,} = γh + 16h, {total / streams:,.0f} times fewer',
  )
  yield from _nested('trained', cfg.provenance)


def _dart_rows(path: str) -> Iterator[tuple[str, object]]:
  flat, cfg = dart.load(path)
  total = sum(leaf.size for leaf in flat.values())
  num_masks, width = flat['masks'].shape
  yield 'DART layer', path
  yield 'base', cfg.base_model_id
  yield 'adapter', cfg.adapter or 'none'
  yield 'base config', cfg.base_config_hash
  yield 'base fingerprints', ', '.join(cfg.base_fingerprints)
  yield 'drafts', f'{cfg.num_drafts} (γ)'
  yield 'tree', _fields(cfg.tree)
  yield (
    'parameters',
    f'{total:,} of one layer, with {num_masks} masks, h = {width}',
  )
  yield from _nested('trained', cfg.provenance)


def _records_rows(path: str) -> Iterator[tuple[str, object]]:
  manifest = records.read_manifest(path)
  yield 'records', path
  for name in (
    'task',
    'split',
    'num_examples',
    'is_chat',
    'eos_id',
    'tokenizer_sha256',
  ):
    yield name, manifest.get(name)
  yield from _nested('lengths', manifest['lengths'])


def _model_rows(path: str) -> Iterator[tuple[str, object]]:
  loaded = loading.load_outline(path)
  cfg = loaded.config
  yield 'model', path
  yield (
    'family',
    f'{cfg.family} ({families.by_name(cfg.family).architecture})',
  )
  yield 'parameters', f'{weights.count(cfg):,}'
  left_out = {'dtype', 'family', 'rope_scaling', 'layer_kinds'}
  if cfg.num_learned_positions:
    left_out.add('rope_theta')
  for name, value in config_model.beyond_defaults(cfg).items():
    if isinstance(value, dict) and name != 'rope_scaling':
      yield name, ', '.join(f'{key} {_plain(v)}' for key, v in value.items())
    elif name not in left_out:
      yield name, value
  yield 'layers', _counted(cfg.kinds)
  yield 'positions', _positions(cfg)
  yield 'LoRA modules', _lora_modules(cfg)
  yield 'config hash', weights.config_hash(cfg)
  tokenizer = loading.known_tokenizer(loaded.tokenizer)
  yield 'EOS', eos.words(loaded.eos_ids, tokenizer)
  differ = eos.difference(loaded.eos_said, tokenizer)
  if differ:
    yield 'note', f'{differ}; decoding stops at all of them'
  for what in _missing(path, loaded):
    yield 'missing', what


def _counted(kinds: Sequence[str]) -> str:
  """`3 full, 2 window`, in the order in which they first come."""
  return ', '.join(
    f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)
  )


def _positions(cfg: config.ModelConfig) -> str:
  most = cfg.most_positions or cfg.max_position_embeddings
  if cfg.num_learned_positions:
    return f'a table, up to {most:,}'
  refused = ', longer texts are refused' if cfg.most_positions else ''
  return (
    f'RoPE, {cfg.rope_scaling.kind}, on {cfg.num_rotated} of {cfg.head_dim} '
    f'dims of a head, up to {most:,}{refused}'
  )


def _lora_modules(cfg: config.ModelConfig) -> str:
  """Our names, and those of the checkpoint where LoRA of PEFT has them."""
  found = []
  for name, stored in peft.linear_modules(cfg).items():
    if stored.paths[0].startswith('layers/0/'):
      ours = ', '.join(path.split('/')[3] for path in stored.paths)
      found.append(f'{ours} ({name.rpartition(".")[2]})')
  return '; '.join(found)


def _missing(path: str, loaded: loading.LoadedModel) -> Iterator[str]:
  """What commands will miss."""
  if os.path.isfile(os.path.join(path, 'config.json')):
    try:
      huggingface.open_params(path, loaded.config)
    except ValueError as error:
      yield str(error)
  if isinstance(loaded.tokenizer, loading.MissingTokenizer):
    yield f'a tokenizer: {loaded.tokenizer.reason}'
  if loaded.chat_template is None:
    yield 'a chat template; prompts are plain texts'
  if not loaded.eos_ids:
    yield 'an EOS id; decoding ends at its limit'


def _fields(cfg, names: Sequence[str] = ()) -> str:
  """`name value, …` of a config's fields, all of them by default."""
  names = names or [field.name for field in dataclasses.fields(cfg)]
  pairs = ((name, getattr(cfg, name)) for name in names)
  return ', '.join(f'{n} {v}' for n, v in pairs if v not in ((), 0))
