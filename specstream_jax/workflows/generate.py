# SPDX-License-Identifier: Apache-2.0
"""Completing prompts: texts or token ids in, texts and statistics out."""

from collections.abc import Iterator, Sequence
import dataclasses

from specstream_jax import config, config_drafting, runtime


@dataclasses.dataclass(frozen=True)
class Generation:
  """One completion.

  Attributes:
    text: what the tokens add to the prompt, with the space in front of a first
      word; up to EOS, which is left out, or to the end of the stop that ended
      it, which is not. None without a tokenizer.
    tokens: new token ids, EOS included, and all of the token in which a stop
      became whole.
    calls: model calls after the prompt pass.
    accept_lengths: accepted draft tokens of each call.
    finish_reason: 'eos', 'stop', 'length' or 'cache'.
    output: 'lossless', 'lossy' or 'synthetic', by the rule that verified.
    tokens_per_call: mean of accept length + 1 over the calls; 0 without calls.
  """

  text: str | None
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
    max_new_tokens: most new tokens per prompt.
    drafter: a name, or all settings; 'none' is plain decoding, None takes
      streams if there is an adapter.
    tree: draft tree; None takes the adapter's.
    schedule: 'deferred' or 'parallel'.
    sampling: temperature, top-k, top-p.
    stop: texts that end a completion as soon as it holds one of them, however
      the model spells it; that text is its end.
    seed: of the noise when temperature > 0.
  """

  max_new_tokens: int = 64
  drafter: str | config_drafting.DrafterConfig | None = None
  tree: config.TreeConfig | None = None
  schedule: str = 'deferred'
  sampling: config.SamplingConfig = config.SamplingConfig()
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
  encoded = _encode(model, prompts, options.max_new_tokens)
  result = decoder.generate(
    model.params(name),
    encoded,
    seed=options.seed,
    stops=model.stop_texts(options.stop),
  )
  rows = zip(
    encoded,
    result.tokens,
    result.calls,
    result.accept_lengths,
    result.finish_reasons,
  )
  rule = output(model, options)
  text = lambda tokens, prompt: (
    model.decode_text(tokens, prompt, options.stop)
    if model.has_tokenizer
    else None
  )
  return [
    Generation(text(tokens, prompt), tokens, int(calls), lengths, reason, rule)
    for prompt, tokens, calls, lengths, reason in rows
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
  encoded = _encode(model, prompts, options.max_new_tokens)
  return _stream(model, encoded, options)


def stream_text(
  model: runtime.Model,
  prompts: Sequence[str | Sequence[int]],
  options: Options = Options(),
) -> Iterator[tuple[int, str]]:
  """Yields (row, new text) call by call; a row's texts are what `generate` says.

  Half a character waits for its other bytes, up to the end if they do not
  come.

  Raises:
    ValueError: see `generate`; or there is no tokenizer.
  """
  encoded = _encode(model, prompts, options.max_new_tokens)
  texts = [model.completion(prompt, options.stop) for prompt in encoded]

  def added():
    for row, tokens in _stream(model, encoded, options):
      yield row, texts[row].add(tokens)
    for row, text in enumerate(texts):
      yield row, text.finish()

  return ((row, new) for row, new in added() if new)


def _stream(model, encoded, options):
  decoder, name = _decoder(model, options)
  return decoder.stream(
    model.params(name),
    encoded,
    seed=options.seed,
    stops=model.stop_texts(options.stop),
  )


def _decoder(model, options):
  name = _drafter(model, options)
  decode = config.DecodeConfig(
    max_new_tokens=options.max_new_tokens,
    schedule=options.schedule,
    eos_ids=model.eos_ids,
  )
  return model.decoder(name, decode, options.sampling, options.tree), name


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
