# SPDX-License-Identifier: Apache-2.0
"""From a base and an adapter to folders that other engines load.

LoRA is merged into a Hugging Face checkpoint, or becomes a PEFT folder; streams
lie beside it, in streams/.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
import pathlib
import shutil
from typing import Any

import numpy as np

import specstream_jax
from specstream_jax.checkpoints import (
  adapters,
  chat_format,
  draft_vocabulary,
  eos,
  fetch,
  fields as fields_lib,
  files,
  fitted,
  generation_config,
  huggingface,
  loading,
  model_card,
  ngram_table,
  peft_export,
  sidecar,
  weights,
)
from specstream_jax.config import checks
from specstream_jax.modeling import lora as lora_lib
from specstream_jax.outputs import locks

FORMATS = ('huggingface', 'peft')
DTYPES = ('float32', 'bfloat16', 'float16')
RECORD, CARD = 'export.json', 'README.md'
FORMAT_VERSION = 1
_REFERENCE = 'reference'
# Of a checkpoint's folder, as they are.
_TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  'added_tokens.json',
  *chat_format.FILES,
)
_Writers = dict[str, Callable[[str], None]]


@checks.names_options
@dataclasses.dataclass(frozen=True)
class Options:
  """How to export.

  Attributes:
    format: `huggingface`, LoRA merged, or `peft`, LoRA alone.
    dtype: of weights on disk.
    max_shard_bytes: a file holds at most so much, one tensor at least.
    overwrite: take the place of an earlier export.
  """

  format: str = 'huggingface'
  dtype: str = 'float32'
  max_shard_bytes: int = 5 * 10**9
  overwrite: bool = False

  def __post_init__(self):
    checks.option_types(self)
    checks.one_of('format', self.format, FORMATS)
    checks.one_of('dtype', self.dtype, DTYPES)
    checks.at_least('max_shard_bytes', self.max_shard_bytes, 1)


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written.

  Attributes:
    folder: of it.
    format: `huggingface`, `peft`, or `reference`: streams of an untouched base,
      which is named and not copied.
    files: names of all files.
    base: name of the base.
    has_streams: whether there are streams in streams/.
  """

  folder: str
  format: str
  files: tuple[str, ...]
  base: str
  has_streams: bool


def export(
  base: str, adapter: str | None, output_dir: str, options: Options = Options()
) -> Exported:
  """Writes what `options` ask for; all of it, or nothing new.

  Args:
    base: model name, folder, hub id or GGUF file.
    adapter: folder of an adapter or a PEFT LoRA, or one that ships; without, the
      base itself is written.
    output_dir: made if it is not there.
    options: of the export.

  Raises:
    ValueError: the folder holds something else, is in use or cannot be written;
      the adapter is of another base, or has nothing of what is asked for.
  """
  with locks.hold(output_dir, 'export'):
    old = _old_files(output_dir, options)
    loaded = loading.load_model(base, lazy=True)
    found = fitted.read(adapter, loaded) if adapter else fitted.Fitted()
    kind = _kind(found, adapter, options)
    made = _writers(base, output_dir, loaded, found, kind, options)
    record = _record(loaded, found, kind, options, sorted(made))
    made[CARD] = functools.partial(
      files.write_text, text=model_card.write(_card(output_dir, record, found))
    )
    made[RECORD] = functools.partial(files.write_json, value=record)
    files.write_all(output_dir, made)
    for name in set(old) - set(made):
      os.remove(os.path.join(output_dir, name))
  return Exported(
    output_dir, kind, tuple(made), str(loaded.source), bool(found.rest)
  )


def _kind(found: fitted.Fitted, adapter: str | None, options: Options) -> str:
  """The format, or `reference` where the base stays as it is."""
  has_lora = bool(found.folded_lora.rank)
  if options.format == 'peft' and not has_lora:
    what = (
      f'adapter {adapter!r} has' if adapter else 'without an adapter there is'
    )
    raise ValueError(
      f'{what} no LoRA of the model itself, so there is nothing to write as '
      'PEFT; use --format=huggingface'
    )
  if options.format == 'huggingface' and adapter and not has_lora:
    return _REFERENCE
  return options.format


def _old_files(output_dir: str, options: Options) -> list[str]:
  """Files of the export that is there; none if the folder is new.

  Raises:
    ValueError: it may not be written over, or holds something else.
  """
  path = os.path.join(output_dir, RECORD)
  if os.path.isfile(path):
    if not options.overwrite:
      raise ValueError(
        f'{output_dir!r} holds an export; pass --overwrite to replace it, or '
        'give another folder'
      )
    names = files.read_json(path).get('files')
    names = names if isinstance(names, list) else []
    return [name for name in names if _is_inside(output_dir, name)]
  others = [n for n in os.listdir(output_dir) if not n.startswith('.')]
  if others:
    raise ValueError(
      f'{output_dir!r} holds something other than an export '
      f'({sorted(others)[0]!r}); give another folder'
    )
  return []


def _is_inside(folder: str, name: Any) -> bool:
  """Whether a name that a file gives is that of a file in the folder."""
  if not isinstance(name, str):
    return False
  root = os.path.realpath(folder)
  path = os.path.realpath(os.path.join(root, name))
  return path.startswith(root + os.sep) and os.path.isfile(path)


