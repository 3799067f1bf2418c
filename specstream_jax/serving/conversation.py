# SPDX-License-Identifier: Apache-2.0
"""A conversation with an engine, turn by turn, in one thread."""

from collections.abc import Iterator

from specstream_jax import config
from specstream_jax.data import chat
from specstream_jax.serving import engine as engine_lib, requests


class Conversation:
  """What was said, and who answers.

  Attributes:
    has_drafts: whether answers are drafted; the tokens are the same.
    messages: {role, content} so far.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    *,
    sampling: config.SamplingConfig,
    system: str | None = None,
    seed: int = 0,
    is_chat: bool = True,
  ):
    """Begins one.

    Args:
      engine: that no thread serves, with a tokenizer.
      sampling: how tokens are drawn.
      system: the message before all else.
      seed: of the noise.
      is_chat: False continues each text as it is, without what came before.
    """
    self._engine, self._sampling, self._seed = engine, sampling, seed
    self._system, self._is_chat = system, is_chat
    self.has_drafts = True
    self.messages: list[dict[str, str]] = []
    self.reset()

  def reset(self) -> None:
    """Forgets what was said, but for the system message."""
    system = {'role': 'system', 'content': self._system or ''}
    self.messages = [system] if self._system is not None else []

  def ask(self, text: str) -> requests.Handle:
    """Has a text answered; `pieces` gives the answer.

    Raises:
      ValueError: the template refuses it, or it is too long for the slots.
    """
    said = {'role': 'user', 'content': text}
    model = self._engine.model
    if self._is_chat:
      messages = [*self.messages, said]
      text = chat.render(model.chat_template, messages)
    handle = self._engine.submit(
      requests.Request(
        tuple(model.encode_prompt(text)),
        sampling=self._sampling,
        seed=self._seed,
        has_drafts=self.has_drafts,
        has_steps=True,
      )
    )
    if self._is_chat:
      self.messages.append(said)
    return handle

  def pieces(self, handle: requests.Handle) -> Iterator[requests.Piece]:
    """The answer, call by call; `handle.cancel` ends it where it is."""
    while not handle.is_done:
      self._engine.step()
      yield from handle.take()
    if self._is_chat:
      answer = handle.result().text or ''
      self.messages.append({'role': 'assistant', 'content': answer})

  def cost(self, handle: requests.Handle) -> str:
    """What an answer cost, in one line."""
    made = handle.result()
    spent, count = made.metrics, made.metrics.num_new_tokens
    seconds = spent.total - (spent.first_token or 0.0)
    speed = (count - 1) / seconds if count > 1 and seconds > 0 else 0.0
    per_call = spent.mean_acceptance_length
    return (
      f'{count} tokens, {spent.num_calls} calls, {per_call:.2f} tokens per '
      f'call, {speed:.1f} tokens per second, {made.finish_reason}'
    )
