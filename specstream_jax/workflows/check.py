# SPDX-License-Identifier: Apache-2.0
"""Is decoding lossless here? Properties of a model and its drafters, measured."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import results
from specstream_jax.config import (
  bounds,
  checks,
  drafting as config_drafting,
)
from specstream_jax.data import chat, questions as questions_lib
from specstream_jax.decoding import enumerate_law, transformer_fns
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.outputs import writing

# Float32 rounding of a whole stack; a real difference is orders above.
LOGIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Property:
  """One line of the check.

  Attributes:
    name: what was looked at.
    passed: None for what is reported and cannot fail.
    detail: the measured numbers, in words.
    values: the measured numbers.
  """

  name: str
  passed: bool | None
  detail: str
  values: dict[str, Any] = dataclasses.field(default_factory=dict)

  def line(self) -> str:
    """`ok`, `FAIL` or `info`, name and numbers."""
    word = {True: 'ok  ', False: 'FAIL', None: 'info'}[self.passed]
    return f'{word}  {self.name}: {self.detail}'


@dataclasses.dataclass(frozen=True)
class Options:
  """What to check.

  Attributes:
    drafters: as `config.drafting.parse` reads them; None takes those of
      `default_drafters`.
    task: `name[/split][@DIR]`.
    num_prompts: evenly spread; 0 takes all.
    max_new_tokens: per prompt.
    temperatures: at which tokens must be equal.
    batch: rows per call.
    seed: of the noise and of the enumerated laws.
    laws: enumerate the laws of the verifiers.
  """

  drafters: tuple[str, ...] | None = None
  task: str = 'e2e_sample/test'
  num_prompts: int = 16
  max_new_tokens: int = 64
  temperatures: tuple[float, ...] = (0.0, 0.8)
  batch: int = 4
  seed: int = 0
  laws: bool = True

  def __post_init__(self):
    """Raises ValueError if a value is out of range or of another type."""
    checks.option_types(self)
    if self.drafters is not None:
      checks.not_empty('drafters', self.drafters)
    if not self.laws:
      checks.not_empty('temperatures', self.temperatures)
    checks.at_least('num_prompts', self.num_prompts, 0)
    checks.count('max_new_tokens', self.max_new_tokens, 2, bounds.TOKENS)
    checks.count('batch', self.batch, 1, bounds.ROWS)
    checks.seed('seed', self.seed)


def default_drafters(model: runtime.Model) -> tuple[str, ...]:
  """Those that need no weights of their own, as deep as there are streams."""
  others = ('prompt_lookup', 'lookahead')
  if model.stream is None:
    return others
  two, three = (min(n, model.stream.num_streams) for n in (2, 3))
  full = f'streams:kind=full,depth={two},branching='
  return (
    'streams',
    f'streams:kind=chain,depth={three}',
    f'streams:kind=best_first,num_nodes=4,depth={three},branching=2',
    f'{full}3',
    f'{full}2,drafting=gumbel_top_k,verifier=recursive_rejection',
    f'{full}2,drafting=independent,verifier=multi_step',
    *others,
  )


def check(
  model: runtime.Model,
  options: Options,
  bfloat16: runtime.Model | None = None,
  read_again: Callable[[bool], runtime.Model] | None = None,
) -> Iterator[Property]:
  """Yields every property as soon as it is known.

  Args:
    model: in float32.
    options: what to check.
    bfloat16: the same model in bfloat16, to see where rounding parts the ways.
    read_again: loads the model once more, whole or without its streams; what
      decoded is compared with it.

  Raises:
    ValueError: unknown drafter or task, or the model is not float32.
  """
  if model.config.dtype != 'float32':
    raise ValueError(
      f'the model is in {model.config.dtype}; tokens can only be held equal in '
      'float32, where ties do not flip'
    )
  before = weights_hash(model)
  prompts = _prompts(model, options)
  texts = options.drafters
  if texts is None:
    texts = default_drafters(model)
  drafters = [(text, config_drafting.parse(text, model.tree)) for text in texts]
  for _, drafter in drafters:  # what does not fit is told before the work
    model.decoder(drafter, config.DecodeConfig())
  if options.laws:
    yield from _laws(options.seed)
  if model.stream is not None:
    yield _streams_change_nothing(model, prompts[0])
  for temperature in options.temperatures:
    plain = _decode(model, 'none', prompts, temperature, options)
    for text, drafter in drafters:
      yield _equality(
        text,
        drafter,
        temperature,
        plain,
        _decode(model, drafter, prompts, temperature, options),
      )
  if bfloat16 is not None:
    plain = _decode(bfloat16, 'none', prompts, 0.0, options)
    for text, drafter in drafters:
      fast = _decode(bfloat16, drafter, prompts, 0.0, options)
      yield _divergence(text, bfloat16, prompts, plain, fast)
  after = weights_hash(model)
  yield Property(
    'base weights before and after',
    before == after,
    f'sha256 {before[:16]} and {after[:16]}',
    {'before': before, 'after': after},
  )
  if read_again is not None:
    yield from _as_on_disk(model, prompts, options, read_again)


def write(
  path: str,
  properties: Sequence[Property],
  *,
  command: str = '',
  finished: bool = True,
) -> None:
  """The properties as JSON; `passed` only if the check came to its end.

  Raises:
    ValueError: the folder cannot be written.
  """
  document = {
    'command': command,
    'finished': finished,
    'passed': finished and all(p.passed is not False for p in properties),
    'properties': [dataclasses.asdict(p) for p in properties],
    'versions': results.versions(),
    'environment': results.environment(),
  }
  writing.write_text(os.fspath(path), json.dumps(document, indent=2) + '\n')


def weights_hash(model: runtime.Model) -> str:
  """sha256 over every base weight, by path."""
  digest = hashlib.sha256()
  for path, leaf in sorted(params_lib.flatten(model.base).items()):
    digest.update(path.encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def _prompts(model, options):
  rest, _, data_dir = options.task.partition('@')
  name, _, split = rest.partition('/')
  found = questions_lib.load(
    name, split or 'test', data_dir or None, options.num_prompts
  )
  texts = [
    chat.prompt(model.chat_template, q.turns) if q.is_chat else q.turns[0]
    for q in found
  ]
  prompts = [model.encode_prompt(text) for text in texts]
  for question, prompt in zip(found, prompts):
    model.check_ids(prompt, f'{name}, question {question.question_id}')
  return prompts


def _decode(model, drafter, prompts, temperature, options):
  """New tokens of every prompt."""
  longest = max(map(len, prompts))
  decode = config.DecodeConfig(
    max_new_tokens=options.max_new_tokens,
    eos_ids=model.eos_ids,
    prompt_bucket=-(-longest // 32) * 32,
  )
  sampling = config.SamplingConfig(temperature=temperature)
  decoder = model.decoder(drafter, decode)
  tokens = []
  for start in range(0, len(prompts), options.batch):
    ids = range(start, start + options.batch)
    rows = [prompts[i % len(prompts)] for i in ids]
    made = decoder.generate(
      decoder.params,
      rows,
      seed=options.seed,
      row_ids=list(ids),
      sampling=sampling,
    )
    tokens += made.tokens
  return tokens[: len(prompts)]


def _equality(text, drafter, temperature, plain, fast) -> Property:
  """Token for token; drafters that follow the law only are reported."""
  equal = sum(a == b for a, b in zip(plain, fast, strict=True))
  has_same_tokens = drafter.verifier == 'walk' or not temperature
  promises = has_same_tokens and not drafter.is_lossy
  return Property(
    f'tokens of {text} at temperature {temperature:g}',
    equal == len(plain) if promises else None,
    f'{equal} of {len(plain)} rows equal plain decoding'
    + ('' if promises else '; this rule does not promise equal tokens')
    + (' (lossy)' if drafter.is_lossy else ''),
    {'equal': equal, 'rows': len(plain), 'lossy': drafter.is_lossy},
  )


def _as_on_disk(model, prompts, options, read_again) -> Iterator[Property]:
  """Weights, and of a lossless adapter tokens, against a model read again."""
  is_lossless = model.stream is not None and model.stream.mode == 'lossless'
  again = read_again(not is_lossless)
  own, other = weights_hash(model), weights_hash(again)
  yield Property(
    'weights that decoded and those of '
    + ('the model without streams' if is_lossless else 'model and adapter')
    + ' on disk',
    own == other,
    f'sha256 {own[:16]} and {other[:16]}',
    {'decoded': own, 'disk': other},
  )
  for temperature in options.temperatures if is_lossless else ():
    plain = _decode(again, 'none', prompts, temperature, options)
    fast = _decode(model, 'streams', prompts, temperature, options)
    equal = sum(a == b for a, b in zip(plain, fast, strict=True))
    yield Property(
      f'tokens of the model without streams at temperature {temperature:g}',
      equal == len(plain),
      f'{equal} of {len(plain)} rows with streams equal them',
      {'equal': equal, 'rows': len(plain)},
    )


def _laws(seed):
  """The enumerated law of each exact verifier, and of a planted bias."""
  for found in enumerate_law.run_checks(seed):
    wanted = '<' if found.is_exact else 'must be caught; >'
    bound = enumerate_law.LIMIT * (1 if found.is_exact else 1e4)
    yield Property(
      f'law of {found.name}',
      found.has_passed,
      f'total variation {found.total_variation:.1e} ({wanted} {bound:.0e})',
      {'total_variation': found.total_variation},
    )


def _streams_change_nothing(model, prompt) -> Property:
  """Main logits of one pass with streams at every token, and without."""
  built = build.build(model.config, model.stream, model.lora, model.layout)
  weights = transformer_fns.Params(model.base, model.adapter)
  size = len(prompt)
  tokens = jnp.asarray([prompt], jnp.int32)

  def logits(with_streams):
    """Main logits float32 [1, T, V] of the prompt."""
    fns = transformer_fns.model_fns(built, 'parallel')
    run = jax.jit(
      lambda weights, tokens: fns.logits(
        weights,
        fns.forward(
          weights,
          tokens,
          jnp.arange(size)[None],
          jnp.tri(size, dtype=bool)[None],
          fns.init_cache(1, size),
          with_streams=with_streams,
        ).hidden,
      )
    )
    return np.asarray(run(weights, tokens))

  difference = float(np.abs(logits(True) - logits(False)).max())
  return Property(
    'main logits with streams on and off',
    difference < LOGIT_TOLERANCE,
    f'largest difference {difference:.1e} (< {LOGIT_TOLERANCE:.0e})',
    {'difference': difference},
  )


def _divergence(text, model, prompts, plain, fast) -> Property:
  """Where bfloat16 rounding made the two part, and how near a tie it was."""
  parted = [
    (i, next(n for n, (x, y) in enumerate(zip(a, b)) if x != y))
    for i, (a, b) in enumerate(zip(plain, fast, strict=True))
    if a != b and a[: len(b)] != b[: len(a)]
  ]
  margins = [
    _margin(model, [*prompts[i], *plain[i][:n]], plain[i][n], fast[i][n])
    for i, n in parted
  ]
  detail = f'{len(parted)} of {len(plain)} rows diverge'
  if parted:
    first = min(n for _, n in parted)
    detail += (
      f', first at token {first}; logit margins there '
      f'{min(margins):.3g} to {max(margins):.3g}'
    )
  return Property(
    f'bfloat16 tokens of {text}',
    None,
    detail,
    {'diverging': parted, 'margins': margins, 'rows': len(plain)},
  )


def _margin(model, context, first, second) -> float:
  """Logit of one token less that of another, after `context`, in one pass."""
  size = -(-len(context) // 64) * 64
  fns = transformer_fns.model_fns(
    build.build(model.config, layout=model.layout)
  )

  @jax.jit
  def last_logits(weights, tokens, last):
    hidden = fns.forward(
      weights,
      tokens,
      jnp.arange(size)[None],
      jnp.tri(size, dtype=bool)[None],
      fns.init_cache(1, size),
      with_streams=False,
    ).hidden
    return fns.logits(weights, hidden[0, last])

  tokens = np.zeros((1, size), np.int32)
  tokens[0, : len(context)] = context
  logits = last_logits(
    transformer_fns.Params(model.base), tokens, len(context) - 1
  )
  return float(logits[first] - logits[second])
