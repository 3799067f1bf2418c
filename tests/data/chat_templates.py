# SPDX-License-Identifier: Apache-2.0
"""Chat templates of the kinds that published models come with.

Each was written for these tests; what matters is which names, filters and
statements of the language a kind uses, and where it puts special tokens.
"""

CHATML = """
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

LLAMA2 = """
{%- if messages[0]['role'] == 'system' -%}
  {%- set rest = messages[1:] -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
  {%- set rest = messages -%}
  {%- set system = '' -%}
{%- endif -%}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate') -}}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {%- set said = system + message['content'] if loop.first else message['content'] -%}
    {{- bos_token + '[INST] ' + said.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
  {%- set head = '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' %}
  {{- head + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# No BOS anywhere, and line ends that `trim_blocks` takes.
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

PHI = """
{%- for m in messages %}{{ '<|' + m['role'] + '|>' + '\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{%- for message in messages %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('user and assistant take turns') }}
  {%- endif %}
  {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
  {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

MISTRAL = """
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- if tools is not none and message == users[-1] %}
      {{- '[AVAILABLE_TOOLS] [' }}
      {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- '{"type": "function", "function": {' }}
        {%- for key, value in tool.items() if key != 'return' %}
          {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
          {%- else %}{{- '"' + key + '": ' + value | tojson }}{% endif %}
          {%- if not loop.last %}{{- ', ' }}{% endif %}
        {%- endfor %}
        {{- '}}' }}{{- ', ' if not loop.last else '][/AVAILABLE_TOOLS]' }}
      {%- endfor %}
    {%- endif %}
    {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- set ns.index = ns.index + 1 %}
  {%- else %}
    {{- ' ' + message['content'] | trim + eos_token }}
  {%- endif %}
{%- endfor %}
"""

COMMAND = """
{{- bos_token -}}
{%- if documents -%}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Sources\\n' -}}
{%- for document in documents -%}
{{- 'Document: ' ~ loop.index0 ~ '\\n' -}}
{%- for key, value in document.items() -%}{{- key ~ ': ' ~ value ~ '\\n' -}}{%- endfor -%}
{%- endfor -%}
{{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'user' -%}
{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message['role'] == 'assistant' -%}
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}
"""

DEEPSEEK = (
  '{% if not add_generation_prompt is defined %}'
  '{% set add_generation_prompt = false %}{% endif %}'
  "{% set ns = namespace(is_first=false, system='', is_tool=false) %}"
  "{%- for m in messages %}{%- if m['role'] == 'system' %}"
  "{%- set ns.system = m['content'] %}{%- endif %}{%- endfor %}"
  '{{ bos_token }}{{ ns.system }}'
  "{%- for m in messages %}{%- if m['role'] == 'user' %}"
  "{{ '<｜User｜>' + m['content'] }}{%- endif %}"
  "{%- if m['role'] == 'assistant' and m['content'] is not none %}"
  "{%- set content = m['content'] %}"
  "{%- if '</think>' in content %}"
  "{%- set content = content.split('</think>')[-1] %}{%- endif %}"
  "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}"
  '{%- endif %}{%- endfor -%}'
  "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)

QWEN = """
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- '# Tools\\n<tools>' }}
  {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
  {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, open=true) %}
{%- for message in messages[::-1] %}
  {%- set index = (messages | length - 1) - loop.index0 %}
  {%- if ns.open and message.role == 'user' and message.content is string %}
    {%- set ns.open = false %}{%- set ns.last = index %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>assistant\\n' + message.content.rstrip('\\n') }}
    {%- for call in message.tool_calls or [] %}
      {%- if call.function %}{%- set call = call.function %}{%- endif %}
      {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
      {%- if call.arguments is string %}{{- call.arguments }}
      {%- else %}{{- call.arguments | tojson }}{%- endif %}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response><|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# Macros, loop controls, the date, JSON with an indent.
PROGRAM = """
{%- macro part(name, text) -%}
<|start|>{{ name }}<|message|>{{ text }}<|end|>
{%- endmacro -%}
{%- macro listing(items) %}{% for item in items %}{{ loop.index ~ '. ' ~ item }}
{% endfor %}{% endmacro -%}
{{- part('system', 'Year: ' + strftime_now('%Y')) }}
{%- if tools %}{{ part('developer', tools | tojson(indent=2)) }}{% endif %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {%- if loop.index > 9 %}{% break %}{% endif %}
  {{- part(message.role, message.content | trim) }}
{%- endfor %}
{{- listing(messages | map(attribute='role') | unique) }}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""

GENERATION = """
{%- for message in messages %}
{%- set x = 'outer' %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}{% generation %}{% set x = 'inner' %}{{ message.content + '<|im_end|>' }}
{% endgeneration %}{{ x }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

INSTRUCTION = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}
### Instruction:
{{ message['content'] }}

### Response:
{% elif message['role'] == 'assistant' %}
{{ message['content'] }}{{ eos_token }}
{% endif %}
{%- endfor %}"""

# What json.dumps does to order, quotes, <, & and letters beyond ASCII.
JSON = """
{{- messages | tojson }}
{{- messages | tojson(ensure_ascii=True, sort_keys=True) }}
{{- {'b': 1, 'a': [none, true, 1.5]} | tojson(separators=(',', ':')) }}
{%- if tools is not none %}[TOOLS]{% endif %}
{%- if documents is not none %}[DOCUMENTS]{% endif %}
{%- if pad_token is defined %}{{ pad_token }}{% endif %}
{{- unk_token }}{{ nobody_sets_this }}
"""

KINDS = {
  'chatml': CHATML,
  'llama2': LLAMA2,
  'llama3': LLAMA3,
  'zephyr': ZEPHYR,
  'phi': PHI,
  'gemma': GEMMA,
  'mistral': MISTRAL,
  'command': COMMAND,
  'deepseek': DEEPSEEK,
  'qwen': QWEN,
  'program': PROGRAM,
  'generation': GENERATION,
  'instruction': INSTRUCTION,
  'json': JSON,
}

# Tokens that a tokenizer of such a model does not split.
MARKS = (
  '<|im_start|>',
  '<|im_end|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
  '<|user|>',
  '<|assistant|>',
  '<|end|>',
  '<start_of_turn>',
  '<end_of_turn>',
  '[INST]',
  '[/INST]',
  '<|START_OF_TURN_TOKEN|>',
  '<|USER_TOKEN|>',
  '<|CHATBOT_TOKEN|>',
  '<|END_OF_TURN_TOKEN|>',
  '<｜User｜>',
  '<｜Assistant｜>',
  '<｜end▁of▁sentence｜>',
  '<|start|>',
  '<|message|>',
)
