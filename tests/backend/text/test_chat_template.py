"""Chat templates render as transformers renders them: same environment, same names, same text."""

from __future__ import annotations

from typing import Any

import pytest

from backend.core.errors import InvalidRequestError
from backend.text.chat_template import ChatTemplate, _compile

MESSAGES: list[dict[str, object]] = [
    {"role": "user", "content": "hi\n<b> ü"},
    {"role": "assistant", "content": "yes", "thinking": "hm"},
]
TEMPLATES = {
    "generation tag": "{% for m in messages %}{% generation %}\n  {{ m.content }} {% endgeneration %}\n\n{% endfor %}",
    "names in a generation tag": "{% set ns = namespace(a=1) %}{% generation %}{% set ns.a = 5 %}{% set b = 3 %}"
    "{% endgeneration %}{{ ns.a }}{{ b is defined }}",
    "tools": "{% if tools is not none %}TOOLS{% endif %}{{ messages[0].content }}",
    "documents": "{% if documents is none %}{{ messages[0].content }}{% else %}DOCS{% endif %}",
    "tojson": "{{ messages | tojson }}",
    "tojson in ascii": "{{ messages | tojson(ensure_ascii=True) }}",
    "tojson as a template likes it": "{{ messages | tojson(indent=1, separators=(',', ':'), sort_keys=true) }}",
    "reasoning": "{{ messages[1].reasoning_content }}{{ messages[1].reasoning is defined }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "prompt": "{{ add_generation_prompt }}{{ eos_token }}{{ unk_token is defined }}",
    "white space": "  {% if true %}\n  a\n  {% endif %}\n",
    "date": "{{ strftime_now('%Y') | length }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_the_librarys(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = TEMPLATES[name]
    special = {"eos_token": "</s>"}
    expected, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=source, add_generation_prompt=True, **special
    )
    assert ChatTemplate(source, special).render(MESSAGES) == expected[0]


def test_environment_has_the_librarys_names() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    mine: Any = _compile("x").environment
    theirs: Any = _compile_jinja_template("x").environment
    for kind in ("globals", "filters", "tests"):
        assert getattr(mine, kind).keys() == getattr(theirs, kind).keys()
    assert {tag for each in mine.iter_extensions() for tag in each.tags} == {
        tag for each in theirs.iter_extensions() for tag in each.tags
    }
    assert type(mine).__mro__[1:] == type(theirs).__mro__[1:]


@pytest.mark.parametrize(
    "source",
    [
        "{% set name, text = messages[-1].content.split(': ') %}",  # ValueError
        "{{ raise_exception('no system message') }}",
        "{{ messages[0].content.no.such }}",
        "{{ ().__class__ }}{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ namespace(_x=1) }}",
        "{% for",
        "{{ 1 / 0 }}",
        "{{ range(10000000) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",  # RecursionError
    ],
)
def test_template_that_fails_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="do not fit the model's chat template"):
        ChatTemplate(source, {}).render(MESSAGES)


TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
HERMES = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'Write <tool_call>{"name": .., "arguments": ..}</tool_call>{% endif %}'
    "{% for message in messages %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
ESCAPED_HERMES = HERMES.replace('{"name": .., "arguments"', '{\\"arguments\\": .., \\"name\\"')
LLAMA = '{% if tools %}{{ tools[0].function.name }} {"name": function name, "parameters": dictionary}{% endif %}'


@pytest.mark.parametrize("source", [HERMES, ESCAPED_HERMES, LLAMA])
def test_tools_are_shown_where_the_template_has_a_known_form_of_calls(source: str) -> None:
    template = ChatTemplate(source, {})
    assert "clock" in template.render([{"role": "user", "content": "hi"}], TOOLS)
    assert "clock" not in template.render([{"role": "user", "content": "hi"}])


def test_the_calls_of_a_message_are_objects_to_the_template() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "noon"}]
    assert ChatTemplate(HERMES, {}).render(messages) == '{"zone": "CET"}noon'


GLM = (
    "{% if tools %}{{ tools[0] | tojson }}Write <tool_call>{function-name}<arg_key>{arg-key-1}</arg_key></tool_call>"
    "{% endif %}{% for message in messages %}{{ message.tool_calls[0].arguments }}{% endfor %}"
)
OTHER_XML = GLM.replace("arg_key", "argument")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        HERMES + "<function=",
        HERMES + "<arg_key>",
        GLM,
        OTHER_XML,
        "{{ tools }}[TOOL_CALLS]",
    ],
)
def test_tools_are_refused_where_it_has_none(source: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequestError, match="tools: the model's chat template"):
        template.render([{"role": "user", "content": "hi"}], TOOLS)
    for message in ({"role": "tool", "content": ""}, {"role": "assistant", "content": "", "tool_calls": [{}]}):
        with pytest.raises(InvalidRequestError, match="messages: they hold calls"):
            template.render([message])
