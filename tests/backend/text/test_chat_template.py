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
