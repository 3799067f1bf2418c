# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint wants to be decoded: generation_config.json.

Fields mean what they mean in transformers: temperature, top_k, top_p and min_p
count only with `do_sample`, the others always. A field that the file leaves out
is off; transformers itself would sample with top_k=50 then. How many tokens and
which EOS are asked for elsewhere.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import files

FILE = 'generation_config.json'
_SAMPLED = ('temperature', 'top_k', 'top_p', 'min_p')
_ALWAYS = ('repetition_penalty', 'suppress_tokens', 'min_new_tokens')
# Say nothing of which token comes next, or are read elsewhere (EOS).
_SILENT = frozenset(
  """_from_model_config transformers_version do_sample eos_token_id bos_token_id
  pad_token_id decoder_start_token_id use_cache cache_implementation
  cache_config max_cache_len return_legacy_cache return_dict_in_generate
  output_attentions output_hidden_states output_scores output_logits
  num_return_sequences length_penalty early_stopping renormalize_logits
  remove_invalid_values num_assistant_tokens num_assistant_tokens_schedule
  assistant_confidence_threshold assistant_early_exit assistant_lookbehind
  target_lookbehind assistant_ensemble_weight is_assistant speculation_type
  prompt_lookup_num_tokens max_matching_ngram_size low_memory
  prefill_chunk_size compile_config disable_compile
  continuous_batching_config chat_format""".split()  # noqa: SIM905 (a name each)
)
# Decided by other settings of ours, named where they say something.
_ELSEWHERE = {
  'max_new_tokens': 'max_new_tokens',
  'max_length': 'max_new_tokens',
  'stop_strings': 'stop',
}
# Change nothing, in transformers, at these values.
_OFF = {
  'max_length': (20,),
  'num_beams': (1,),
  'num_beam_groups': (1,),
  'guidance_scale': (1,),
  'typical_p': (1,),
  'encoder_repetition_penalty': (1,),
}


@dataclasses.dataclass(frozen=True)
class Wishes:
  """What a file asks for.

  Attributes:
    sampling: what of it was taken.
    left: field -> why it was not taken, where it would change the output.
  """

  sampling: config.SamplingConfig
  left: dict[str, str]

  def line(self) -> str:
    """What was taken and what was not, in one line; empty if neither."""
    parts = []
    if taken := self.sampling.changes():
      parts.append('took ' + ', '.join(_shown(*x) for x in taken.items()))
    if self.left:
      parts.append('left out ' + ', '.join(self.left.values()))
    if not parts:
      return ''
    return f'{FILE}: {"; ".join(parts)} (generation_config=none takes nothing)'


def read(folder: str | os.PathLike) -> dict[str, Any]:
  """The fields of a checkpoint folder's file; none without the file.

  Raises:
    ValueError: it is not a JSON object.
  """
  path = os.path.join(folder, FILE)
  return files.read_json(path) if os.path.isfile(path) else {}


def parse(raw: Mapping[str, Any], vocab_size: int) -> Wishes:
  """What the fields come to.

  Raises:
    ValueError: a value is out of range, or names a token that is none of
      `vocab_size`.
  """
  fields = {k: v for k, v in raw.items() if _is_on(k, v)}
  is_sampled = raw.get('do_sample') is True
  values = {name: fields[name] for name in _ALWAYS if name in fields}
  left = {}
  if is_sampled:
    values |= {'temperature': 1.0}
    values |= {name: fields[name] for name in _SAMPLED if name in fields}
    if isinstance(values.get('top_k'), int):
      values['top_k'] = max(values['top_k'], 0)  # -1 is off, too
  for name in () if is_sampled else _SAMPLED:
    if name in fields:
      left[name] = f'{_shown(name, fields[name])} (do_sample is not true)'
  bias = fields.get('sequence_bias')
  values['logit_bias'] = () if bias is None else _single_tokens(bias, left)
  known = {*_SAMPLED, *_ALWAYS, *_SILENT, 'sequence_bias'}
  for name in sorted(set(fields) - known):
    where = _ELSEWHERE.get(name)
    why = f'{where} decides' if where else 'not supported'
    left[name] = f'{_shown(name, fields[name])} ({why})'
  try:
    sampling = config.from_json(config.SamplingConfig, values)
    sampling.check_fits(vocab_size)
  except ValueError as error:
    problem = str(error).partition('\n')[0]  # gin adds where it was called
    raise ValueError(
      f'{FILE}: {problem}; mend the file, or use generation_config=none'
    ) from error
  return Wishes(sampling, left)


def _is_on(name, value):
  """Whether a field has a value that may change anything."""
  off = (None, False, 0, [], {}, '', *_OFF.get(name, ()))
  # 0 is a temperature; a penalty or a share of 0 is a mistake to be told.
  if name in ('temperature', 'repetition_penalty', 'top_p'):
    off = (None,)
  return value not in off


def _single_tokens(bias, left):
  """(token, bias) pairs; biases of several tokens in a row are left out."""
  pairs = bias.items() if isinstance(bias, Mapping) else bias
  try:
    pairs = [(tuple(ids), value) for ids, value in pairs]
  except (TypeError, ValueError):
    raise ValueError(
      f'{FILE}: sequence_bias is {bias!r}; it must be a list of [token ids, '
      'bias] pairs; mend the file, or use generation_config=none'
    ) from None
  if any(len(ids) != 1 for ids, _ in pairs):
    left['sequence_bias'] = 'sequence_bias of several tokens (not supported)'
  return tuple((ids[0], value) for ids, value in pairs if len(ids) == 1)


def _shown(name, value):
  """`name=value`, long lists cut."""
  if isinstance(value, (list, tuple)) and len(value) > 4:
    return f'{name}=[{len(value)} entries]'
  return f'{name}={value!r}' if isinstance(value, str) else f'{name}={value}'
