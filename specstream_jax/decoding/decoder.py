# SPDX-License-Identifier: Apache-2.0
"""The compiled decoder: pads prompts, checks sizes, owns jit and donation.

Axis letters: B rows, T prompt positions, S cache slots, M tree nodes.
"""

from collections.abc import Iterator, Sequence
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import (
  config,
  memory,
  partitioning,
  sampling as sampling_lib,
)
from specstream_jax.config import budgets as config_budgets
from specstream_jax.decoding import (
  budgets as budgets_lib,
  edits as edits_lib,
  interface,
  loop,
  pauses,
  plain,
  stopping,
  verify,
)

_GREEDY = config.SamplingConfig()
# One for all rows, one for each row, or the decoder's own.
Sampling = config.SamplingConfig | Sequence[config.SamplingConfig] | None
_NO_LIMIT = np.iinfo(np.int32).max


class DecodeResult(NamedTuple):
  """What a batch came to.

  Attributes:
    tokens: new tokens of each row; EOS and what stopped it included.
    calls: [B] model calls of each row, prompt pass excluded.
    accept_lengths: of each call of each row; len(tokens) = 1 + calls + their
      sum, as the prompt pass gives the first token.
    finish_reasons: of each row, 'eos', 'stop', 'length' or 'cache'.
    prefill_seconds: prompt pass of the batch.
    decode_seconds: everything after it.
  """

  tokens: list[list[int]]
  calls: np.ndarray
  accept_lengths: list[list[int]]
  finish_reasons: list[str]
  prefill_seconds: float
  decode_seconds: float

  def tokens_per_call(self) -> float:
    """Mean accept length plus one over all calls; 0 if there were none."""
    num_calls = int(self.calls.sum())
    accepted = sum(map(sum, self.accept_lengths))
    return 1 + accepted / num_calls if num_calls else 0.0

  def accept_histogram(self, path_length: int) -> np.ndarray:
    """[P] number of calls by accept length."""
    flat = [n for row in self.accept_lengths for n in row]
    return np.bincount(np.array(flat, int), minlength=path_length)


