# SPDX-License-Identifier: Apache-2.0
"""How a token is drawn from the logits.

The settings and their order are those of transformers: logit bias, repetition
penalty, tokens that may not come (yet), temperature, top-k, top-p, min-p. The
presence and frequency penalties, which it does not know, are those of the OpenAI
API and come after the repetition penalty.
"""

from collections.abc import Mapping
import dataclasses
import math
import numbers
from typing import Any

import gin

from specstream_jax.config import bounds, checks

_LARGEST = 3e38  # that float32 holds; its inverse is no zero there, either


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How a row's tokens are drawn; the defaults are greedy.

  Attributes:
    temperature: divides the logits; 0 is greedy, and so is the limit of ever
      smaller ones.
    top_k: most likely tokens kept; 0 is off.
    top_p: the most likely tokens that together have this probability are kept;
      1 is off.
    min_p: tokens below this share of the best one's probability go; 0 is off.
    repetition_penalty: divides positive logits, and multiplies negative ones,
      of every token that the text already has, prompt included; 1 is off.
    presence_penalty: taken from the logit of every token that the output
      already has; 0 is off, below 0 it is a reward.
    frequency_penalty: likewise, times as often as the output has the token.
    logit_bias: (token id, number added to its logit) pairs, or a dict.
    suppress_tokens: ids that are never drawn.
    min_new_tokens: EOS is not drawn before so many new tokens.
    ignore_eos: EOS does not end the text.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  logit_bias: tuple[tuple[int, float], ...] = ()
  suppress_tokens: tuple[int, ...] = ()
  min_new_tokens: int = 0
  ignore_eos: bool = False
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0

  def __post_init__(self):
    object.__setattr__(self, 'logit_bias', _pairs(self.logit_bias))
    object.__setattr__(
      self, 'suppress_tokens', _ids('suppress_tokens', self.suppress_tokens)
    )
    checks.config_types(self)
    for name in ('temperature', 'repetition_penalty', 'top_p', 'min_p'):
      value = getattr(self, name)
      checks.at_least(f'SamplingConfig.{name}', value, 0.0)
      checks.check(
        math.isfinite(value),
        f'SamplingConfig.{name} is {value}; it must be a finite number',
      )
    for name in ('presence_penalty', 'frequency_penalty'):
      value = getattr(self, name)
      checks.check(
        -_LARGEST <= value <= _LARGEST,
        f'SamplingConfig.{name} is {value}; it must be a finite number',
      )
    for name in ('top_k', 'min_new_tokens'):
      value = getattr(self, name)
      checks.count(f'SamplingConfig.{name}', value, 0, bounds.COUNT)
    checks.check(
      0.0 < self.top_p <= 1.0,
      f'SamplingConfig.top_p is {self.top_p}; accepted: 0 < top_p <= 1',
    )
    checks.check(
      self.min_p <= 1.0,
      f'SamplingConfig.min_p is {self.min_p}; accepted: 0 <= min_p <= 1',
    )
    checks.check(
      self.repetition_penalty >= 1 / _LARGEST,
      f'SamplingConfig.repetition_penalty is {self.repetition_penalty}; it must '
      'be > 0, and above 1 to discourage repetition',
    )
    checks.one_of('SamplingConfig.ignore_eos', self.ignore_eos, (True, False))

  @property
  def edits_logits(self) -> bool:
    """Whether logits are changed, whatever is then drawn from them."""
    return bool(
      self.repetition_penalty != 1.0
      or self.presence_penalty
      or self.frequency_penalty
      or self.logit_bias
      or self.suppress_tokens
      or self.min_new_tokens
    )

  @property
  def is_plain_greedy(self) -> bool:
    """Whether every token is the arg max of the model's own logits."""
    return not self.temperature and not self.edits_logits

  @property
  def biases(self) -> dict[int, float]:
    """What is added to whose logits; minus infinity to suppressed tokens."""
    return dict(self.logit_bias) | dict.fromkeys(
      self.suppress_tokens, -math.inf
    )

  def changes(self) -> dict[str, Any]:
    """Fields that differ from plain greedy decoding."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    }

  def check_fits(self, vocab_size: int) -> None:
    """Raises ValueError if a token id is not in the vocabulary, or all go."""
    for name, ids in (
      ('logit_bias', [token for token, _ in self.logit_bias]),
      ('suppress_tokens', self.suppress_tokens),
    ):
      for token in ids:
        checks.check(
          token < vocab_size,
          f'SamplingConfig.{name} names token id {token}; accepted: 0 to '
          f'{vocab_size - 1}',
        )
    checks.check(
      len(set(self.suppress_tokens)) < vocab_size,
      f'SamplingConfig.suppress_tokens names all {vocab_size} tokens of the '
      'vocabulary; leave at least one',
    )


def _ids(name: str, values: Any) -> tuple[int, ...]:
  """Token ids as a tuple; ValueError if one is none."""
  checks.check(
    isinstance(values, (tuple, list)),
    f'SamplingConfig.{name} is {values!r}; accepted: a list of token ids',
  )
  for value in values:
    checks.at_least(f'an entry of SamplingConfig.{name}', value, 0)
  return tuple(map(int, values))


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _pairs(values: Any) -> tuple[tuple[int, float], ...]:
  """(token id, bias) pairs in the order of the ids; ValueError if not such."""
  pairs = values.items() if isinstance(values, Mapping) else values
  what = (
    f'SamplingConfig.logit_bias is {values!r}; accepted: a dict, or a list of '
    'pairs, of token id and number that float32 holds'
  )
  checks.check(isinstance(pairs, (tuple, list, type({}.items()))), what)
  found = {}
  for pair in pairs:
    checks.check(isinstance(pair, (tuple, list)) and len(pair) == 2, what)
    token, bias = pair
    checks.check(_is_number(bias) and -_LARGEST <= bias <= _LARGEST, what)
    _ids('logit_bias', (token,))
    checks.check(
      token not in found,
      f'SamplingConfig.logit_bias names token id {token} twice; once is enough',
    )
    found[int(token)] = float(bias)
  return tuple(sorted(found.items()))
