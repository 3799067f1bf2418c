# SPDX-License-Identifier: Apache-2.0
"""What is asked of the engine, and what comes back."""

from collections.abc import Callable, Iterator
import dataclasses
import queue
import threading
import time
from typing import NamedTuple

import numpy as np

from specstream_jax import config
from specstream_jax.config import bounds, checks
from specstream_jax.decoding import seen
from specstream_jax.text import stops

MOST_STOPS = 64  # texts that end one completion


class RefusedError(RuntimeError):
  """A request that the engine cannot take now, though nothing is wrong with it.

  Attributes:
    retry_after: seconds after which it may be worth while; None for never.
  """

  def __init__(self, message: str, retry_after: float | None = None):
    super().__init__(message)
    self.retry_after = retry_after


class NoAdapterError(ValueError):
  """There is no adapter of that name, or no longer."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One text to complete.

  Attributes:
    prompt: token ids, at least one.
    adapter: name of an adapter; '' is the model as it was loaded.
    max_new_tokens: most new tokens; None takes all that there is room for.
    sampling: how tokens are drawn.
    seed: of the noise when temperature > 0; the tokens are those that
      `generate` draws for a first row with this seed.
    stop: texts that end the completion, and are not in it; at most 64, with
      1000 bytes together.
    stop_ids: token ids that do so.
    timeout: seconds after which it ends wherever it is; None is never.
    prediction: token ids that the completion is guessed to be, to copy drafts
      from; the tokens are the same without.
    has_drafts: False decodes this row plainly: same tokens, more calls.
    has_steps: whether every piece is what one call added, which costs a
      transfer from the device per quantum.
    has_trees: whether such a piece has the draft tree of its call, too, for
      which the host waits for every step of the batch; needs `has_steps`.
  """

  prompt: tuple[int, ...]
  adapter: str = ''
  max_new_tokens: int | None = None
  sampling: config.SamplingConfig = config.SamplingConfig()
  seed: int = 0
  stop: tuple[str, ...] = ()
  stop_ids: tuple[int, ...] = ()
  timeout: float | None = None
  prediction: tuple[int, ...] = ()
  has_drafts: bool = True
  has_steps: bool = False
  has_trees: bool = False

  def __post_init__(self):
    """Raises ValueError if a value is of the wrong kind or out of range."""
    checks.option_types(self)
    checks.not_empty('the prompt', self.prompt)
    if self.max_new_tokens is not None:
      most = bounds.TOKENS
      checks.count('max_new_tokens', self.max_new_tokens, 1, most)
    checks.seed('seed', self.seed)
    count = len(self.stop)
    checks.check(
      count <= MOST_STOPS,
      f'stop has {count} texts; accepted: at most {MOST_STOPS}',
    )
    for text in self.stop:
      checks.text('an entry of stop', text)
      checks.check(bool(text), 'an entry of stop is empty; leave it out')
    size = sum(len(text.encode()) for text in self.stop)
    checks.check(
      size <= stops.MAX_BYTES,
      f'stop texts come to {size} bytes; accepted: at most {stops.MAX_BYTES} '
      'together, use fewer or shorter ones',
    )
    if self.timeout is not None:
      checks.at_least('timeout', self.timeout, 0.0)
    checks.check(
      self.has_steps or not self.has_trees,
      'has_trees is True but has_steps is not; trees are those of steps, ask '
      'for both',
    )


class Piece(NamedTuple):
  """What one call of the model, or more, added to a completion.

  Attributes:
    tokens: new ids.
    text: that is certain now and was not before; '' without a tokenizer.
    tree: that the call verified; None where nobody asked, and of calls of a
      batch without drafts.
  """

  tokens: list[int]
  text: str
  tree: seen.Tree | None = None


