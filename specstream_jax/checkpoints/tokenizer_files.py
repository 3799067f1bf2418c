# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint folder, in whichever files it lies.

tokenizer.json says everything; older checkpoints have a SentencePiece model, or
vocab.json and merges.txt, and say the rest in tokenizer_config.json.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from specstream_jax.checkpoints import (
  byte_bpe,
  fields,
  files,
  pieces_bpe,
  spm_file,
  tokenizer_errors,
)

JSON, SPM, VOCAB, MERGES = (
  'tokenizer.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
)
ADDED, CONFIG = 'added_tokens.json', 'tokenizer_config.json'
# Files beside tokenizer.json that a download needs.
FILES = (JSON, SPM, VOCAB, MERGES, ADDED)
TOKENS = 'special_tokens_map.json'


class _Class(NamedTuple):
  """A class of transformers with byte-level BPE.

  Attributes:
    split: how it splits texts, one of `byte_bpe.KINDS`.
    tokens: special tokens of folders that name none.
    composes: see `byte_bpe.build`.
  """

  split: str
  tokens: Mapping[str, str]
  composes: bool = False


_END = '<|endoftext|>'
_GPT2 = _Class(
  'gpt-2', dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), _END)
)
_QWEN2 = _Class(
  'qwen2', dict.fromkeys(('eos_token', 'unk_token', 'pad_token'), _END)
)
_GPT_NEOX = _Class(
  'gpt-2', {**_GPT2.tokens, 'pad_token': '<|padding|>'}, composes=True
)
_CLASSES = {
  'GPT2Tokenizer': _GPT2,
  'CodeGenTokenizer': _GPT2,
  'Qwen2Tokenizer': _QWEN2,
  'GPTNeoXTokenizer': _GPT_NEOX,
}
# The same by config.json, for folders that name no class.
_MODEL_TYPES = {
  **dict.fromkeys(('gpt2', 'opt', 'phi'), _GPT2),
  **dict.fromkeys(('qwen2', 'qwen3'), _QWEN2),
  'gpt_neox': _GPT_NEOX,
}
_SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
_MAX_TOKENS = 2**24  # Beyond any vocabulary; the library counts up to it.
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


def read(folder: str | os.PathLike) -> tokenizers.Tokenizer:
  """The tokenizer of a folder.

  Raises:
    ValueError: there is none, it cannot be read, or is of another kind.
  """
  folder = os.fspath(folder)
  has = lambda *names: all(
    os.path.isfile(os.path.join(folder, name)) for name in names
  )
  if has(JSON):
    return open_json(os.path.join(folder, JSON))
  if not (has(SPM) or has(VOCAB, MERGES)):
    raise ValueError(
      f'{folder!r} has no {JSON}, {SPM} or {VOCAB} with {MERGES}; save the '
      'tokenizer of the model there'
    )
  fix = 'download it again'
  source = f'the tokenizer in {folder!r} cannot be read'
  with tokenizer_errors.naming(source, fix), tokenizer_errors.quiet():
    said = _said(folder)
    made = _of_spm(folder, said) if has(SPM) else _of_merges(folder, said)
    made.encode('a')
  return _checked(made, folder)


def open_json(path: str) -> tokenizers.Tokenizer:
  """The tokenizer of a tokenizer.json, which encodes texts whole; tried on one.

  Some files were saved with settings of a training run, which cut texts or
  fill them up; they are switched off.

  Raises:
    ValueError: the file cannot be read, or its tokenizer not used.
  """
  fix = 'download it again'
  errors = tokenizer_errors.naming(f'{path!r} cannot be read', fix)
  with errors, tokenizer_errors.quiet():
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for has_special in (False, True):
      tokenizer.encode('a', add_special_tokens=has_special)
  return _checked(tokenizer, path)


def _checked(tokenizer: tokenizers.Tokenizer, path: str):
  """The tokenizer, if its ids are of a size that vocabularies have."""
  most = max(tokenizer.get_vocab().values(), default=-1)
  if most >= _MAX_TOKENS:
    raise ValueError(
      f'{path!r} has the token id {most:,}; accepted: below {_MAX_TOKENS:,}; '
      'download it again'
    )
  return tokenizer


