# SPDX-License-Identifier: Apache-2.0
"""A tuned model as a plain checkpoint, its streams beside it as an adapter.

Any engine runs the checkpoint autoregressively; with the sidecar it decodes
speculatively here.
"""

import dataclasses
import os

import numpy as np

from specstream_jax import typing
from specstream_jax.checkpoints import (
  adapters,
  eos,
  huggingface,
  loading,
  weights,
)
from specstream_jax.modeling import lora

SIDECAR = 'streams'


def export_merged(
  folder: str | os.PathLike,
  loaded: loading.LoadedModel,
  adapter: typing.FlatParams,
  cfg: adapters.AdapterConfig,
  *,
  dtype: str = 'float32',
) -> None:
  """Writes base + LoRA as a Hugging Face folder, the rest in folder/streams.

  Args:
    folder: made if it is not there.
    loaded: the base the adapter was trained on.
    adapter: flat adapter weights.
    cfg: of the adapter.
    dtype: of the checkpoint on disk.

  Raises:
    ValueError: another base, or a lossless adapter without a LoRA to fold: that
      of its streams acts on them alone, folding it would change the model.
  """
  adapters.check_base(cfg, loaded)
  is_lossless = cfg.stream.mode == 'lossless'
  if is_lossless and not cfg.folded_lora.rank:
    raise ValueError(
      f"adapter mode is {cfg.stream.mode!r}; only 'fine_tuned' adapters and those "
      'with folded_lora can be merged; keep a lossless adapter beside the untouched base'
    )
  folded, folded_cfg, rest = adapters.split(adapter, cfg)
  flat, _ = lora.merge(loaded.params, folded, folded_cfg)
  stored = {p: np.asarray(leaf, np.dtype(dtype)) for p, leaf in flat.items()}
  tokenizer = loaded.tokenizer
  if isinstance(tokenizer, loading.MissingTokenizer):
    tokenizer = None
  ends = eos.union(loaded.eos_ids, cfg.eos_ids)
  extras = huggingface.Extras(tokenizer, loaded.chat_template, ends)
  huggingface.export(folder, loaded.config, stored, extras, dtype=dtype)
  sidecar = dataclasses.replace(
    cfg,
    base_model_id=os.path.basename(os.path.abspath(folder)),
    base_fingerprint=weights.fingerprint(stored),
    lora=cfg.lora if is_lossless else dataclasses.replace(cfg.lora, rank=0),
    folded_lora=dataclasses.replace(folded_cfg, rank=0),
    provenance={**cfg.provenance, 'merged_from': cfg.base_model_id},
  )
  adapters.save_adapter(os.path.join(folder, SIDECAR), rest, sidecar)
