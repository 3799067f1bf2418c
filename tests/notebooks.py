# SPDX-License-Identifier: Apache-2.0
"""The notebooks of colabs/ as code, with parameters of the tests' own."""

import ast
import json
import pathlib
import re

import byte_model
import jax
import numpy as np

from specstream_jax import config
from specstream_jax.checkpoints import (
  adapters,
  draft_vocabulary,
  loading,
  token_ids,
)
from specstream_jax.modeling import initialize, params

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted((ROOT / 'colabs').glob('*.ipynb'))
_STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)
_NO_LORA = config.LoraConfig(rank=0)


def read(name):
  """The cells of the notebook whose file name begins with `name`."""
  [path] = (path for path in PATHS if path.stem.startswith(name))
  return json.loads(path.read_text())['cells']


def source(cell):
  """The text of a cell."""
  return ''.join(cell['source'])


def code(cells):
  """The code cells as Python: magics of IPython become `pass`."""
  sources = (source(c) for c in cells if c['cell_type'] == 'code')
  return [re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', text) for text in sources]


def is_parameters(cell):
  """Whether its values are a reader's to change, and a test's."""
  return 'parameters' in cell['metadata'].get('tags', [])


def assignments(values, cell):
  """Code that gives the names of the parameters' cell other values."""
  known = {
    target.id
    for statement in ast.parse(source(cell)).body
    for target in statement.targets
  }
  assert set(values) <= known, set(values) - known
  return '\n'.join(f'{name} = {value!r}' for name, value in values.items())


def execute(name, **values):
  """Runs a notebook in this process; the names that it leaves."""
  names = {'__name__': 'notebook'}
  for cell in read(name):
    for text in code([cell]):
      exec(compile(text, f'{name}.ipynb', 'exec'), names)
    if is_parameters(cell):
      exec(assignments(values, cell), names)
  return names


def write_tiny(folder):
  """A model of bytes and an adapter of random streams; their folders."""
  model, adapter = str(folder / 'model'), str(folder / 'adapter')
  tokenizer = byte_model.byte_tokenizer()
  byte_model.write_model(model, byte_model.model_config(), tokenizer)
  loaded = loading.load_model(model)
  fresh = initialize.init_adapter(
    jax.random.key(0), loaded.config, _STREAM, _NO_LORA, hidden_rms=1.0
  )
  cfg = adapters.AdapterConfig(
    base_model_id='model',
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint,
    stream=_STREAM,
    lora=_NO_LORA,
    tree=config.TreeConfig(depth=2, branching=2, num_nodes=3),
  )
  adapters.save_adapter(adapter, params.flatten(fresh), cfg)
  draft_vocabulary.save(
    str(folder / 'adapter' / draft_vocabulary.FILE),
    np.arange(1, 257, dtype=np.int32),
    {
      'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer),
      'num_tokens': 256,
    },
  )
  return model, adapter
