# SPDX-License-Identifier: Apache-2.0
"""Answers as the OpenAI API has them."""

from collections.abc import Iterator, Sequence
import time
from typing import Any, NamedTuple
import uuid

from specstream_jax import runtime
from specstream_jax.decoding import seen
from specstream_jax.serving import likelihoods, protocol, requests, scoring

# What the API calls the ends that it knows; the others go by their own name.
_REASONS = {'eos': 'stop', 'cache': 'length'}


class Kind(NamedTuple):
  """How one of the two endpoints names things.

  Attributes:
    prefix: of ids.
    whole: `object` of an answer.
    chunk: `object` of a piece of it.
    is_chat: whether text is a message.
  """

  prefix: str
  whole: str
  chunk: str
  is_chat: bool


TEXT = Kind('cmpl', 'text_completion', 'text_completion', False)
CHAT = Kind('chatcmpl', 'chat.completion', 'chat.completion.chunk', True)


class Shape:
  """The answers to one call."""

  def __init__(
    self,
    kind: Kind,
    call: protocol.Call,
    path_length: int,
    model: runtime.Model,
  ):
    """Gives the answer an id.

    Args:
      kind: `TEXT` or `CHAT`.
      call: what is answered.
      path_length: P, for the histogram.
      model: whose tokenizer spells tokens.
    """
    self.call, self._kind, self._path_length = call, kind, path_length
    self._model = model
    self._id = f'{kind.prefix}-{uuid.uuid4().hex}'
    self._created = int(time.time())

  def whole(
    self,
    made: Sequence[requests.Completion],
    scores: Sequence[scoring.Scores] = (),
  ) -> dict[str, Any]:
    """All of it at once.

    Args:
      made: a completion for each request.
      scores: of prompt and completion of each; none if nobody asked.
    """
    choices = []
    for index, one in enumerate(made):
      text = self.call.echo(index) + (one.text or '')
      said: dict[str, Any] = {'text': text}
      if self._kind.is_chat:
        said = {'message': {'role': 'assistant', 'content': text}}
      choice = self._choice(index, said, _reason(one))
      if scores:
        choice['logprobs'] = self._likelihoods(index, one, scores[index])
      choices.append(choice)
    return {
      **self._head(self._kind.whole),
      'choices': choices,
      'usage': self._usage(made),
      'metrics': self._metrics(made),
    }

  def first(self) -> Iterator[dict[str, Any]]:
    """What comes before new text: who speaks in a chat, or the prompt."""
    for index in range(len(self.call.requests)):
      if self._kind.is_chat:
        yield self._chunk(index, {'role': 'assistant', 'content': ''})
      elif text := self.call.echo(index):
        yield self._chunk(index, text)

  def piece(self, index: int, piece: requests.Piece) -> dict[str, Any]:
    """More text of a choice, with the tokens of the call if that is asked.

    And with the draft tree that it verified: texts and parents of its nodes,
    the root first, and those that were accepted.
    """
    said = {'content': piece.text} if self._kind.is_chat else piece.text
    chunk = self._chunk(index, said)
    if self.call.has_steps:
      step: dict[str, Any] = {'num_tokens': len(piece.tokens)}
      if piece.tree is not None:
        step['tree'] = self._tree(piece.tree, piece.tokens)
      chunk['metrics'] = {'speculative_decoding': step}
    return chunk

  def _tree(self, tree: seen.Tree, tokens: Sequence[int]) -> dict[str, Any]:
    """A call's tree; of its tokens, the last was drawn and not accepted."""
    shown: dict[str, Any] = {
      'tokens': tree.tokens,
      'parents': tree.parents,
      'path': tree.path(tokens[:-1]),
    }
    if self._model.has_tokenizer:
      name = lambda token: likelihoods.spell(self._model.pieces, token, False)[
        1
      ]
      shown['texts'] = list(map(name, tree.tokens))
    return shown

  def end(
    self,
    index: int,
    made: requests.Completion,
    scores: scoring.Scores | None = None,
  ) -> dict[str, Any]:
    """The end of a choice, with what it cost.

    Args:
      index: of the choice.
      made: all of it.
      scores: of prompt and completion, if they are asked for: only the whole
        text is scored, so all log-probabilities come here.
    """
    said = {} if self._kind.is_chat else ''
    chunk = self._chunk(index, said, _reason(made))
    if scores is not None:
      [choice] = chunk['choices']
      choice['logprobs'] = self._likelihoods(index, made, scores)
    return {**chunk, 'metrics': self._metrics([made])}

  def usage(self, made: Sequence[requests.Completion]) -> dict[str, Any]:
    """The last piece, if it is asked for."""
    head = self._head(self._kind.chunk)
    return {**head, 'choices': [], 'usage': self._usage(made)}

  def _head(self, name: str) -> dict[str, Any]:
    return {
      'id': self._id,
      'object': name,
      'created': self._created,
      'model': self.call.model,
    }

  def _chunk(self, index, said, reason=None) -> dict[str, Any]:
    said = {'delta': said} if self._kind.is_chat else {'text': said}
    choices = [self._choice(index, said, reason)]
    return {**self._head(self._kind.chunk), 'choices': choices}

  def _choice(self, index, said, reason) -> dict[str, Any]:
    return {'index': index, **said, 'logprobs': None, 'finish_reason': reason}

  def _likelihoods(self, index, made, scores) -> dict[str, Any]:
    prompt = self.call.requests[index].prompt
    show = likelihoods.of_chat if self._kind.is_chat else likelihoods.of_text
    return show(
      self._model.pieces,
      [*prompt, *made.tokens],
      scores,
      start=0 if self.call.echoes else len(prompt),
      num_top=self.call.num_top or 0,
    )

  def _usage(self, made: Sequence[requests.Completion]) -> dict[str, Any]:
    """Tokens in and out; a prompt counts once, however many its choices.

    Of its tokens, cached are those that a prompt before had read.
    """
    prompts = made[:: self.call.num_choices]
    prompt = sum(one.metrics.num_prompt_tokens for one in prompts)
    new = sum(one.metrics.num_new_tokens for one in made)
    cached = sum(one.metrics.num_cached_tokens for one in prompts)
    usage: dict[str, Any] = {
      'prompt_tokens': prompt,
      'completion_tokens': new,
      'total_tokens': prompt + new,
      'prompt_tokens_details': {'cached_tokens': cached},
    }
    costs = [one.metrics for one in made if one.metrics.num_predicted]
    if costs:
      left = (max(cost.num_predicted - cost.num_foreseen, 0) for cost in costs)
      usage['completion_tokens_details'] = {
        'accepted_prediction_tokens': sum(cost.num_foreseen for cost in costs),
        'rejected_prediction_tokens': sum(left),
      }
    return usage

  def _metrics(self, made: Sequence[requests.Completion]) -> dict[str, Any]:
    """Drafting of one or several completions together."""
    costs = [one.metrics for one in made]
    calls = sum(cost.num_drafting_calls for cost in costs)
    accepted = sum(cost.num_accepted for cost in costs)
    drafted = sum(cost.num_drafted for cost in costs)
    histograms = [cost.histogram(self._path_length) for cost in costs]
    return {
      'speculative_decoding': {
        'mean_acceptance_length': 1 + accepted / calls if calls else 0.0,
        'draft_acceptance_rate': accepted / drafted if drafted else 0.0,
        'num_draft_tokens': drafted,
        'num_accepted_draft_tokens': accepted,
        'num_spec_steps': calls,
        'acceptance_histogram': [sum(n) for n in zip(*histograms)],
      }
    }


def _reason(made: requests.Completion) -> str:
  return _REASONS.get(made.finish_reason, made.finish_reason)
