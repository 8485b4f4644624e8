"""The layout written down as two templates, one for transformers and one for llama.cpp.

`decision_template` writes it for transformers (`decision_template.jinja`, System One variables
`state` and `questions`, `<|mark|>` at each slot), `systemone_template` for llama.cpp
(`tokenizer.chat_template.systemone`, one prompt per question).
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slm_judge.data.text import MARK, SPLIT, normalise
from slm_judge.errors import ModelError
from slm_judge.rubric import Rubric

from .layout import ANSWER_HINT, Layout, escape


def _quote(text: str) -> str:
    """A string literal for both template engines (llama.cpp knows only these escapes)."""
    for plain, escaped in (
        ("\\", "\\\\"),
        ('"', '\\"'),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    ):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _out(expression: str) -> str:
    return "{{- " + expression + " -}}"


def _macro(replacements: Iterable[tuple[str, str]]) -> str:
    """`t(x)`: the text of a value, with nothing in it that could become a control token."""
    filters = "".join(f"|replace({_quote(old)}, {_quote(new)})" for old, new in replacements)
    return (
        "{%- macro t(x) -%}"
        + _out(f"(x if x is string else x|tojson){filters}")
        + "{%- endmacro -%}"
    )


def _item(rubric: Rubric) -> str:
    """The user's turn: a line a field."""
    lines = [f'{_quote(field + ": ")} ~ t(state["{field}"])' for field in rubric.fields]
    whole = _out(' ~ "\\n" ~ '.join(lines))
    if len(rubric.fields) > 1:
        return whole
    plain = _out(f"{_quote(rubric.fields[0] + ': ')} ~ t(state)")
    return "{%- if state is string -%}" + plain + "{%- else -%}" + whole + "{%- endif -%}"


def _system(rubric: Rubric, layout: Layout, name: str, option: str) -> str:
    """The system's turn. `name` and `option` are the template code that differs per reader."""
    instructions = escape(normalise(rubric.instructions.strip()), layout.escapes)
    intro = f"{layout.head}{instructions}\n\n{ANSWER_HINT}"
    return (
        _out(_quote(intro))
        + "{%- for q in questions -%}"
        + _out(f'"\\n\\n" ~ t({name}) ~ ": " ~ t(q.instructions)')
        + option
        + "{%- endfor -%}"
        + _out(_quote(layout.middle))
    )


def _option_line(kind: str, label: str, key: str, description: str) -> str:
    return (
        "{%- if " + kind + ' == "score" -%}'
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({description})')
        + "{%- elif " + description + " -%}"
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({key}) ~ ": " ~ t({description})')
        + "{%- else -%}"
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({key})')
        + "{%- endif -%}"
    )  # fmt: skip


def decision_head(rubric: Rubric, layout: Layout) -> str:
    """The part of `decision_template` before the item: everything that the rubric alone decides."""
    option = (
        "{%- for label in q.labels -%}"
        + _option_line("q.type", "label", "q.options[loop.index0]", "q.descriptions[loop.index0]")
        + "{%- endfor -%}"
    )
    return _macro(layout.escapes) + _system(rubric, layout, "q.name", option)


def decision_template(rubric: Rubric, layout: Layout) -> str:
    """The layout for transformers: `decision_template.jinja`, all slots in one prompt."""
    slots = (
        "{%- for q in questions -%}"
        + "{%- if not loop.first -%}" + _out(_quote(layout.separator)) + "{%- endif -%}"
        + _out(f't(q.name) ~ ":{MARK}"')
        + "{%- endfor -%}"
    )  # fmt: skip
    return decision_head(rubric, layout) + _item(rubric) + _out(_quote(layout.tail)) + slots


def systemone_template(rubric: Rubric, layout: Layout) -> str:
    """The layout for llama.cpp: the prompt of question `id`, with all earlier slots before it.

    llama-server does not drop the sentinels of transformers from a request, so the template does.
    """
    option = (
        "{%- for o in q.options -%}"
        + _option_line("q.type", "o.label", "o.key", "o.description")
        + "{%- endfor -%}"
    )
    slots = (
        "{%- set ns = namespace(open=true) -%}"
        "{%- for q in questions -%}{%- if ns.open -%}"
        "{%- if not loop.first -%}" + _out(_quote(layout.separator)) + "{%- endif -%}"
        + _out('t(q.id) ~ ":"')
        + "{%- if q.id == id -%}{%- set ns.open = false -%}{%- endif -%}"
        + "{%- endif -%}{%- endfor -%}"
    )  # fmt: skip
    return (
        _macro(((MARK, ""), (SPLIT, ""), *layout.escapes))
        + _system(rubric, layout, "q.id", option)
        + _item(rubric)
        + _out(_quote(layout.tail))
        + slots
    )


def decision_questions(rubric: Rubric, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The rubric's questions as `pipeline("decision")` hands them to the template."""
    questions = []
    for dimension in rubric.dimensions:
        criteria = dimension.question()["criteria"]
        scored = isinstance(criteria, list)
        questions.append(
            {
                "name": dimension.name,
                "type": dimension.type,
                "instructions": dimension.instructions,
                "options": [str(i) for i in range(len(criteria))] if scored else list(criteria),
                "labels": list(labels[: len(criteria)]),
                "descriptions": criteria if scored else list(criteria.values()),
            }
        )
    return questions


def systemone_questions(rubric: Rubric, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The rubric's questions as llama-server hands them to the template."""
    return [
        {
            "id": question["name"],
            "type": question["type"],
            "instructions": question["instructions"],
            "options": [
                {"key": key, "description": description, "label": label}
                for key, description, label in zip(
                    question["options"], question["descriptions"], question["labels"], strict=True
                )
            ],
        }
        for question in decision_questions(rubric, labels)
    ]


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Compile a template in a sandbox, with the settings of transformers and llama.cpp."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"The judge's prompt template is not valid: {error}") from error
