# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: a progress line, its legend, evaluations."""

from collections.abc import Mapping

_SCORES = 'top-1 is how often the likeliest token is the right one'
STREAMS = f'{_SCORES}: the next | one to γ further on, by streams 1 to γ'
HEADS = f'{_SCORES}, of heads 1 to γ, one to γ tokens beyond the next'
DART = (
  'loss is the divergence from the target, top-1 how often both have the same '
  'likeliest token, one to γ tokens beyond the next'
)
DRAFT_MODEL = (
  'loss is the divergence from the target, top-1 how often both have the same '
  'likeliest token'
)


def line(means: Mapping[str, float]) -> str:
  """'loss 0.512, top-1 0.98 | 0.23 0.19, 2.31 tokens per call', what there is.

  Args:
    means: metrics by name, of the n-gram objective, Medusa or a draft model.
  """
  parts = []
  loss = means.get('loss/main', means.get('loss/total'))
  if loss is not None:
    parts.append(f'loss {loss:.3f}')
  named = lambda start: [v for k, v in means.items() if k.startswith(start)]
  main = named('top1/main')
  # What drafts come from: behind the coupling, if there is one.
  ahead = named('top1/coupled') or named('top1/stream')
  shown = ' | '.join(
    ' '.join(f'{value:.2f}' for value in values)
    for values in (main, ahead)
    if values
  )
  if shown:
    parts.append(f'top-1 {shown}')
  if 'tokens_per_call' in means:
    parts.append(f'{means["tokens_per_call"]:.2f} tokens per call')
  if 'predicted_speedup' in means:
    parts.append(f'predicted speed-up {means["predicted_speedup"]:.2f}')
  if 'tokens_per_second' in means:
    parts.append(f'{means["tokens_per_second"]:.0f} tokens/s')
  return ', '.join(parts)
