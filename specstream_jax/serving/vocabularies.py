# SPDX-License-Identifier: Apache-2.0
"""One draft vocabulary for adapters that are served side by side.

Each adapter drafts from the tokens of all of them. A product of the LM head's
rows for those tokens costs the same for every row of a batch, where rows with a
vocabulary of their own would each have to read theirs. Drafts only gain by it.
"""

from collections.abc import Mapping
import os

import numpy as np
import tokenizers

from specstream_jax import runtime
from specstream_jax.checkpoints import (
  draft_vocabulary,
  files,
  fitted,
  token_ids,
)
from specstream_jax.decoding import topology

# Beyond this share of all tokens nothing is saved that one could see.
_MOST = 0.75


def is_there(folder: str, least: int) -> bool:
  """Whether an adapter's folder has a vocabulary of so many tokens or more."""
  path = os.path.join(folder, draft_vocabulary.FILE)
  return bool(folder) and (
    os.path.isfile(path) and files.read_json(path)['num_tokens'] >= least
  )


def for_all(
  model: runtime.Model, adapters: Mapping[str, fitted.Fitted]
) -> bool:
  """Whether all that drafts has a vocabulary that is wide enough for its tree.

  Args:
    model: with an adapter, or without.
    adapters: to be served beside each other, by name.
  """
  if model.stream is not None:
    return is_there(model.adapter_dir, topology.width(model.tree))
  drafting = [found for found in adapters.values() if found.stream]
  return bool(drafting) and all(
    is_there(found.folder, topology.width(found.tree or model.tree))
    for found in drafting
  )


def together(
  model: runtime.Model, adapters: Mapping[str, fitted.Fitted]
) -> np.ndarray | None:
  """Tokens of all vocabularies, ascending int32 [N]; None if that is nearly all.

  Raises:
    ValueError: an adapter with streams has none, or one of another tokenizer.
  """
  is_known = isinstance(model.tokenizer, tokenizers.Tokenizer)
  digest = token_ids.tokenizer_hash(model.tokenizer) if is_known else None
  found: set[int] = set()
  for name, one in adapters.items():
    if one.stream is None:
      continue
    path = os.path.join(one.folder, draft_vocabulary.FILE)
    if not (one.folder and os.path.isfile(path)):
      raise ValueError(
        f'adapter {name!r} has no {draft_vocabulary.FILE}, and '
        'vocabulary=adapter asks for one of every adapter; leave the setting '
        'out, or write one with `specstream prepare --draft_vocabulary`'
      )
    ids = draft_vocabulary.load(
      path, tokenizer_sha256=digest, vocab_size=model.config.vocab_size
    )
    found |= set(ids.tolist())
  if len(found) > _MOST * model.config.vocab_size:
    return None
  return np.array(sorted(found), np.int32)
