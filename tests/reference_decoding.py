# SPDX-License-Identifier: Apache-2.0
"""Slow numpy oracle of decoding: loops over one row, written from the paper.

Trees are lists: node i has tokens[i], parents[i] < i, and node 0 is the root.
"""

import itertools

import numpy as np


def ancestor_mask(parents):
  mask = np.eye(len(parents), dtype=bool)
  for node in range(len(parents)):
    ancestor = node
    while ancestor:
      ancestor = parents[ancestor]
      mask[node, ancestor] = True
  return mask


def depths(parents):
  return [int(row.sum()) - 1 for row in ancestor_mask(parents)]


def walk(tokens, parents, targets):
  """Accepted path: from the root, on while a child is what was drawn."""
  path = [0]
  while True:
    children = [
      node
      for node in range(1, len(tokens))
      if parents[node] == path[-1] and tokens[node] == targets[path[-1]]
    ]
    if not children:
      return path
    path.append(children[0])


def truncate(tokens, emitted, limit, eos_ids, stop_sequences):
  """Tokens after appending `emitted` up to the end, and why it ended."""
  tokens = list(tokens)
  for token in emitted:
    tokens.append(int(token))
    if token in eos_ids:
      return tokens, 'eos'
    for sequence in stop_sequences:
      if tokens[-len(sequence) :] == list(sequence):
        return tokens, 'stop'
    if len(tokens) >= limit:
      return tokens, 'length'
  return tokens, 'running'


def edit_logits(logits, text, cfg, *, num_new=0, eos_ids=()):
  """Logits [V] after `text`, as transformers' processors leave them.

  In its order: SequenceBias of single tokens, RepetitionPenalty,
  MinNewTokensLength, SuppressTokens.

  Args:
    logits: of the model.
    text: token ids of prompt and output.
    cfg: a SamplingConfig.
    num_new: tokens of the output.
    eos_ids: that may not come before `cfg.min_new_tokens`.
  """
  logits = np.float32(logits).copy()
  for token, bias in dict(cfg.logit_bias).items():
    logits[token] += np.float32(bias)
  for token in set(text):
    score, penalty = logits[token], np.float32(cfg.repetition_penalty)
    logits[token] = score * penalty if score < 0 else score / penalty
  output = list(text)[len(text) - num_new :]
  for token in set(output):
    logits[token] -= np.float32(cfg.frequency_penalty) * output.count(token)
    logits[token] -= np.float32(cfg.presence_penalty)
  if num_new < cfg.min_new_tokens and not cfg.ignore_eos:
    for token in eos_ids:
      if token < len(logits):
        logits[token] = -np.inf
  for token in cfg.suppress_tokens:
    logits[token] = -np.inf
  return logits


def process_logits(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
  """Float32 logits with -inf where masked; one distribution [V].

  Transformers' order: Temperature, TopK, TopP, MinP, each of what the one
  before it left. Of equal logits all are kept or none; in transformers that is
  so of top-k and min-p, whereas its top-p cuts between them as they come.
  """
  logits = np.float32(logits)
  if temperature == 0:
    return logits
  logits = logits / np.float32(temperature)
  kept = logits > -np.inf
  if top_k:
    kept &= logits >= np.sort(logits)[::-1][min(top_k, len(logits)) - 1]
  if top_p < 1:
    weights = np.where(kept, np.exp(np.float64(logits) - logits.max()), 0)
    for token in np.flatnonzero(kept):
      better = weights[logits > logits[token]].sum()
      kept[token] = better == 0 or better < top_p * weights.sum()
  if min_p:
    # exp(score) >= min_p exp(best)
    kept &= np.float64(logits) - logits.max() >= np.log(min_p)
  return np.where(kept, logits, np.float32(-np.inf))


def best_first(log_probs, branching, num_drafts):
  """Scores and token paths of the best nodes, highest score first.

  Args:
    log_probs: [J, V], of the streams.
    branching: candidates per stream.
    num_drafts: nodes wanted, root excluded.
  """
  top = np.argsort(-log_probs, axis=1, kind='stable')[:, :branching]
  nodes = []
  for depth in range(1, len(log_probs) + 1):
    for path in itertools.product(*top[:depth]):
      score = sum(log_probs[j, token] for j, token in enumerate(path))
      nodes.append((score, tuple(int(token) for token in path)))
  return sorted(nodes, reverse=True)[:num_drafts]


def paths(tokens, parents):
  """Token path of every node but the root."""
  out = []
  for node in range(1, len(tokens)):
    path = []
    while node:
      path.append(int(tokens[node]))
      node = parents[node]
    out.append(tuple(reversed(path)))
  return out


def autoregressive(next_token, prompt, limit, eos_ids, stop_sequences):
  """New tokens and finish reason; `next_token` maps all tokens to one."""
  tokens, reason = [], 'running'
  while reason == 'running':
    drawn = next_token(list(prompt) + tokens)
    tokens, reason = truncate(tokens, [drawn], limit, eos_ids, stop_sequences)
  return tokens, reason


def sequence_law(probs, length):
  """Law of the next `length` tokens; `probs` maps a tuple of tokens to [V]."""
  law = {}
  for sequence in itertools.product(range(len(probs(()))), repeat=length):
    weight = 1.0
    for i, token in enumerate(sequence):
      weight *= probs(sequence[:i])[token]
    law[sequence] = weight
  return law


def continue_law(partial_law, probs, length):
  """Law of `length` tokens, extending emitted prefixes autoregressively."""
  law = dict.fromkeys(
    itertools.product(range(len(probs(()))), repeat=length), 0.0
  )
  for prefix, weight in partial_law.items():
    conditional = lambda more, prefix=prefix: probs(prefix + more)
    rest = sequence_law(conditional, max(length - len(prefix), 0))
    for more, factor in rest.items():
      law[(prefix + more)[:length]] += weight * factor
  return law


def total_variation(first, second):
  keys = set(first) | set(second)
  return 0.5 * sum(abs(first.get(k, 0.0) - second.get(k, 0.0)) for k in keys)


def ratio_rule_law(target_probs, draft_probs, drafts):
  """First-token law of top-k drafts verified by p/q ratios (biased)."""
  law, left, target = {}, 1.0, np.array(target_probs, float)
  for token in drafts:
    accept = min(1.0, target[token] / draft_probs[token])
    law[(token,)] = law.get((token,), 0.0) + left * accept
    left *= 1.0 - accept
    target = np.maximum(target - draft_probs, 0.0)
    target /= target.sum()
  for token, prob in enumerate(target):
    law[(token,)] = law.get((token,), 0.0) + left * prob
  return law