def _said(folder: str) -> dict[str, Any]:
  """The fields of tokenizer_config.json, or special tokens named beside it."""
  found = _read_or_empty(folder, TOKENS), _read_or_empty(folder, CONFIG)
  return {**found[0], **found[1]}


def _read_or_empty(folder: str, name: str) -> dict[str, Any]:
  path = os.path.join(folder, name)
  return files.read_json(path) if os.path.isfile(path) else {}


def _of_spm(folder: str, said: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """SentencePiece, BPE or Unigram."""
  spm = spm_file.read(os.path.join(folder, SPM))
  has_prefix = _asks(said, 'add_prefix_space', spm.has_prefix)
  spm = dataclasses.replace(spm, has_prefix=has_prefix)
  tokenizer = _spm_model(spm)
  steps = [tokenizer.normalizer]
  if spm.has_prefix and said.get('legacy') is False:
    # As transformers has it then: a space in front of the whole text alone,
    # and none where it begins with one.
    steps = []
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='first', split=False
    )
  if spm.removes_spaces:
    several = tokenizers.Regex(' {2,}')
    steps[:0] = [normalizers.Strip(), normalizers.Replace(several, ' ')]
  if spm.charsmap:
    steps.insert(0, normalizers.Precompiled(spm.charsmap))
  tokenizer.normalizer = normalizers.Sequence(steps)
  control = spm.of_type(spm_file.UNKNOWN, spm_file.CONTROL)
  _add(tokenizer, {i: _token(spm.tokens[i], True) for i in control})
  defined = spm.of_type(spm_file.USER_DEFINED)
  _add(tokenizer, {i: _token(spm.tokens[i], False) for i in defined})
  _add_named(tokenizer, folder, said)
  bos = spm.tokens[spm.bos_id] if 0 <= spm.bos_id < len(spm.tokens) else None
  _add_ends(tokenizer, said, bos=bos, adds_bos=True)
  return tokenizer


def _spm_model(spm: spm_file.Spm) -> tokenizers.Tokenizer:
  """A tokenizer without added tokens."""
  unknown = spm.of_type(spm_file.UNKNOWN)[0]
  if spm.model_type == spm_file.BPE:
    kept = spm.of_type(spm_file.NORMAL, spm_file.USER_DEFINED)
    merges = pieces_bpe.merges(
      [spm.tokens[i] for i in kept], [spm.scores[i] for i in kept], SPM
    )
    return pieces_bpe.build(
      spm.tokens,
      merges,
      unknown=spm.tokens[unknown],
      has_prefix=spm.has_prefix,
      has_bytes=spm.has_bytes,
    )
  if spm.model_type == spm_file.UNIGRAM:
    scored = list(zip(spm.tokens, spm.scores))
    tokenizer = tokenizers.Tokenizer(
      models.Unigram(scored, unknown, byte_fallback=spm.has_bytes)
    )
    pieces_bpe.mark_spaces(tokenizer, spm.has_prefix)
    return tokenizer
  raise ValueError('it splits texts into words or characters')