def _writers(base, output_dir, loaded, found, kind, options) -> _Writers:
  """What writes each file but record and card."""
  folded = lora_lib.Folded(loaded.params, found.folded, found.folded_lora)
  made: _Writers = {}
  if kind == 'huggingface':
    made |= _model_writers(base, loaded, folded, found, options)
  elif kind == 'peft':
    made |= peft_export.writers(
      found.folded,
      found.folded_lora,
      loaded.config,
      base=_findable(base, loaded),
      dtype=options.dtype,
    )
  if found.rest:
    made |= _stream_writers(output_dir, loaded, folded, found, kind, options)
  return made


def _model_writers(base, loaded, folded, found, options) -> _Writers:
  """Checkpoint, tokenizer and generation_config.json."""
  ends = eos.union(loaded.eos_ids, found.eos_ids)
  template = loaded.chat_template or found.chat_template
  tokenizer = loading.known_tokenizer(loaded.tokenizer)
  path = loading.resolve(base)
  ids = _special_ids(path, loaded)
  made = huggingface.writers(
    loaded.config,
    folded,
    huggingface.Extras(tokenizer, template, ends, ids),
    dtype=options.dtype,
    max_shard_bytes=options.max_shard_bytes,
  )
  copied = [name for name in _TOKENIZER_FILES if (path / name).is_file()]
  if loaded.chat_template is not None or template is None:
    made |= {
      name: functools.partial(_copy, os.fspath(path / name)) for name in copied
    }
  fields: dict[str, Any] = {**ids, **loaded.generation}
  if ends:
    fields['eos_token_id'] = list(ends) if ends[1:] else ends[0]
  made[generation_config.FILE] = lambda path: files.write_json(path, fields)
  # Last, as a folder with it is taken for whole.
  made['config.json'] = made.pop('config.json')
  return made


def _findable(base: str, loaded: loading.LoadedModel) -> str:
  """What another program finds the base by: a hub id, or a whole path."""
  path = os.path.expanduser(base)
  if os.path.exists(path):
    return os.path.abspath(path)
  known = fetch.KNOWN.get(loaded.source)
  return known.hub if known else str(loaded.source)


def _special_ids(
  path: pathlib.Path, loaded: loading.LoadedModel
) -> dict[str, int]:
  """Ids of BOS and padding as the base's files name them, config.json first."""
  config_file = path / 'config.json'
  raw = files.read_json(config_file) if config_file.is_file() else {}
  own = {'bos_token_id': loaded.bos_id}
  ids = {}
  for name in ('bos_token_id', 'pad_token_id'):
    said = (held.get(name) for held in (raw, loaded.generation, own))
    found = [value for value in said if fields_lib.COUNT.fits(value)]
    if found:
      ids[name] = found[0]
  return ids


def _copy(source: str, path: str) -> None:
  shutil.copyfile(source, path)


def _stream_writers(
  output_dir, loaded, folded, found, kind, options
) -> _Writers:
  """Streams, on the model that is exported or named."""
  is_copy = kind == 'huggingface'
  dtype = np.dtype(options.dtype)
  stored = weights.LazyParams(
    loaded.config, lambda path: np.asarray(folded[path]).astype(dtype)
  )
  name = os.path.basename(os.path.abspath(output_dir))
  is_same = kind == _REFERENCE
  cfg = adapters.AdapterConfig(
    base_model_id=name if is_copy else str(loaded.source),
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint if is_same else stored.fingerprint,
    stream=found.stream,
    lora=found.lora or dataclasses.replace(found.folded_lora, rank=0),
    tree=found.tree,
    provenance={**found.provenance, 'merged_from': str(loaded.source)},
  )
  verifier = {'name_or_path': '..' if is_copy else str(loaded.source)}
  if kind == 'peft':
    verifier['lora'] = '..'
  made = sidecar.writers(found.rest, cfg, loaded.config, verifier)
  for file in (draft_vocabulary.FILE, ngram_table.FILE):
    path = os.path.join(found.folder, file)
    if os.path.isfile(path):
      made[f'{sidecar.FOLDER}/{file}'] = functools.partial(_copy, path)
  return made


def _record(loaded, found, kind, options, names) -> dict[str, Any]:
  """The contents of export.json."""
  return {
    'format_version': FORMAT_VERSION,
    'format': kind,
    'base': str(loaded.source),
    'base_config_hash': loaded.config_hash,
    'base_fingerprint': loaded.fingerprint,
    'adapter': os.path.basename(os.path.normpath(found.folder))
    if found.folder
    else '',
    'dtype': options.dtype,
    'files': names,
    'has_streams': bool(found.rest),
    'provenance': dict(found.provenance),
    'version': specstream_jax.__version__,
  }


def _card(
  output_dir: str, record: Mapping[str, Any], found: fitted.Fitted
) -> model_card.Card:
  """What README.md says."""
  return model_card.Card(
    name=os.path.basename(os.path.abspath(output_dir)),
    format=record['format'],
    base=record['base'],
    base_fingerprint=record['base_fingerprint'],
    adapter=record['adapter'] if found.folder else '',
    dtype=record['dtype'],
    has_streams=record['has_streams'],
    provenance=found.provenance,
    version=record['version'],
  )