@dataclasses.dataclass(frozen=True)
class Metrics:
  """What a request cost.

  Attributes:
    num_prompt_tokens: of the prompt.
    num_new_tokens: of the completion, what ended it included.
    accept_lengths: accepted draft tokens of each call after the prompt's.
    drafts_per_call: draft tokens that each of those calls verified.
    waited: seconds in the queue.
    first_token: seconds from the start to the first token; None without one.
    total: seconds from start to end.
    num_cached_tokens: of the prompt, read before for another one.
    num_plain_calls: of the calls, those that verified no drafts, of the request
      or of the whole batch; they have accept length 0.
    num_predicted: token ids of the request's prediction.
    num_foreseen: draft tokens that were right, and copied from the prediction.
  """

  num_prompt_tokens: int
  num_new_tokens: int
  accept_lengths: tuple[int, ...]
  drafts_per_call: int
  waited: float
  first_token: float | None
  total: float
  num_cached_tokens: int = 0
  num_plain_calls: int = 0
  num_predicted: int = 0
  num_foreseen: int = 0

  @property
  def num_calls(self) -> int:
    """Calls of the model after the prompt's."""
    return len(self.accept_lengths)

  @property
  def num_drafting_calls(self) -> int:
    """Of them, those that verified drafts."""
    return self.num_calls - self.num_plain_calls

  @property
  def num_accepted(self) -> int:
    """Draft tokens that were right."""
    return sum(self.accept_lengths)

  @property
  def num_drafted(self) -> int:
    """Draft tokens that were verified."""
    return self.drafts_per_call * self.num_drafting_calls

  @property
  def mean_acceptance_length(self) -> float:
    """Tokens per call that drafted, the one drawn included; 0 without calls."""
    calls = self.num_drafting_calls
    return 1 + self.num_accepted / calls if calls else 0.0

  @property
  def acceptance_rate(self) -> float:
    """Share of the drafted tokens that were accepted; 0 without drafts."""
    drafted = self.num_drafted
    return self.num_accepted / drafted if drafted else 0.0

  def histogram(self, path_length: int) -> list[int]:
    """[P] number of calls that drafted by accept length."""
    lengths = np.array(self.accept_lengths, np.int64)
    counts = np.bincount(lengths, minlength=path_length)
    counts[0] -= self.num_plain_calls
    return counts.tolist()


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a request came to.

  Attributes:
    tokens: new ids, what ended them included.
    text: without EOS and without the stop that ended it; None without a
      tokenizer.
    finish_reason: 'eos', 'stop', 'length', 'cache', 'not_finite', 'cancelled'
      or 'timeout'.
    metrics: what it cost.
  """

  tokens: list[int]
  text: str | None
  finish_reason: str
  metrics: Metrics

  def without_new(self) -> 'Completion':
    """As if no token had been asked for."""
    cost = dataclasses.replace(
      self.metrics,
      num_new_tokens=0,
      accept_lengths=(),
      first_token=None,
      num_plain_calls=0,
      num_foreseen=0,
    )
    return Completion([], '', 'length', cost)


class Handle:
  """A request on its way; any thread may read it.

  Attributes:
    on_end: is told what it came to, None if the engine ended before; from the
      engine's thread, before anybody who waits.
  """

  def __init__(self, request: Request):
    self.request = request
    self.on_end: Callable[[Completion | None], None] = lambda made: None
    self.submitted = time.monotonic()
    self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
    self._is_done = threading.Event()
    self._is_cancelled = False
    self._listener: Callable[[], None] | None = None
    self._completion: Completion | None = None
    self._error: BaseException | None = None

  def __iter__(self) -> Iterator[Piece]:
    """Pieces as they come; for one reader. Raises what `result` raises."""
    while (piece := self._pieces.get()) is not None:
      yield piece
    self._pieces.put(None)
    self._check()

  def listen(self, listener: Callable[[], None]) -> None:
    """Has somebody called, from the engine's thread, whenever more has come."""
    self._listener = listener
    listener()

  def take(self) -> list[Piece]:
    """The pieces that have come since, without waiting for more."""
    pieces = []
    while not self._pieces.empty():
      piece = self._pieces.get()
      if piece is not None:
        pieces.append(piece)
    return pieces

  def result(self, timeout: float | None = None) -> Completion:
    """The whole of it, when it is done.

    Args:
      timeout: seconds to wait; None is for ever.

    Raises:
      TimeoutError: it is not done by then.
      RefusedError: the engine was closed before the end, or has failed.
    """
    if not self._is_done.wait(timeout):
      raise TimeoutError(f'the completion is not done after {timeout} seconds')
    self._check()
    assert self._completion is not None
    return self._completion

  def cancel(self) -> None:
    """Ends it with the quantum that runs now; no use is no harm."""
    self._is_cancelled = True

  @property
  def is_cancelled(self) -> bool:
    """Whether somebody gave it up."""
    return self._is_cancelled

  @property
  def is_done(self) -> bool:
    """Whether there is nothing more to come."""
    return self._is_done.is_set()

  def is_late(self, now: float) -> bool:
    """Whether its time is over."""
    limit = self.request.timeout
    return limit is not None and now - self.submitted >= limit

  def add(self, piece: Piece) -> None:
    """For the engine: more of the completion."""
    self._put(piece)

  def finish(self, completion: Completion) -> None:
    """For the engine: the end."""
    self._completion = completion
    self.on_end(completion)
    self._is_done.set()
    self._put(None)

  def fail(self, error: BaseException) -> None:
    """For the engine: there will be no completion."""
    self._error = error
    self.on_end(None)
    self._is_done.set()
    self._put(None)

  def _put(self, piece: Piece | None) -> None:
    self._pieces.put(piece)
    if self._listener is not None:
      self._listener()

  def _check(self) -> None:
    if self._error is not None:
      # Nothing is wrong with the request, whatever was with the engine.
      raise RefusedError(f'no completion: {self._error}') from self._error
