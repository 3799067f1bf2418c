# SPDX-License-Identifier: Apache-2.0
"""Completing prompts: texts or token ids in, texts and statistics out."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging

from specstream_jax import config, runtime
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.workflows import prompts as prompts_lib, tune

_SMALLEST_BUFFER = 64


@dataclasses.dataclass(frozen=True)
class Generation:
  """One completion.

  Attributes:
    text: what the tokens add to the prompt, with the space in front of a first
      word; up to EOS, which is left out, or to the end of the stop that ended
      it, which is not unless it is a special token. None without a tokenizer.
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
    max_new_tokens: most new tokens per prompt. Decoding is compiled for the next
      of 64, 128, 256, … (and for the longest prompt up to a multiple of 64
      tokens), as the cache is as long: another number up to it compiles
      nothing, a larger one once for its step.
    drafter: a name, text as `config.drafting.parse` reads it, or all settings;
      'none' is plain decoding. None takes what `specstream tune` found for this
      machine and so many prompts, else streams if there is an adapter.
    tree: draft tree; None takes the adapter's, or the one that was tuned.
    schedule: 'deferred' or 'parallel'; None takes the one that was tuned, else
      'deferred', or 'parallel' where weights are streamed.
    sampling: how tokens are drawn; None is greedy, or what `generation_config`
      finds. New settings compile nothing, but for the step from plainly greedy
      ones to others.
    generation_config: 'auto' takes the checkpoint's generation_config.json
      where `sampling` is None, and says so; 'none' does not.
    stop: texts that end a completion as soon as it holds one of them, or one
      such text, however the model spells it; that text is its end. The text
      of a special token, such as '<|im_end|>', ends a completion like EOS: it
      is not in the text.
    seed: of the noise when temperature > 0.
    chat: a text is what a user says, and goes through the chat template; else
      it is continued as it is.
  """

  max_new_tokens: int = 64
  drafter: str | config_drafting.DrafterConfig | None = None
  tree: config.TreeConfig | None = None
  schedule: str | None = None
  sampling: config.SamplingConfig | None = None
  generation_config: str = 'auto'
  stop: str | Sequence[str] = ()
  seed: int = 0
  chat: bool = False

  def __post_init__(self):
    """Raises ValueError if a value is of the wrong kind."""
    stop = (self.stop,) if isinstance(self.stop, str) else self.stop
    checks.check(
      isinstance(stop, list | tuple),
      f'stop is {stop!r}; accepted: a text, or a list of texts',
    )
    for text in stop:
      checks.text('an entry of stop', text)
      checks.check(bool(text), 'an entry of stop is empty; leave it out')
    object.__setattr__(self, 'stop', tuple(stop))
    if isinstance(self.drafter, str):
      config_drafting.parse(self.drafter)
    elif self.drafter is not None:
      checks.check(
        isinstance(self.drafter, config_drafting.DrafterConfig),
        f'drafter is {self.drafter!r}; it must be a text or a DrafterConfig',
      )
    checks.seed('seed', self.seed)
    checks.one_of('chat', self.chat, (True, False))
    if self.schedule is not None:
      checks.one_of('schedule', self.schedule, config.SCHEDULES)
    for name, kind in (
      ('tree', config.TreeConfig),
      ('sampling', config.SamplingConfig),
    ):
      value = getattr(self, name)
      is_one = value is None or isinstance(value, kind)
      checks.check(is_one, f'{name} is {value!r}; it must be a {kind.__name__}')


def generate(
  model: runtime.Model,
  prompts: Sequence[Any],
  options: Options = Options(),
  *,
  row_ids: Sequence[int] | None = None,
) -> list[Generation]:
  """Completes every prompt, all in one batch.

  Args:
    model: what completes.
    prompts: see `prompts.encode`.
    options: see `Options`.
    row_ids: identity of each prompt in the noise; None numbers them from 0.

  Raises:
    ValueError: a prompt is empty or of no kind that is accepted, or the options
      do not fit the model.
  """
  encoded = _encode(model, prompts, options)
  decoder = _decoder(model, options, len(encoded))
  sampling = _sampling(model, options)
  result = decoder.generate(
    decoder.params,
    encoded,
    options.max_new_tokens,
    seed=options.seed,
    row_ids=row_ids,
    stops=model.stop_texts(options.stop),
    sampling=sampling,
  )
  rows = zip(
    encoded,
    result.tokens,
    result.calls,
    result.accept_lengths,
    result.finish_reasons,
  )
  rule = output(model, options, len(encoded))
  text = lambda tokens, prompt: (
    model.decode_text(
      tokens, prompt, options.stop, ignore_eos=sampling.ignore_eos
    )
    if model.has_tokenizer
    else None
  )
  return [
    Generation(text(tokens, prompt), tokens, int(calls), lengths, reason, rule)
    for prompt, tokens, calls, lengths, reason in rows
  ]


def output(model: runtime.Model, options: Options, num_rows: int = 1) -> str:
  """What a reader must know of the tokens, see `Generation`."""
  return _drafter(model, options, num_rows)[0].output


def _drafter(model, options, num_rows):
  """(drafter, schedule): as asked, else as tuned, else streams if there are."""
  tree, schedule = options.tree or model.tree, options.schedule
  drafter = options.drafter
  if drafter is None and tree == model.tree:
    tuned = tune.find(model, num_rows)
    if tuned is not None and schedule in (None, tuned.schedule):
      drafter, schedule = tuned.drafter, tuned.schedule
  drafter = drafter or ('streams' if model.stream else 'none')
  if isinstance(drafter, str):
    drafter = config_drafting.parse(drafter, tree)
  # One pass a call, where a pass waits for weights.
  default = 'deferred' if model.streamed is None else 'parallel'
  return drafter, schedule or default


def stream(
  model: runtime.Model,
  prompts: Sequence[Any],
  options: Options = Options(),
) -> Iterator[tuple[int, list[int]]]:
  """Yields (row, newly accepted token ids) call by call."""
  encoded = _encode(model, prompts, options)
  return _stream(model, encoded, options)


def stream_text(
  model: runtime.Model,
  prompts: Sequence[str | Sequence[int]],
  options: Options = Options(),
  *,
  row_ids: Sequence[int] | None = None,
) -> Iterator[tuple[int, str]]:
  """Yields (row, new text) call by call; a row's texts are what `generate` says.

  Half a character waits for its other bytes, up to the end if they do not
  come.

  Args:
    model: what completes.
    prompts: see `generate`.
    options: see `Options`.
    row_ids: numbers of the rows for their noise, their places if not given.

  Raises:
    ValueError: see `generate`; or there is no tokenizer.
  """
  encoded = _encode(model, prompts, options)
  ignores = _sampling(model, options).ignore_eos
  texts = [
    model.completion(prompt, options.stop, ignore_eos=ignores)
    for prompt in encoded
  ]

  def added():
    for row, tokens in _stream(model, encoded, options, row_ids):
      yield row, texts[row].add(tokens)
    for row, text in enumerate(texts):
      yield row, text.finish()

  return ((row, new) for row, new in added() if new)


def _stream(model, encoded, options, row_ids=None):
  decoder = _decoder(model, options, len(encoded))
  return decoder.stream(
    decoder.params,
    encoded,
    options.max_new_tokens,
    seed=options.seed,
    row_ids=row_ids,
    stops=model.stop_texts(options.stop),
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
  size = _SMALLEST_BUFFER
  while size < max_new_tokens:
    size *= 2
  return size


def _decoder(model, options, num_rows):
  _ = config.DecodeConfig(options.max_new_tokens)  # in the words of the user
  drafter, schedule = _drafter(model, options, num_rows)
  decode = config.DecodeConfig(
    max_new_tokens=_buffer(options.max_new_tokens),
    schedule=schedule,
    eos_ids=model.eos_ids,
  )
  return model.decoder(drafter, decode, tree=options.tree)


def _encode(model, prompts, options):
  encoded = prompts_lib.encode(model, prompts, is_chat=options.chat)
  model.warn_if_long(encoded, options.max_new_tokens)
  return encoded