def _of_merges(folder: str, said: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Byte-level BPE from vocab.json and merges.txt."""
  kind = _class_of(folder, said)
  said = {**kind.tokens, **said}
  vocab = files.read_json(os.path.join(folder, VOCAB))
  if not all(map(fields.COUNT.fits, vocab.values())):
    raise ValueError(f'{VOCAB} has ids that are no integers >= 0')
  lines = files.read_text(os.path.join(folder, MERGES)).split('\n')
  rest = lines[lines[0].startswith('#version') :]
  pairs = byte_bpe.merge_pairs(filter(str.strip, rest), vocab, MERGES)
  tokenizer = byte_bpe.build(
    kind.split,
    vocab,
    pairs,
    has_prefix=_asks(said, 'add_prefix_space', False),
    composes=kind.composes,
  )
  _add_named(tokenizer, folder, said)
  _add_ends(tokenizer, said, bos=None, adds_bos=False)
  return tokenizer


def _class_of(folder: str, said: Mapping[str, Any]) -> _Class:
  """The class that a folder asks for."""
  name = said.get('tokenizer_class')
  if name is not None:
    found = _CLASSES.get(str(name).removesuffix('Fast'))
  else:
    name = _read_or_empty(folder, 'config.json').get('model_type')
    found = _MODEL_TYPES.get(name) if isinstance(name, str) else None
  if found is None:
    raise ValueError(
      f'its class is {fields.shown(name)}; accepted without {JSON}: '
      f'{", ".join(_CLASSES)}'
    )
  return found


def _token(text: str, is_special: bool, **flags: bool) -> tokenizers.AddedToken:
  flags = {'normalized': False, **flags, 'special': is_special}
  return tokenizers.AddedToken(text, **flags)


def _add(
  tokenizer: tokenizers.Tokenizer, tokens: Mapping[int, tokenizers.AddedToken]
) -> None:
  """Adds tokens in the order of their ids, which must come out as given."""
  for i, token in sorted(tokens.items()):
    if token.special:
      tokenizer.add_special_tokens([token])
    else:
      tokenizer.add_tokens([token])
    found = tokenizer.token_to_id(token.content)
    if found != i:
      raise ValueError(
        f'the added token {token.content!r} has the id {i}, but would get {found}'
      )


def _add_named(tokenizer, folder: str, said: Mapping[str, Any]) -> None:
  """Tokens that tokenizer_config.json or added_tokens.json add, and specials."""
  named = {_text(said.get(name)) for name in _SPECIAL}
  found: dict[int, tokenizers.AddedToken] = {}
  listed = said.get('added_tokens_decoder')
  for i, entry in (listed or {}).items():
    flags = {k: entry[k] for k in _FLAGS if isinstance(entry.get(k), bool)}
    is_special = flags.pop('special', False)
    found[int(i)] = _token(entry['content'], is_special, **flags)
  if listed is None:
    named |= {_text(token) for token in _others(said)}
    for text, i in _read_or_empty(folder, ADDED).items():
      found[i] = _token(text, text in named, normalized=text not in named)
  _add(tokenizer, found)
  rest = {text for text in named if text}
  for text in sorted(rest - {token.content for token in found.values()}):
    # One that the vocabulary lacks has no embedding either.
    if tokenizer.token_to_id(text) is not None:
      tokenizer.add_special_tokens([_token(text, True)])


def _others(said: Mapping[str, Any]) -> list[Any]:
  """Special tokens without a part of their own, in either version's spelling."""
  lists = (
    said.get(f'{kind}_special_tokens') for kind in ('additional', 'extra')
  )
  return [token for one in lists if isinstance(one, list) for token in one]


def _asks(said: Mapping[str, Any], name: str, default: bool) -> bool:
  """What a field switches; the default where it is not said."""
  return said[name] if isinstance(said.get(name), bool) else default


def _text(token: Any) -> str | None:
  """The text of a special token, however it is written down."""
  text = token.get('content') if isinstance(token, Mapping) else token
  return text if isinstance(text, str) else None


def _add_ends(
  tokenizer, said: Mapping[str, Any], *, bos: str | None, adds_bos: bool
) -> None:
  """BOS in front of a text and EOS behind it, where the folder asks for them."""
  bos, eos = _text(said.get('bos_token')) or bos, _text(said.get('eos_token'))
  front = [bos] if bos and _asks(said, 'add_bos_token', adds_bos) else []
  back = [eos] if eos and _asks(said, 'add_eos_token', False) else []
  if front or back:
    ids = [(text, tokenizer.token_to_id(text)) for text in (*front, *back)]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[*front, '$A', *back],
      pair=[*front, '$A', *back, *front, '$B', *back],
      special_tokens=sorted(set(ids)),
    )
