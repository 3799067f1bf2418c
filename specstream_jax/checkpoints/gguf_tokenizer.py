# SPDX-License-Identifier: Apache-2.0
"""The tokenizer inside a GGUF file as a `tokenizers.Tokenizer`."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import processors

from specstream_jax.checkpoints import byte_bpe, fields, pieces_bpe

_PREFIX = 'tokenizer.ggml.'
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# Other names of the same splits of byte-level BPE.
_SAME = {'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe', 'phi-2': 'gpt-2'}


def build(
  metadata: Mapping[str, Any], vocab_size: int | None = None
) -> tokenizers.Tokenizer:
  """The tokenizer that gives the ids the model was trained on.

  Args:
    metadata: GGUF metadata by key.
    vocab_size: most tokens there may be; None for no check.

  Raises:
    ValueError: no tokenizer, or one of a kind that is not understood.
  """
  model = metadata.get(f'{_PREFIX}model')
  if f'{_PREFIX}tokens' not in metadata:
    raise ValueError('the GGUF file has no tokenizer.ggml.tokens')
  num_tokens = len(_get(metadata, 'tokens', fields.TEXTS))
  most = num_tokens if vocab_size is None else vocab_size
  if not 0 < num_tokens <= most:
    raise ValueError(
      f'tokenizer.ggml.tokens has {num_tokens:,} tokens; accepted: at least '
      f'one, and no more than the {most:,} that the model embeds'
    )
  if model == 'gpt2':
    tokenizer = _byte_level_bpe(metadata)
  elif model == 'llama':
    tokenizer = _sentencepiece_bpe(metadata)
  else:
    raise ValueError(
      f"tokenizer.ggml.model is {fields.shown(model)}; accepted: 'gpt2', 'llama'"
    )
  _add_tokens(tokenizer, metadata)
  _add_bos(tokenizer, metadata, default=model == 'llama')
  return tokenizer


def _get(metadata, name: str, kind: fields.Kind, *default: Any) -> Any:
  """The metadata of that name; without a default it must be there."""
  return fields.get(metadata, _PREFIX + name, kind, 'the GGUF file', *default)


def _id(metadata, name: str, *default: Any) -> Any:
  """The token id of that name."""
  last = len(metadata[f'{_PREFIX}tokens']) - 1
  return _get(metadata, name, fields.integers(0, last), *default)


def _merges(merges: Sequence[str], vocab: Mapping[str, int]):
  return byte_bpe.merge_pairs(merges, vocab, f'{_PREFIX}merges')


def _byte_level_bpe(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """BPE over bytes spelled as characters, as GPT-2 does."""
  pre = metadata.get(f'{_PREFIX}pre')
  kind = _SAME.get(pre, pre) if isinstance(pre, str) else None
  if kind not in byte_bpe.KINDS:
    raise ValueError(
      f'tokenizer.ggml.pre is {fields.shown(pre)}; accepted: '
      f'{", ".join(map(repr, byte_bpe.KINDS))}'
    )
  vocab = {t: i for i, t in enumerate(metadata[f'{_PREFIX}tokens'])}
  merges = _merges(_get(metadata, 'merges', fields.TEXTS), vocab)
  return byte_bpe.build(kind, vocab, merges)


def _sentencepiece_bpe(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """SentencePiece BPE with byte fallback, as in Llama 2."""
  tokens = metadata[f'{_PREFIX}tokens']
  vocab = {token: i for i, token in enumerate(tokens)}
  merges = _get(metadata, 'merges', fields.TEXTS, None)
  if merges is None:
    scores = _get(metadata, 'scores', fields.NUMBERS)
    merges = pieces_bpe.merges(tokens, scores, _PREFIX.rstrip('.'))
  else:
    merges = _merges(merges, vocab)
  return pieces_bpe.build(
    tokens,
    merges,
    unknown=tokens[_id(metadata, 'unknown_token_id', 0)],
    has_prefix=_get(metadata, 'add_space_prefix', fields.BOOL, True),
  )


def _add_tokens(tokenizer, metadata) -> None:
  """Control tokens become special; user-defined ones are never split."""
  tokens = metadata[f'{_PREFIX}tokens']
  kinds = _get(metadata, 'token_type', fields.COUNTS, [])
  for token, kind in zip(tokens, kinds):
    added = tokenizers.AddedToken(
      token, normalized=False, special=kind != _USER_DEFINED
    )
    if kind in (_UNKNOWN, _CONTROL):
      tokenizer.add_special_tokens([added])
    elif kind == _USER_DEFINED:
      tokenizer.add_tokens([added])


def _add_bos(tokenizer, metadata, *, default: bool) -> None:
  """Puts BOS in front where the file asks for it."""
  bos_id = _id(metadata, 'bos_token_id', None)
  if bos_id is None or not _get(
    metadata, 'add_bos_token', fields.BOOL, default
  ):
    return
  bos = metadata[f'{_PREFIX}tokens'][bos_id]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=[bos, '$A'],
    pair=[bos, '$A', bos, '$B'],
    special_tokens=[(bos, bos_id)],
  )
