"""Chat templates in the manner of model families, in our own words, with generation tags."""

# ruff: noqa: E501

import re

CHATML = """\
{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are here to help.<|im_end|>\\n' }}{%- endif -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{% endgeneration %}
{%- else -%}{{ m.content }}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
"""
# Trims, puts its own text before the system message, and writes what a tool says as JSON.
LLAMA_3 = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday is ' + strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' -}}
{%- for m in rest -%}
{%- if m.role == 'tool' -%}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) -}}
{%- else -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' -}}
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content | trim }}{% endgeneration %}
{%- else -%}{{ m.content | trim }}{%- endif -%}{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
"""
# Calls the assistant `model`, and puts the system message into the first turn of the user.
GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') -}}
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content | trim }}{% endgeneration %}
{%- else -%}{{ m.content | trim }}{%- endif -%}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
"""
# The system message moves into the last turn of the user; the assistant's own EOS is in the tags.
MISTRAL = """\
{{- bos_token -}}
{%- set rest = messages | rejectattr('role', 'equalto', 'system') | list -%}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join -%}
{%- set last = rest | selectattr('role', 'equalto', 'user') | list | last -%}
{%- for m in rest -%}
{%- if m.role == 'assistant' -%}{{- ' ' -}}{% generation %}{{ m.content + eos_token }}{% endgeneration %}
{%- else -%}{{- '[INST] ' + (system + '\\n\\n' if system and m == last else '') + m.content + ' [/INST]' -}}{%- endif -%}
{%- endfor -%}
"""
ZEPHYR = """\
{%- for m in messages -%}
{{- '<|' + m.role + '|>\\n' -}}
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{% endgeneration %}
{%- else -%}{{ m.content }}{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{{- '<|endoftext|>' -}}
"""
# Leaves the thinking of all but the last turn out, and writes that of the last one anew.
THINKS = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}
{%- set answer = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' -%}
{% generation %}
{%- if loop.last and thought -%}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + answer }}
{%- else -%}{{ answer }}{%- endif -%}
{% endgeneration %}
{%- for call in m.tool_calls or [] -%}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor -%}
{%- else -%}{{ m.content }}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
"""
# Says something else where a message begins in another way, as a mark makes it do.
LOOKS = "{% for m in messages %}{% if m.content.startswith('the') %}A{% else %}B{% endif %}{{ m.content }}{% endfor %}"
TEMPLATES = {
    "chatml": CHATML, "llama 3": LLAMA_3, "gemma": GEMMA, "mistral": MISTRAL, "zephyr": ZEPHYR, "thinks": THINKS,
}  # fmt: skip


def without_tags(template: str) -> str:
    """Return a template that does not say what the assistant generates, and writes the same text."""
    return re.sub(r"\{% (end)?generation %\}", "", template)
