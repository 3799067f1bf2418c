# SPDX-License-Identifier: Apache-2.0
"""A chat with one model: turn after turn, through the engine.

What was said before is a prompt that begins alike, so a turn reads only what is
new where the engine keeps prefixes.
"""

from specstream_jax import config, runtime
from specstream_jax.config import checks
from specstream_jax.data import chat
from specstream_jax.serving import engine as engine_lib, requests


def check_can_chat(model: runtime.Model) -> None:
  """Raises ValueError if the model has no chat template."""
  checks.check(
    bool(model.chat_template),
    'the model has no chat template, so it cannot chat; `specstream generate '
    '--prompt=TEXT` continues a text',
  )


class Conversation:
  """Messages of a chat, and the answers to come.

  Attributes:
    messages: {role, content} of what was said, the system's text first.
    has_drafts: whether answers are drafted: same tokens, fewer calls.
  """

  def __init__(
    self,
    model: runtime.Model,
    engine: engine_lib.Engine,
    *,
    system: str = '',
    sampling: config.SamplingConfig = config.SamplingConfig(),
    seed: int = 0,
  ):
    """Begins with nothing said.

    Args:
      model: that the engine serves.
      engine: started.
      system: what the model is told first; '' is nothing.
      sampling: how tokens are drawn.
      seed: of the noise when temperature > 0; later turns take the next ones.

    Raises:
      ValueError: the model has no chat template.
    """
    check_can_chat(model)
    self._model, self._engine = model, engine
    self._system, self._sampling, self._seed = system, sampling, seed
    self.has_drafts = True
    self.messages: list[dict[str, str]] = []
    self.reset()

  def reset(self) -> None:
    """Forgets what was said, but for the system's text."""
    system = {'role': 'system', 'content': self._system}
    self.messages = [system] if self._system else []

  def ask(self, text: str) -> requests.Handle:
    """Says something; `keep` the answer before the next turn.

    Raises:
      ValueError: the template refuses it, or there is no room for an answer;
        nothing was said then.
      RefusedError: the engine takes no more.
    """
    said = [*self.messages, {'role': 'user', 'content': text}]
    prompt = chat.render(self._model.chat_template, said)
    turn = sum(message['role'] == 'user' for message in self.messages)
    handle = self._engine.submit(
      requests.Request(
        tuple(self._model.encode_prompt(prompt)),
        sampling=self._sampling,
        seed=self._seed + turn,
        has_drafts=self.has_drafts,
      )
    )
    self.messages = said
    return handle

  def keep(self, answer: requests.Completion) -> None:
    """Takes what was answered, whole or not, as said."""
    content = (answer.text or '').strip()
    self.messages.append({'role': 'assistant', 'content': content})
