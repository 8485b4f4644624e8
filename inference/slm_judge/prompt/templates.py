"""The layout written down as two templates, one for transformers and one for llama.cpp.

`decision_template` writes it for transformers (`decision_template.jinja`, System One variables
`state` and `questions`, `<|mark|>` at each slot), `systemone_template` for llama.cpp
(`tokenizer.chat_template.systemone`, one prompt per question).
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slm_judge.errors import ModelError
from slm_judge.rubric import Rubric
from slm_judge.text import MARK, SPLIT

from .layout import ANSWER_HINT, ESCAPE, Layout, escape


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
    instructions = escape(rubric.instructions.strip(), layout.escapes)
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
                "type": dimension.asked_as,
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


class PromptTemplate:
    """A template that is one of ours.

    Templates come with the files of strangers, and Jinja can loop and grow without end. Ours
    cannot: each text of the item and of the rubric is written once or twice, and escaping at most
    doubles it.
    """

    def __init__(self, source: str, origin: str) -> None:
        """Compile `source` with the settings of transformers and llama.cpp, in a sandbox."""
        self._origin = origin
        if len(source) > _LONGEST or not _is_ours(source):
            raise ModelError(
                f"{origin} is no template that slm-judge writes: it is damaged or was changed by "
                "hand, or a later version made it. Export the judge again, or install the version "
                "that made it (`slm_judge_version` in decision.json, `slm_judge.version` in GGUF)."
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
        )
        # What is not there says its name when it is made a text.
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False, default=str)
        self._template = environment.from_string(source)

    def render(self, **values: object) -> str:
        """The prompt.

        Raises:
            ModelError: the template reads a field that the rubric does not have.
        """
        try:
            return self._template.render(**values)
        except TemplateError as error:
            raise ModelError(f"{self._origin} does not fit the rubric: {error}") from error


@lru_cache(maxsize=32)
def compile_template(source: str, origin: str = "The prompt's template") -> PromptTemplate:
    """Compile a template; `origin` is named in errors.

    Raises:
        ModelError: it is not one of ours.
    """
    return PromptTemplate(source, origin)


_LONGEST = 2**20  # characters of a template
_CHARACTER = rf'(?:[^"\\{ESCAPE}]|\\["\\nrt])'  # in a string that `_quote` wrote
_ANY_TEXT = rf'"(?:{_CHARACTER}|{ESCAPE})*+"'
# Up to 64 escapes (see `control_escapes`). Each parts two characters that nothing parted before,
# so all together at most double a text.
_ESCAPES = rf'(?:\|replace\("({_CHARACTER})((?:{_CHARACTER})++)", "\1{ESCAPE}\2"\)){{0,64}}'


def _is_ours(source: str) -> bool:
    """Whether some rubric and some layout make `source`."""
    fields = re.findall(r't\(state\["([A-Za-z][A-Za-z0-9_]*)"\]\)', source)
    if not fields or len(fields) != len(set(fields)):
        fields = ["text"]  # that of no template, or of `decision_head`
    rubric = Rubric.model_construct(instructions="*", fields=fields)
    layout = Layout("*", "*", "*", "+", (("*", "*"),))
    for build in (decision_template, systemone_template, decision_head):
        form = re.escape(build(rubric, layout))
        form = form.replace(re.escape('|replace("*", "*")'), _ESCAPES)
        form = re.sub(r'"(?:\\\*)[^"]*"', lambda _: _ANY_TEXT, form)
        form = form.replace(re.escape('"+"'), r'"(?:[ ;]|\\n){1,8}"')
        if re.fullmatch(form, source):
            return True
    return False
