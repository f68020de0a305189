#!/usr/bin/env python3
"""Writes cases.json: chat templates, what they are given, and what Jinja makes of them.

usage: tests/unit/serve_chat/expect.py      (needs Debian's python3-jinja2)

Jinja is set up as Hugging Face's apply_chat_template does. A case whose template Jinja refuses has no "expected".
"""
import json
import os

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

TALK = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': ' Hi "there"\n<b> é 😀 '},
        {'role': 'assistant', 'content': 'Hello.'}, {'role': 'user', 'content': 'Why?'}]
TOOLS = [{'type': 'function', 'function': {'name': 'switch', 'description': "turns 'it' on", 'parameters': {
    'type': 'object', 'properties': {'room': {'type': 'string', 'enum': ['hall', 'attic']}}, 'required': ['room']}}}]
CALLS = TALK[1:2] + [{'role': 'assistant', 'content': None, 'tool_calls': [
    {'type': 'function', 'function': {'name': 'switch', 'arguments': {'room': 'hall', 'level': 0.5, 'now': True}}}]},
    {'role': 'tool', 'content': '{"ok": true}'}]

# Four families of layout, in our own words.
MARKED = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
          " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
BRACKETS = """{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content ~ '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('user and assistant must take turns') -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        {{- '[INST] ' ~ (system if loop.first else '') ~ m.content | trim ~ ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + m['content'].strip() + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
HEADERS = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set found = namespace(system='', calls=0) %}
{%- for m in messages if m.role == 'system' %}{% set found.system = found.system + m.content | trim %}{% endfor %}
{{- "<|head|>system<|end|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools:\\n" }}
    {%- for t in tools %}
        {{- t.function | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{{- found.system }}{{ "<|eot|>" }}
{%- for m in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if 'tool_calls' in m and m.tool_calls %}
        {%- for call in m.tool_calls %}
            {%- set found.calls = found.calls + 1 %}
            {{- '<call ' ~ found.calls ~ '>' ~ call.function.name ~ call.function.arguments | tojson }}
        {%- endfor %}
    {%- else %}
        {{- '<|head|>' + m.role + '<|end|>\\n\\n' + (m.content | string) + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
MACROS = """{% macro turn(role, text, end='</s>') %}
<|{{ role }}|>
{{ text }}{{ end }}
{% endmacro %}
{# a comment #}
{% for m in messages %}
    {% if m.role == "system" %}
        {% continue %}
    {% elif m.content is none or m.content is not string %}
        {% break %}
    {% endif %}
{{ turn(m.role, m.content, end='' if loop.last else '</s>') }}
{% else %}
nothing said
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}

