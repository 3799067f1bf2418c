# SPDX-License-Identifier: Apache-2.0
"""Writes peft/: LoRA that PEFT saved, and what torch decodes with it.

Needs torch, transformers and peft, which the tests themselves do not:

  python tests/golden/make_peft.py [--check] [NAME …]

--check compares with what is stored, and writes nothing.
"""

import functools
import json
import pathlib

import golden_files
import numpy as np
import peft
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'peft_folders'
PROMPT_LENGTHS = 3, 7
NUM_NEW = 12
SIZES = {
  'vocab_size': 37,
  'hidden_size': 20,
  'intermediate_size': 26,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'max_position_embeddings': 64,
  'tie_word_embeddings': False,
  'eos_token_id': None,
  'bos_token_id': None,
}
CASES = {
  'list': {'r': 3, 'lora_alpha': 6, 'target_modules': ['q_proj', 'v_proj']},
  'regex': {
    'r': 2,
    'lora_alpha': 5,
    'target_modules': r'.*\.1\.(self_attn\.o_proj|mlp\..*_proj)',
    'use_rslora': True,
  },
  'linear': {'r': 2, 'lora_alpha': 4, 'target_modules': 'all-linear'},
  'patterns': {
    'r': 3,
    'lora_alpha': 4,
    'target_modules': ['q_proj', 'k_proj', 'down_proj'],
    'rank_pattern': {'k_proj': 2, r'layers\.0\.mlp\.down_proj': 5},
    'alpha_pattern': {'down_proj': 9},
    'layers_to_transform': [0],
  },
}


def base_model():
  """The tiny Llama that every LoRA belongs to."""
  torch.manual_seed(0)
  cfg = transformers.LlamaConfig(**SIZES, dtype='float32')
  model = transformers.LlamaForCausalLM(cfg).eval()
  with torch.no_grad():
    for leaf in model.parameters():
      leaf.normal_(std=0.3) if leaf.ndim > 1 else leaf.uniform_(0.5, 1.5)
  return model


def randomise(model):
  """LoRA away from zero, where it begins."""
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      if 'lora_' in name:
        leaf.normal_(std=0.4)


def write_answers(folder, model):
  """Greedy tokens after two prompts, and the logits of the first of them."""
  rng, found = np.random.default_rng(0), []
  for length in PROMPT_LENGTHS:
    prompt = rng.integers(0, SIZES['vocab_size'], size=length).tolist()
    ids = torch.tensor([prompt])
    with torch.no_grad():
      logits = model(ids).logits[0, -1]
      made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW
      )
    found.append(
      {
        'prompt': prompt,
        'tokens': made[0, len(prompt) :].tolist(),
        'logits': [round(float(x), 6) for x in logits],
      }
    )
  (folder / 'answers.json').write_text(json.dumps(found) + '\n')


def write_base(folder):
  """The model without LoRA."""
  base = base_model()
  base.save_pretrained(folder)
  (folder / 'generation_config.json').unlink(missing_ok=True)
  write_answers(folder, base)


def write(name, folder):
  """The LoRA of a case."""
  cfg = peft.LoraConfig(task_type='CAUSAL_LM', **CASES[name])
  model = peft.get_peft_model(base_model(), cfg).eval()
  randomise(model)
  model.save_pretrained(folder)
  (folder / 'README.md').unlink(missing_ok=True)
  path = folder / 'adapter_config.json'
  fields = json.loads(path.read_text())
  if isinstance(fields['target_modules'], list):
    fields['target_modules'].sort()  # a set, written in any order
  path.write_text(json.dumps(fields, indent=2, sort_keys=True))
  write_answers(folder, model)


if __name__ == '__main__':
  golden_files.main(
    FOLDER,
    {'base': write_base}
    | {name: functools.partial(write, name) for name in CASES},
  )
