# SPDX-License-Identifier: Apache-2.0
"""The text of an answer that ends before a stop.

`text.completion` gives text as it becomes certain; here, what may be the
beginning of a stop waits until it is none, as a stop is no part of the answer.
"""

from collections.abc import Sequence

from specstream_jax.text import completion as completion_lib


class Answer:
  """Text that grows with tokens, up to the first stop."""

  def __init__(
    self, text: completion_lib.Completion, stops: Sequence[str] = ()
  ):
    """Begins with nothing.

    Args:
      text: of all tokens, without stops of its own.
      stops: none is empty.
    """
    self._text, self._stops = text, tuple(stops)
    self._held = ''
    self.is_stopped = False

  def add(self, token: int) -> str:
    """What is certain now and was not before."""
    return self._release(self._text.add([token]))

  def finish(self) -> str:
    """The rest."""
    if self.is_stopped:
      return ''
    rest = self._release(self._text.finish())
    rest, self._held = rest + self._held, ''
    return rest

  def _release(self, more: str) -> str:
    """Of what is held and `more`, all that no stop may begin with."""
    if self.is_stopped:
      return ''
    text = self._held + more
    places = [place for s in self._stops if (place := text.find(s)) >= 0]
    if places:
      self.is_stopped, self._held = True, ''
      return text[: min(places)]
    num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
    self._held = text[len(text) - num_held :]
    return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
  """Length of the longest end of `text` that `stop` begins with, not whole."""
  longest = min(len(text), len(stop) - 1)
  lengths = range(longest, 0, -1)
  return next((n for n in lengths if text.endswith(stop[:n])), 0)
