# SPDX-License-Identifier: Apache-2.0
"""The host's side of a row: what it has said, and when it ends."""

from collections.abc import Iterable, Sequence
import itertools
import time

import numpy as np

from specstream_jax import runtime
from specstream_jax.decoding import loop, seen
from specstream_jax.serving import answers, policy, requests, weights
from specstream_jax.text import completion as completion_lib


class Row:
  """A request from the queue to its end.

  Attributes:
    handle: of whoever asked.
    served: its adapter.
    arrays: what it asks for, as a batch of one.
    has_drafts: whether it drafts when the batch does.
    num_seen: tokens that have come from the device.
    num_found: tokens of the prompt that were not read again.
    num_foreseen: of its prediction, drafts that were right so far.
    finish_reason: None while it goes on.
  """

  def __init__(
    self,
    handle: requests.Handle,
    model: runtime.Model,
    served: weights.Served,
    arrays: loop.Rows,
    *,
    eos_ids: Sequence[int],
    stop_ids: Sequence[int],
    drafts_per_call: int,
  ):
    self.handle, self.served, self.arrays = handle, served, arrays
    self.finish_reason: str | None = None
    self.num_seen = self.num_found = self.num_foreseen = 0
    self._tokens: list[int] = []
    self._eos_ids = frozenset(eos_ids)
    self._drafts_per_call = drafts_per_call
    self.has_drafts = drafts_per_call > 0
    self._are_plain: list[bool] = []  # of each call
    self._has_tree = True  # drafts that the next call verifies
    self._started: float | None = None
    self._first: float | None = None
    self._answer: answers.Answer | None = None
    self._texts: list[str] = []
    if model.has_tokenizer:
      request = handle.request
      text = completion_lib.Completion(
        model.pieces, request.prompt, eos_ids=(*eos_ids, *stop_ids)
      )
      self._answer = answers.Answer(text, request.stop)

  @property
  def kind(self) -> str:
    """Rows that a policy learns of together; a prediction changes much."""
    return self.served.name + '+' * bool(self.handle.request.prediction)

  @property
  def has_trees(self) -> bool:
    """Whether somebody wants to see what each of its calls verifies."""
    return self.handle.request.has_trees

  @property
  def num_calls(self) -> int:
    """Calls of the model that it took part in so far."""
    return len(self._are_plain)

  @property
  def running(self) -> policy.Running:
    """What a policy wants to know of it."""
    limit = int(np.asarray(self.arrays.limits)[0])
    name = self.kind if self.has_drafts else None
    return policy.Running(name, limit - self.num_seen, self._has_tree)

  def why_ends(self, now: float) -> str:
    """Why it has to end though it could go on; '' if it need not."""
    if self.handle.is_cancelled:
      return 'cancelled'
    return 'timeout' if self.handle.is_late(now) else ''

  def start(self) -> None:
    """It has left the queue."""
    self._started = time.monotonic()

  def count_calls(self, num_calls: int, *, has_drafts: bool) -> int:
    """Notes how the calls since then were made.

    Args:
      num_calls: of the row so far.
      has_drafts: whether the batch drafted.

    Returns:
      How many of them verified drafts.
    """
    count = num_calls - len(self._are_plain)
    is_drafting = has_drafts and self.has_drafts
    plain = [not is_drafting] * count
    if plain:
      # After a call without drafts there are none to verify at first.
      plain[0] |= not self._has_tree
      self._has_tree = is_drafting
    self._are_plain += plain
    return count - sum(plain)

  def take(
    self,
    tokens: Sequence[int],
    reason: str,
    accept_lengths: Sequence[int] | None = None,
    trees: Iterable[seen.Tree] = (),
  ) -> None:
    """More tokens from the device, and why the row ended there, if it did.

    Args:
      tokens: new ids.
      reason: of `stopping.REASONS`.
      accept_lengths: of all calls so far, to pass tokens on call by call; None
        passes them on together, but for the first of all, which the prompt
        gave.
      trees: that the calls verified, in turn, to go with their tokens.
    """
    left = iter(trees)
    ends = _ends(accept_lengths or ())
    kept, text = [], ''
    for place, token in enumerate(tokens, self.num_seen):
      if place in ends and kept:
        self._keep(kept)
        self._pass_on(kept, text, next(left, None))
        kept, text = [], ''
      kept.append(token)
      if self._answer is not None:
        text += self._answer.add(token)
        if self._answer.is_stopped:
          self.finish_reason = 'stop'
          break
    self.num_seen += len(tokens)
    self._keep(kept)
    if self.finish_reason is None and reason != 'running':
      is_eos = bool(self._tokens) and self._tokens[-1] in self._eos_ids
      self.finish_reason = 'stop' if reason == 'eos' and not is_eos else reason
    self._pass_on(kept, text, next(left, None))

  def finish(
    self, accept_lengths: Sequence[int], reason: str | None = None
  ) -> requests.Completion:
    """Hands over the whole.

    Args:
      accept_lengths: of each call, tokens after a stop included.
      reason: 'cancelled' or 'timeout' for a row that has not ended by itself.
    """
    if self._answer is not None:
      self._pass_on([], self._answer.finish())
    now, handle = time.monotonic(), self.handle
    kept = _kept(accept_lengths, len(self._tokens))
    since = lambda then: None if then is None else then - handle.submitted
    waited = since(self._started)
    made = requests.Completion(
      self._tokens,
      None if self._answer is None else ''.join(self._texts),
      self.finish_reason or reason or 'cancelled',
      requests.Metrics(
        num_prompt_tokens=len(handle.request.prompt),
        num_new_tokens=len(self._tokens),
        accept_lengths=kept,
        drafts_per_call=self._drafts_per_call,
        waited=now - handle.submitted if waited is None else waited,
        first_token=since(self._first),
        total=now - handle.submitted,
        num_cached_tokens=self.num_found,
        num_plain_calls=sum(self._are_plain[: len(kept)]),
        num_predicted=len(handle.request.prediction),
        # Without those behind a stop that was found later.
        num_foreseen=min(self.num_foreseen, sum(kept)),
      ),
    )
    handle.finish(made)
    return made

  def _keep(self, kept):
    if kept and self._first is None:
      self._first = time.monotonic()
    self._tokens += kept

  def _pass_on(self, tokens, text, tree=None):
    self._texts.append(text)
    if tokens or text:
      self.handle.add(requests.Piece(list(tokens), text, tree))


def _ends(accept_lengths: Sequence[int]) -> set[int]:
  """Places in a completion where a call begins; the prompt gives token 0."""
  return set(itertools.accumulate((n + 1 for n in accept_lengths), initial=1))


def _kept(accept_lengths: Sequence[int], num_tokens: int) -> tuple[int, ...]:
  """Accept lengths of the calls that `num_tokens` tokens took.

  The prompt's pass gives the first; a call gives one more than it accepts.
  """
  left, kept = num_tokens - 1, []
  for length in accept_lengths:
    if left < 1:
      break
    kept.append(min(length, left - 1))
    left -= length + 1
  return tuple(kept)
