# SPDX-License-Identifier: Apache-2.0
"""Completing prompts: texts or token ids in, texts and statistics out."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

from absl import logging

from specstream_jax import (
  config,
  config_checks as checks,
  config_drafting,
  runtime,
)

_SMALLEST_BUFFER = 64


@dataclasses.dataclass(frozen=True)
class Generation:
  """One completion.

  Attributes:
    text: up to EOS, which is left out.
    tokens: new token ids, EOS included.
    calls: model calls after the prompt pass.
    accept_lengths: accepted draft tokens of each call.
    finish_reason: 'eos', 'stop', 'length' or 'cache'.
    output: 'lossless', 'lossy' or 'synthetic', by the rule that verified.
    tokens_per_call: mean of accept length + 1 over the calls; 0 without calls.
  """

  text: str
  tokens: list[int]
  calls: int
  accept_lengths: list[int]
  finish_reason: str
  output: str = 'lossless'

  @property
  def tokens_per_call(self) -> float:
    lengths = self.accept_lengths
    return 1 + sum(lengths) / len(lengths) if lengths else 0.0


@dataclasses.dataclass(frozen=True)
class Options:
  """How to generate; the same for every prompt of a call.

  Attributes:
    max_new_tokens: most new tokens per prompt; compiled for the next of 64,
      128, 256, …
    drafter: a name, or all settings; 'none' is plain decoding, None takes
      streams if there is an adapter.
    tree: draft tree; None takes the adapter's.
    schedule: 'deferred' or 'parallel'.
    sampling: how tokens are drawn; None is greedy, or what `generation_config`
      finds. New settings compile nothing, but for the step from plainly greedy
      ones to others.
    generation_config: 'auto' takes the checkpoint's generation_config.json
      where `sampling` is None, and says so; 'none' does not.
    stop: texts that end a completion; emitted as well.
    seed: of the noise when temperature > 0.
  """

  max_new_tokens: int = 64
  drafter: str | config_drafting.DrafterConfig | None = None
  tree: config.TreeConfig | None = None
  schedule: str = 'deferred'
  sampling: config.SamplingConfig | None = None
  generation_config: str = 'auto'
  stop: tuple[str, ...] = ()
  seed: int = 0


def generate(
  model: runtime.Model,
  prompts: Sequence[str | Sequence[int]],
  options: Options = Options(),
) -> list[Generation]:
  """Completes every prompt, all in one batch.

  Raises:
    ValueError: a prompt is empty, or the options do not fit the model.
  """
  decoder, name = _decoder(model, options)
  result = decoder.generate(
    model.params(name),
    _encode(model, prompts, options.max_new_tokens),
    options.max_new_tokens,
    seed=options.seed,
    sampling=_sampling(model, options),
  )
  rows = zip(
    result.tokens, result.calls, result.accept_lengths, result.finish_reasons
  )
  rule = output(model, options)
  return [
    Generation(
      model.decode_text(tokens), tokens, int(calls), lengths, reason, rule
    )
    for tokens, calls, lengths, reason in rows
  ]


def output(model: runtime.Model, options: Options) -> str:
  """What a reader must know of the tokens, see `Generation`."""
  drafter = _drafter(model, options)
  if isinstance(drafter, str):
    drafter = config_drafting.DrafterConfig(drafter)
  return drafter.output


def _drafter(model, options):
  """The drafter asked for; streams where there are some."""
  return options.drafter or ('streams' if model.stream else 'none')


def stream(
  model: runtime.Model,
  prompts: Sequence[str | Sequence[int]],
  options: Options = Options(),
) -> Iterator[tuple[int, list[int]]]:
  """Yields (row, newly accepted token ids) call by call."""
  decoder, name = _decoder(model, options)
  yield from decoder.stream(
    model.params(name),
    _encode(model, prompts, options.max_new_tokens),
    options.max_new_tokens,
    seed=options.seed,
    sampling=_sampling(model, options),
  )


def _sampling(model, options):
  """How tokens are drawn: as asked, else as the checkpoint wants."""
  checks.one_of(
    'generation_config', options.generation_config, ('auto', 'none')
  )
  sampling = options.sampling
  if sampling is None and options.generation_config == 'auto':
    wishes = model.wishes()
    _tell(wishes.line())
    sampling = wishes.sampling
  sampling = config.SamplingConfig() if sampling is None else sampling
  sampling.check_fits(model.config.vocab_size)
  return sampling


@functools.cache
def _tell(line):
  """Logs a line, once."""
  if line:
    logging.warning('%s', line)


def _buffer(max_new_tokens):
  """Size of the output that is compiled for."""
  checks.at_least('max_new_tokens', max_new_tokens, 1)
  size = _SMALLEST_BUFFER
  while size < max_new_tokens:
    size *= 2
  return size


def _decoder(model, options):
  name = _drafter(model, options)
  decode = config.DecodeConfig(
    max_new_tokens=_buffer(options.max_new_tokens),
    schedule=options.schedule,
    eos_ids=model.eos_ids,
    stop_sequences=tuple(tuple(model.encode(text)) for text in options.stop),
  )
  return model.decoder(name, decode, tree=options.tree), name


def _encode(model, prompts, max_new_tokens):
  if isinstance(prompts, str):
    raise ValueError(
      f'prompts is the text {prompts[:40]!r}; pass a list of texts'
    )
  encoded = [
    model.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
    for prompt in prompts
  ]
  vocab_size = model.config.vocab_size
  wrong = [t for row in encoded for t in row if not 0 <= t < vocab_size]
  if wrong:
    raise ValueError(
      f'prompts hold token id {wrong[0]}; accepted: 0 to {vocab_size - 1}'
    )
  model.warn_if_long(encoded, max_new_tokens)
  return encoded