class Decoder:
  """Generates with one model, drafter and pair of configs.

  Compiles once for each number of rows and prompt bucket, and at most twice:
  for batches that are greedy and nothing else, and for all others.
  """

  def __init__(
    self,
    model: interface.ModelFns,
    drafter: interface.Drafter,
    cfg: config.DecodeConfig,
    sampling_cfg: config.SamplingConfig = _GREEDY,
    *,
    prompt_model: interface.ModelFns | None = None,
    verifier: interface.Verifier = verify.walk,
    partitioner: partitioning.Partitioner | None = None,
    params: Any = None,
    most_positions: int = 0,
    pays_above: float = 0.0,
    budgets: Sequence[config_budgets.Size] = (),
  ):
    """Takes what is compiled, and `sampling_cfg` for calls that name none.

    `params` are the weights it was made for; others of their shapes, such as
    those of another adapter, need no other compilation. `most_positions` is of
    the model's config. Drafts pause where calls emit fewer tokens than
    `pays_above`, see `pauses`; 0 always drafts. With `budgets`, calls choose
    how much of a tree they verify, see `budgets.run`.
    """
    self.params = params
    self._most_positions = most_positions
    self._partitioner = partitioner or partitioning.local()
    self._sampling = sampling_cfg
    self.setup = interface.DecodeSetup(
      model, prompt_model or model, drafter, cfg, verifier
    )
    self.num_compilations = 0
    self._fitting: set[tuple[int, int]] = set()
    self._prefill = self._partitioner.jit(
      self._counted(loop.prefill), static_argnames='cache_length'
    )
    self._run = self._partitioner.jit(self._counted(loop.run), donate_argnums=1)
    self._gauge = self._run_pausing = None
    if budgets:
      budgets_lib.check(budgets, drafter.size)
      self._gauge = budgets_lib.begin()
      self._run_pausing = self._pausing(budgets_lib.run, sizes=tuple(budgets))
    elif pays_above:
      self._gauge = pauses.begin(pays_above)
      self._run_pausing = self._pausing(pauses.run, pays_above=pays_above)

  def _pausing(self, run, **named):
    """A compiled `run` of the setup and the same without drafts."""

    def run_pausing(setup, *args):
      return run(setup, plain.without_drafts(setup), *args, **named)

    # Lies where it comes back to, or the second batch would compile again.
    self._gauge = jax.device_put(self._gauge, self._partitioner.replicated)
    return self._partitioner.jit(self._counted(run_pausing), donate_argnums=1)

  def _counted(self, fun):
    """`fun` of this setup; every trace counts as a compilation."""

    @functools.wraps(fun)
    def traced(*args, **kwargs):
      self.num_compilations += 1
      return fun(self.setup, *args, **kwargs)

    return traced

  def start(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new: int | Sequence[int] | None = None,
    *,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    stops: stopping.StopTexts | None = None,
    sampling: Sampling = None,
  ) -> loop.DecodeState:
    """Runs the prompt pass; arguments as in `generate`."""
    lengths = [len(prompt) for prompt in prompts]
    limits = self._limits(max_new, len(prompts))
    check_positions(
      max(map(sum, zip(lengths, limits.tolist(), strict=True)), default=0),
      self._most_positions,
    )
    cfgs = self._sampling_of_rows(sampling, limits)
    padded_length, num_slots = self._sizes(lengths)
    padded = np.zeros((len(prompts), padded_length), np.int32)
    for row, prompt in enumerate(prompts):
      padded[row, : len(prompt)] = prompt
    ids = range(len(prompts)) if row_ids is None else row_ids
    on_host: Any = (
      limits,
      _eos_ids(self.setup.cfg, cfgs),
      sampling_lib.row_keys(seed, list(ids)),
    )
    asked = loop.Rows(*on_host)
    if not all(cfg.is_plain_greedy for cfg in cfgs):
      asked = asked._replace(
        settings=sampling_lib.row_settings(cfgs), edits=edits_lib.request(cfgs)
      )
    rows = jax.tree.map(
      self._partitioner.put_rows, (padded, np.array(lengths, np.int32), asked)
    )
    states = None
    if stops is not None:
      states = self._partitioner.put_rows(stops.begin(prompts))
    return self._prefill(
      params, *rows, cache_length=num_slots, stops=stops, text_states=states
    )

  def advance(
    self,
    params: Any,
    state: loop.DecodeState,
    num_steps: int | None = None,
    stops: stopping.StopTexts | None = None,
  ) -> loop.DecodeState:
    """At most `num_steps` more steps, all if None; `state` is consumed.

    `stops` are those that `state` was started with.
    """
    limit = jnp.int32(_NO_LIMIT if num_steps is None else num_steps)
    if self._run_pausing is None:
      return self._run(params, state, limit, stops)
    state, self._gauge = self._run_pausing(
      params, state, self._gauge, limit, stops
    )
    return state

  def generate(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new: int | Sequence[int] | None = None,
    *,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    stops: stopping.StopTexts | None = None,
    sampling: Sampling = None,
  ) -> DecodeResult:
    """Decodes every prompt to its end.

    Args:
      params: weights, passed through to the model.
      prompts: token ids of each row, at least one.
      max_new: most new tokens, for all rows or per row; None takes
        DecodeConfig.max_new_tokens.
      seed: of the noise, when temperature > 0.
      row_ids: identity of each row in the noise; None numbers them from 0. The
        same prompt, seed and id give the same tokens in any batch.
      stops: texts that end a row with the token in which they become whole;
        other texts need no other compilation.
      sampling: how tokens are drawn, for all rows or per row; None takes the
        decoder's own.

    Raises:
      ValueError: a prompt is empty or too long, a limit out of range, or the
        model's logits are not finite.
    """
    begin = time.perf_counter()
    state = self.start(
      params,
      prompts,
      max_new,
      seed=seed,
      row_ids=row_ids,
      stops=stops,
      sampling=sampling,
    )
    jax.block_until_ready(state)
    middle = time.perf_counter()
    state = jax.block_until_ready(self.advance(params, state, stops=stops))
    end = time.perf_counter()
    _check_finite(state)
    return _result(state, middle - begin, end - middle)

  def stream(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new: int | Sequence[int] | None = None,
    *,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    stops: stopping.StopTexts | None = None,
    sampling: Sampling = None,
    steps: int = 1,
  ) -> Iterator[tuple[int, list[int]]]:
    """Yields (row, new tokens) after every `steps` steps; see `generate`."""
    if self._partitioner.is_single:
      stops = jax.device_put(stops)  # once, not with every step
    state = self.start(
      params,
      prompts,
      max_new,
      seed=seed,
      row_ids=row_ids,
      stops=stops,
      sampling=sampling,
    )
    sent = np.zeros(len(prompts), int)
    while True:
      # Copied before the state is donated to the next call.
      tokens, counts = np.array(state.tokens), np.array(state.num_tokens)
      is_finished = bool(np.all(state.is_done))
      for row in np.flatnonzero(counts > sent):
        yield int(row), tokens[row, sent[row] : counts[row]].tolist()
      sent = counts
      if is_finished:
        _check_finite(state)
        return
      state = self.advance(params, state, steps, stops)

  def _limits(self, max_new, batch):
    """Per-row limits int32 [B]."""
    bound = self.setup.cfg.max_new_tokens
    limits = np.asarray(bound if max_new is None else max_new)
    if limits.ndim and limits.shape != (batch,):
      raise ValueError(
        f'max_new has {limits.size} limits for {batch} prompts; give one '
        'number or one per prompt'
      )
    for limit in np.unique(limits):
      if not 1 <= limit <= bound:
        raise ValueError(
          f'max_new is {limit}; accepted: 1 to DecodeConfig.max_new_tokens, '
          f'which is {bound}'
        )
    return np.broadcast_to(limits, (batch,)).astype(np.int32)

  def _sampling_of_rows(self, asked, limits):
    """The settings of each row, held against its limit."""
    cfgs = self._sampling if asked is None else asked
    if isinstance(cfgs, config.SamplingConfig):
      cfgs = [cfgs] * len(limits)
    if len(cfgs) != len(limits):
      raise ValueError(
        f'sampling has {len(cfgs)} settings for {len(limits)} prompts; give one '
        'for all or one per prompt'
      )
    for cfg, limit in zip(cfgs, limits, strict=True):
      if cfg.min_new_tokens > limit:
        raise ValueError(
          f'min_new_tokens is {cfg.min_new_tokens} but at most {limit} new '
          f'tokens are asked for; use min_new_tokens <= {limit}, or allow more'
        )
    return cfgs

  def _sizes(self, lengths):
    """Padded prompt length T and cache length S of a batch."""
    cfg, size = self.setup.cfg, self.setup.drafter.size
    if not lengths or min(lengths) < 1:
      what = f'prompt {lengths.index(0)} is empty' if lengths else 'no prompts'
      raise ValueError(f'{what}; give every row at least one token')
    longest = max(lengths)
    padded = -(-longest // cfg.prompt_bucket) * cfg.prompt_bucket
    if not cfg.cache_length:
      num_slots = padded + cfg.max_new_tokens + size
      self._check_memory(len(lengths), num_slots)
      return padded, num_slots
    if longest + size > cfg.cache_length:
      raise ValueError(
        f'prompt {lengths.index(longest)} has {longest} tokens and the draft '
        f'tree {size} nodes but the cache has {cfg.cache_length} slots; use '
        f'prompts <= {cfg.cache_length - size} tokens or cache_length >= '
        f'{longest + size}'
      )
    self._check_memory(len(lengths), cfg.cache_length)
    return min(padded, cfg.cache_length), cfg.cache_length

  def _check_memory(self, num_rows, num_slots):
    """Refuses a cache that cannot be had, once for each new size."""
    if (num_rows, num_slots) not in self._fitting:
      init = self.setup.prompt_model.init_cache
      cache = jax.eval_shape(lambda: init(num_rows, num_slots))
      memory.check(
        f'the keys and values of {num_rows:,} rows of {num_slots:,} positions',
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)),
        'fewer rows at once, shorter prompts, fewer new tokens or bfloat16 need '
        'less',
        num_devices=self._partitioner.mesh.size,
      )
      self._fitting.add((num_rows, num_slots))