"""
FULL = [(name, source, {'messages': messages, 'add_generation_prompt': more, 'bos_token': '<s>', 'eos_token': '</s>',
                        **extra})
        for name, source in (('marked', MARKED), ('brackets', BRACKETS), ('headers', HEADERS), ('macros', MACROS))
        for messages in (TALK, TALK[1:], CALLS, [])
        for more, extra in ((True, {}), (False, {'tools': TOOLS}))]
X = {'x': {'a': 1, 'b': [1, 2, 3], 'c': 'Wörter und Zeichen', 'items': 7}, 'n': 5, 'f': 2.5, 'none': None,
     'l': ['b', 'a', 'c', 'a'], 'm': TALK, 's': ' padded text\n', 'big': 1e22, 'd': {'z': 1, 'a': {'q': "it's"}}}
SHORT = r"""
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ -2 ** 2 }} {{ 7.0 }} {{ 1e3 }} {{ big }} {{ 0.1 + 0.2 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }} {{ 'ab' * 3 }} {{ [1, 'two', none, true, 2.0, "it's", 'say "x"\n'] }} {{ d }} {{ {'k': [1]} }}
{{ not n }} {{ n and f }} {{ 0 or 'x' }} {{ n > 3 and n < 10 }} {{ 1 == 1.0 }} {{ 'a' in 'cat' }} {{ 'z' not in l }} {{ 'a' in x }} {{ 3 in x.b }}
{{ x.a }} {{ x['c'] }} {{ x.b[0] }} {{ x.b[-1] }} {{ x.b[5] }} {{ x.missing }} {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ x.c[1:4] }} {{ x.c[::-1] }} {{ l[::2] }}
{{ 'yes' if n else 'no' }} {{ 'yes' if missing }} {{ 'a' if false else 'b' if true else 'c' }} {{ missing is defined }} {{ n is defined }} {{ none is none }}
{{ n is number }} {{ f is float }} {{ n is integer }} {{ x is mapping }} {{ l is iterable }} {{ s is string }} {{ x is string }} {{ n is odd }} {{ n is divisibleby 5 }} {{ true is boolean }} {{ l is sequence }}
{{ s | trim }}| {{ s.strip() }}| {{ s.lstrip() }}| {{ s.rstrip() }}| {{ 'xxaxx'.strip('x') }} {{ s | length }} {{ x.c | length }} {{ l | length }} {{ 'Abc' | upper }} {{ 'Abc'.lower() }} {{ 'hello wORLD' | title }} {{ 'hello wORLD' | capitalize }}
{{ l | join(', ') }} {{ l | first }} {{ l | last }} {{ l | list }} {{ 'abc' | list }} {{ l | reverse | list }} {{ 'abc' | reverse }} {{ l | unique | list }} {{ ', '.join(l) }}
{{ m | map(attribute='role') | join(' ') }} {{ l | map('upper') | list }} {{ m | selectattr('role', 'equalto', 'user') | list | length }} {{ m | rejectattr('role', 'in', ['user']) | map(attribute='content') | list }} {{ l | select('eq', 'a') | list }} {{ [0, 1, '', 'x'] | select | list }}
{{ x | tojson }} {{ d | tojson(indent=2) }} {{ 'é"\n\t' | tojson }} {{ [] | tojson }} {{ [] | tojson(indent=2) }} {{ none | tojson }} {{ 1.0 | tojson }} {{ true | tojson }}
{{ d.items() | list | tojson }} {{ d | items | list | tojson }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('z') }} {{ d.get('y') }} {{ d.get('y', 3) }} {{ d | dictsort | tojson }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a-b-c'.split('-')[-1] }} {{ 'aXbX'.replace('X', '--') }} {{ 'aXbX' | replace('X', '', 1) }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }}
{{ missing | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }} {{ '12' | int }} {{ 'x' | int }} {{ '1.5' | float }} {{ 3.9 | int }} {{ -3 | abs }} {{ 5 | string ~ '!' }}
{{ 'a\nb\n\nc' | indent }} {{ 'a\nb' | indent(2, true) }} {{ '<a href="x">' | e }} {{ 'tr' ~ 'ue' | upper }}
{% set a = 1 %}{% for i in range(3) %}{% set a = a + i %}{{ a }}{% endfor %}{{ a }} {% set ns = namespace(t=0) %}{% for i in range(2, 10, 3) %}{% set ns.t = ns.t + i %}{% endfor %}{{ ns.t }} {% set p, q = 1, 'two' %}{{ p }}{{ q }}
{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }} {% endfor %}{% for i in [] %}x{% else %}empty{% endfor %}
{% set block %}inner {{ n }}{% endset %}[{{ block }}] {% for i in range(9) if i % 2 %}{% if i == 7 %}{% break %}{% endif %}{{ i }}{{ loop.index }} {% endfor %}{% if n == 4 %}4{% elif n == 5 %}5{% else %}?{% endif %}
{% macro f(a, b=2) %}{{ a }}+{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=5, a=4) }} {{ f('x') | upper }} {{ f() }}
{%- if true -%}   tight   {%- endif -%}  {{- ' x ' -}}  end {#- gone -#}  .
{{ 'single \' quote' }} {{ "double \" \\ \n tab\t" }} {{ 'adjacent ' 'texts' }} {{ (1, 2) | list }} {{ (1) }} {{ x['items'] }} {{ l.index('c') }} {{ l.count('a') }} {{ 1 < 2 }} {{ 'b' > 'a' }}
{{ loop is defined }} {{ m[0]['role'] }} {{ m[-1].content }} {{ m | length > 2 }} {{ (m | last).role }} {{ dict(a=1).a }} {{ 'a' 'b' ~ 'c' }} {{ l + ['z'] }}
{{ missing.attribute }}
{{ 1 / 0 }}
{{ raise_exception('no ' ~ n) }}
{{ n + 'x' }}
{{ n.foo.bar }}
{% for i in 5 %}{% endfor %}
{% if %}{% endif %}
{{ 'open
{% for x in l %}
{{ (1 }}
{% endif %}
{{ missing() }}
{{ 1 + missing }}
"""


def environment():
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[jinja2.ext.loopcontrols])
    env.filters['tojson'] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals['raise_exception'] = refuse
    return env


def main():
    cases = [{'name': '%s %d' % (name, i), 'template': source, 'variables': variables}
             for i, (name, source, variables) in enumerate(FULL)]
    cases += [{'name': line, 'template': line} for line in SHORT.strip('\n').split('\n')]
    env = environment()
    for case in cases:
        try:
            case['expected'] = env.from_string(case['template']).render(**case.get('variables', X))
        except Exception as error:
            print('refused: %s: %s' % (case['name'], error))
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cases.json'), 'w') as out:
        json.dump({'variables': X, 'cases': cases}, out, indent=0)
        out.write('\n')


if __name__ == '__main__':
    main()
