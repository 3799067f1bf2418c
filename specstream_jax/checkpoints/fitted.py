# SPDX-License-Identifier: Apache-2.0
"""An adapter, ours or PEFT's, that is held to the base it is used with."""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any

from absl import logging

from specstream_jax import config
from specstream_jax.checkpoints import (
  adapters,
  chat_format,
  eos,
  loading,
  peft,
  peft_config,
  shipped,
)

_nothing = functools.partial(dataclasses.field, default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What an adapter brings to a base; by default, nothing.

  Attributes:
    folder: of it, '' without.
    folded: flat LoRA by paths of the base, to be folded into it.
    folded_lora: settings of that LoRA.
    rest: flat weights that stay beside the base.
    stream: settings of its streams, None without.
    lora: settings of LoRA that stays unfolded, None without.
    tree: the draft tree to use unless told otherwise.
    is_chat: whether it goes with prompts that a chat template wrote.
    chat_template: that comes with it, or None.
    eos_ids: token ids that end its answers, beside those of the base.
    provenance: how it was trained, JSON types.
  """

  folder: str = ''
  folded: Mapping[str, Any] = _nothing()
  folded_lora: config.LoraConfig = config.LoraConfig(rank=0)
  rest: Mapping[str, Any] = _nothing()
  stream: config.StreamConfig | None = None
  lora: config.LoraConfig | None = None
  tree: config.TreeConfig | None = None
  is_chat: bool = True
  chat_template: chat_format.Template | None = None
  eos_ids: tuple[int, ...] = ()
  provenance: Mapping[str, Any] = _nothing()


def read(name: str | os.PathLike, loaded: loading.LoadedModel) -> Fitted:
  """The adapter of a folder, or one that ships, if it is of this base.

  Args:
    name: a folder with an adapter of ours or a PEFT LoRA, or a shipped name.
    loaded: the base.

  Raises:
    ValueError: there is none, it cannot be read, or it is of another base.
  """
  folder = shipped.adapter_folder(os.fspath(name))
  if peft_config.is_peft(folder):
    return _read_peft(folder, loaded)
  flat, cfg = adapters.load_adapter(folder)
  adapters.check_base(cfg, loaded)
  adapters.check_weights(folder, flat, cfg, loaded.config)
  folded, folded_lora, rest = adapters.split(flat, cfg)
  return Fitted(
    folder=folder,
    folded=folded,
    folded_lora=folded_lora,
    rest=rest,
    stream=cfg.stream,
    lora=cfg.lora if cfg.stream.mode == 'lossless' else None,
    tree=cfg.tree,
    is_chat=cfg.is_chat,
    eos_ids=cfg.eos_ids,
    provenance=cfg.provenance,
  )


def _read_peft(folder: str, loaded: loading.LoadedModel) -> Fitted:
  """A PEFT LoRA, which has no streams: all of it is folded."""
  found = peft.read(folder, loaded.config, loaded.params)
  _note_base(found.peft.base, folder, loaded)
  tokenizer = loading.known_tokenizer(loaded.tokenizer)
  said = eos.read(folder, tokenizer, loaded.config.vocab_size)
  eos_ids = eos.union(*said.values())
  return Fitted(
    folder=folder,
    folded=found.flat,
    folded_lora=found.config,
    chat_template=chat_format.read(folder),
    eos_ids=eos_ids,
    provenance={
      'format': 'peft',
      'base_model_name_or_path': os.path.basename(found.peft.base),
      'rank': found.config.rank,
      'alpha': found.config.alpha,
      'modules': list(found.config.modules),
      'eos_ids': list(eos_ids),
    },
  )


def _note_base(name: str, folder: str, loaded: loading.LoadedModel) -> None:
  """Warns where a PEFT LoRA names another base: it keeps no hash of it."""
  own, theirs = (
    os.path.basename(text.rstrip('/')).lower() for text in (loaded.source, name)
  )
  if theirs and own != theirs:
    logging.warning(
      'PEFT adapter %s was trained on %s, the base is %s: the sizes fit, more '
      'cannot be told',
      folder,
      name,
      loaded.source,
    )