def check_positions(longest: int, most: int) -> None:
  """Refuses a text that would leave the model's positions.

  Args:
    longest: tokens of a prompt and of what follows it.
    most: `ModelConfig.most_positions`.

  Raises:
    ValueError: there are fewer positions than tokens.
  """
  if 0 < most < longest:
    raise ValueError(
      f'prompt and new tokens come to {longest} positions, but the model has '
      f'only {most}; use a shorter prompt or fewer new tokens'
    )


def _eos_ids(cfg, cfgs):
  """[B, E] int32 tokens that end each row, -1 in those that ignore EOS."""
  ids = np.array(cfg.eos_ids, np.int32)
  ignores = np.array([row.ignore_eos for row in cfgs], bool)
  return np.where(ignores[:, None], -1, ids[None]).astype(np.int32)


def _check_finite(state):
  """Raises ValueError if a row ended for want of logits to draw from."""
  reasons = np.asarray(jax.device_get(state.finish_reason))
  stuck = np.flatnonzero(reasons == stopping.NOT_FINITE)
  if stuck.size:
    count = int(state.num_tokens[stuck[0]])
    raise ValueError(
      f"the model's logits are not finite (NaN or infinite) for prompt "
      f'{stuck[0]} after {count} new tokens, and for {stuck.size} of '
      f'{reasons.size} prompts in all, so no token can be drawn; fetch or '
      'convert the weights again if they are damaged, and use dtype float32 if '
      'they overflow'
    )


def _result(state, prefill_seconds, decode_seconds):
  state = jax.device_get(
    (
      state.tokens,
      state.num_tokens,
      state.calls,
      state.accept_lengths,
      state.finish_reason,
    )
  )
  tokens, num_tokens, calls, accept_lengths, reasons = state
  take = lambda rows, counts: [
    row[:n].tolist() for row, n in zip(rows, counts, strict=True)
  ]
  return DecodeResult(
    take(tokens, num_tokens),
    calls,
    take(accept_lengths, calls),
    [stopping.REASONS[reason] for reason in reasons],
    prefill_seconds,
    decode_seconds,
  )
