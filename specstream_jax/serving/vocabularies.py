# SPDX-License-Identifier: Apache-2.0
"""The tokens that rows of several adapters draft: those of any of them.

An adapter may bring the tokens of its task (`checkpoints.draft_vocabulary`),
whose rows of the LM head are all that its drafts need. Side by side, all rows
draft from the union: one product for the whole batch, where a head of each
row's own would take B times the memory, and be read B times. No row loses a
token by it, and the verifier keeps the whole vocabulary, so no output changes.

Axis letters: B rows, N tokens there is room for, V vocabulary.
"""

from collections.abc import Mapping
import os
from typing import Any

from absl import logging
import jax
import numpy as np
import tokenizers

from specstream_jax import runtime
from specstream_jax.checkpoints import draft_vocabulary, fitted, token_ids
from specstream_jax.config import checks, drafting
from specstream_jax.decoding import transformer_fns
from specstream_jax.modeling import build

_STEP = 256  # N is a multiple, as matrix units like it


class Union:
  """The draft vocabularies of adapters that come and go, and their LM head.

  Attributes:
    size: N.
    count: tokens that are in it.
    head: a `transformer_fns.DraftHead` of N tokens, on the device; ids from V
      on are padding.
  """

  def __init__(
    self,
    model: runtime.Model,
    cfg: drafting.DrafterConfig,
    first: Mapping[str, np.ndarray],
    spare: int = 0,
  ):
    """Makes room for what the first adapters need.

    Args:
      model: the base.
      cfg: how many tokens an adapter may bring.
      first: token ids by name of the adapter, most frequent first.
      spare: least room for tokens of adapters that come later.
    """
    self._model, self._cfg = model, cfg
    shell = build.shell(build.build(model.config, None, None, model.layout))
    merge = lambda base: shell.merge(build.without_layers(base), {})
    self._head_of = jax.jit(
      lambda base, ids: transformer_fns.draft_head(merge(base), ids)
    )
    self.count = len(_by_rank(first))
    self.size = -(-(self.count + spare) // _STEP) * _STEP
    self._own: dict[str, np.ndarray] = {}
    self._update(first)

  def load(self, name: str, found: fitted.Fitted, served: set[str]) -> None:
    """Lets rows draft what an adapter brings, as far as there is room.

    Args:
      name: of the adapter.
      found: the adapter.
      served: names of those that are served beside it; others make room.

    Raises:
      ValueError: its vocabulary cannot be read, or is of another tokenizer.
    """
    if found.stream is None:
      ids = np.zeros(0, np.int32)
    elif (ids := read(found, self._model, self._cfg)) is None:
      ids = np.zeros(0, np.int32)
      logging.warning(
        'adapter %r brings no %s: it drafts from the %d tokens of the others',
        name,
        draft_vocabulary.FILE,
        self.size,
      )
    kept = {key: own for key, own in self._own.items() if key in served}
    kept.pop(name, None)
    self._update(kept | {name: ids})

  def own(self, name: str) -> np.ndarray:
    """The token ids that an adapter brought, most frequent first."""
    return self._own.get(name, np.zeros(0, np.int32))

  def head_of(self, ids: np.ndarray, size: int) -> Any:
    """A `transformer_fns.DraftHead` of `ids`, with room for `size` tokens."""
    kept = np.sort(ids)
    past = self._model.config.vocab_size + np.arange(size - len(kept))
    padded = np.concatenate([kept, past]).astype(np.int32)
    return self._head_of(self._model.base, padded)

  def _update(self, own: Mapping[str, np.ndarray]) -> None:
    """Makes the head that of these; where room is short, rare tokens go."""
    ids = _by_rank(own)
    if len(ids) > self.size:
      logging.warning(
        'the draft vocabularies of %s have %d tokens, and there is room for '
        'the most frequent %d; serve all from the start to have all of them',
        ', '.join(map(repr, sorted(own))),
        len(ids),
        self.size,
      )
    self.count = min(len(ids), self.size)
    self.head: Any = self.head_of(ids[: self.size], self.size)
    self._own = dict(own)


def _by_rank(own: Mapping[str, np.ndarray]) -> np.ndarray:
  """Each token once, those first that are frequent in any of the adapters."""
  ids = np.concatenate(list(own.values()))
  ranks = np.concatenate([np.arange(len(one)) for one in own.values()])
  order = np.argsort(ranks, kind='stable')
  _, first = np.unique(ids[order], return_index=True)
  return ids[order][np.sort(first)]


def read(
  found: fitted.Fitted, model: runtime.Model, cfg: drafting.DrafterConfig
) -> np.ndarray | None:
  """The token ids that an adapter brings, most frequent first; None without.

  Raises:
    ValueError: they cannot be read, or are of another tokenizer.
  """
  path = os.path.join(found.folder, draft_vocabulary.FILE)
  if not (found.folder and os.path.isfile(path)):
    return None
  is_known = isinstance(model.tokenizer, tokenizers.Tokenizer)
  return draft_vocabulary.by_frequency(
    path,
    tokenizer_sha256=(
      token_ids.tokenizer_hash(model.tokenizer) if is_known else None
    ),
    vocab_size=model.config.vocab_size,
    size=cfg.vocabulary_size,
  )


def union(
  model: runtime.Model,
  cfg: drafting.DrafterConfig,
  adapters: Mapping[str, fitted.Fitted],
  *,
  is_growing: bool,
) -> Union | None:
  """What rows draft from; None is the whole vocabulary.

  Args:
    model: the base.
    cfg: `vocabulary` is 'adapter' or nothing.
    adapters: by name, those of the start.
    is_growing: whether others may come later: a quarter of V is kept for them.

  Raises:
    ValueError: another `vocabulary`, or one that cannot be read.
  """
  checks.check(
    cfg.vocabulary in ('', 'adapter'),
    f'DrafterConfig.vocabulary is {cfg.vocabulary!r}; adapters side by side '
    "draft from their own: take 'adapter', or leave it out for all tokens",
  )
  if not cfg.vocabulary:
    return None
  drafting_ones = {key: one for key, one in adapters.items() if one.stream}
  own = {key: read(one, model, cfg) for key, one in drafting_ones.items()}
  known = {key: ids for key, ids in own.items() if ids is not None}
  if len(known) < len(own):
    lacking = ', '.join(map(repr, sorted(own.keys() - known.keys())))
    logging.warning(
      'no %s comes with %s: all adapters draft from the whole vocabulary',
      draft_vocabulary.FILE,
      lacking,
    )
    return None
  spare = model.config.vocab_size // 4 if is_growing else 0
  made = Union(model, cfg, known, spare)
  if made.size >= model.config.vocab_size:
    return None
  logging.info(
    'adapters draft from %d of %d tokens', made.count, model.config.vocab_size
  )
  return made
