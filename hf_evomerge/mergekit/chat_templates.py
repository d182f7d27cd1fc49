"""Chat templates by the names that mergekit's files use. The formats are their models'; the texts
are this project's own."""

from __future__ import annotations

AUTO = "auto"  # the one that most of the models have

CHAT_TEMPLATES = {
    "alpaca": (
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{ message.content | trim + '\\n\\n' }}"
        "{%- elif message.role == 'user' -%}{{ '### Instruction:\\n' + message.content | "
        "trim + '\\n\\n' }}"
        "{%- elif message.role == 'user_context' -%}{{ '### Input:\\n' + message.content | "
        "trim + '\\n\\n' }}"
        "{%- elif message.role == 'assistant' -%}"
        "{{ '### Response:\\n' + message.content | trim }}{%- if not loop.last -%}{{ "
        "'\\n\\n' }}{%- endif -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
    "llama3": (
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
        "message.content | trim + '<|eot_id|>' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ "
        "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
    ),
    "mistral": (
        "{%- set told = namespace(text='') -%}"
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{%- set told.text = message.content + '\\n\\n' -%}"
        "{%- elif message.role == 'user' -%}"
        "{{ ' [INST] ' + told.text + message.content + ' [/INST]' }}{%- set told.text = '' -%}"
        "{%- elif message.role == 'assistant' -%}{{ ' ' + message.content + eos_token }}"
        "{%- else -%}{{ raise_exception('roles are system, user and assistant; found ' + "
        "message.role) }}"
        "{%- endif -%}{%- endfor -%}"
    ),
    "exaone": (
        "{%- if messages and messages[0].role != 'system' -%}{{ '[|system|][|endofturn|]\\n' "
        "}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{ '[|' + message.role + '|]' + message.content + ('\\n' if message.role == 'user' "
        "else '[|endofturn|]\\n') }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}"
    ),
}
