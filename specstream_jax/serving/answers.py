# SPDX-License-Identifier: Apache-2.0
"""The text of an answer that ends before a stop.

`text.completion` gives text as it becomes certain; here, what may be the
beginning of a stop waits until it is none, as a stop is no part of the answer.
What a letter costs does not depend on how many stops there are, nor on how long
they are: Aho and Corasick's automaton, as in `text.stops`, over letters.
"""

from collections import deque
from collections.abc import Sequence
import functools

from specstream_jax.text import completion as completion_lib


class Stops:
  """Stop texts as a machine; a state is how much of one a text ends with.

  Attributes:
    depths: of each state, the letters that may be the beginning of a stop.
    found: of each state, the letters of the longest stop that ends there; 0
      where none does.
  """

  def __init__(self, texts: Sequence[str]):
    """State 0 is the beginning; no text is empty."""
    self.depths, self.found = [0], [0]
    self._longer: list[dict[str, int]] = [{}]  # state after one letter more
    for text in texts:
      state = 0
      for letter in text:
        state = self._longer[state].setdefault(letter, len(self._longer))
        if state == len(self._longer):
          self._longer.append({})
          self.found.append(0)
          self.depths.append(0)
      self.found[state] = len(text)
    self._shorter = [0] * len(self._longer)
    self._link()

  def _link(self) -> None:
    """Finds for each state the longest other one that its text ends with."""
    waiting = deque([0])
    while waiting:
      state = waiting.popleft()
      for letter, longer in self._longer[state].items():
        if state:
          self._shorter[longer] = self.after(self._shorter[state], letter)
        self.depths[longer] = self.depths[state] + 1
        self.found[longer] = (
          self.found[longer] or self.found[self._shorter[longer]]
        )
        waiting.append(longer)

  def after(self, state: int, letter: str) -> int:
    """The state after one letter more."""
    while state and letter not in self._longer[state]:
      state = self._shorter[state]
    return self._longer[state].get(letter, 0)


# Choices of one request have the same.
_stops = functools.lru_cache(maxsize=64)(Stops)


class Answer:
  """Text that grows with tokens, up to the first stop to be whole."""

  def __init__(
    self, text: completion_lib.Completion, stops: Sequence[str] = ()
  ):
    """Begins with nothing.

    Args:
      text: of all tokens, without stops of its own.
      stops: none is empty.
    """
    self._text, self._stops = text, _stops(tuple(stops))
    self._held, self._state = '', 0
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
    text, stops = self._held + more, self._stops
    for end, letter in enumerate(more, len(self._held) + 1):
      self._state = stops.after(self._state, letter)
      if length := stops.found[self._state]:
        self.is_stopped, self._held = True, ''
        return text[: end - length]
    num_sure = len(text) - stops.depths[self._state]
    self._held = text[num_sure:]
    return text[:num_sure]
