"""`slm-judge rubric check`: the prompt that a rubric makes."""

from slm_judge.errors import require
from slm_judge.prompt.labels import MAX_LABELS, check_label_count, label_codes
from slm_judge.prompt.layout import Layout
from slm_judge.prompt.templates import compile_template, decision_questions, decision_template
from slm_judge.rubric import Rubric

from .judge_files import Contract

# What most bases look like, shown where no base is named.
_GENERIC = Layout("[system]\n", "\n[user]\n", "\n[assistant]\n", "\n", ())


def preview(rubric: Rubric, base: str | None = None) -> str:
    """The prompt of an item whose fields hold their names.

    Args:
        rubric: the rubric.
        base: Hub repository or folder whose chat template and tokenizer are used; by default a
            generic layout, with `<|mark|>` where the answers are read.

    Raises:
        RubricError: a dimension has more options than there are labels.
        ModelError: the base cannot be used.
    """
    state = {field: f"({field} of the item)" for field in rubric.fields}
    if base is None:
        template, labels = decision_template(rubric, _GENERIC), label_codes()[:MAX_LABELS]
        check_label_count(rubric, labels)
    else:
        require("transformers", "transformers")
        from .base import load_tokenizer

        contract = Contract.build(rubric, load_tokenizer(base))
        template, labels = contract.decision_template, list(contract.labels)
    questions = decision_questions(rubric, labels)
    return compile_template(template).render(state=state, questions=questions)
