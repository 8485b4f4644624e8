"""`slm-judge rubric check`: the prompt that a rubric makes, and what it costs in tokens."""

from collections.abc import Sequence
from typing import Any

from slm_judge.errors import require
from slm_judge.prompt.labels import MAX_LABELS, check_label_count, label_codes
from slm_judge.prompt.layout import Layout
from slm_judge.prompt.templates import compile_template, decision_questions, decision_template
from slm_judge.rubric import Dimension, Rubric
from slm_judge.text import MARK

from .judge_files import Contract

# What most bases look like, shown where no base is named.
_GENERIC = Layout("[system]\n", "\n[user]\n", "\n[assistant]\n", "\n", ())
_BYTES = 4  # of a token: Qwen's has 4 to 5 in English, Chinese and Arabic
_LARGE = 0.5  # share of the context from where on a rubric leaves little room


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
    return _prompt(rubric, _tokenizer(base), "({} of the item)")


def token_cost(rubric: Rubric, base: str | None = None) -> list[str]:
    """What a rubric costs: its tokens, those of a row and of each question, and what is left.

    Where no base is named, they are estimated from the length of the text.

    Raises:
        RubricError: a dimension has more options than there are labels.
        ModelError: the base cannot be used.
    """
    tokenizer = _tokenizer(base)

    def tokens(text: str) -> int:
        plain = text.replace(MARK, "")
        if tokenizer is None:
            return -(-len(plain.encode()) // _BYTES)
        return len(tokenizer(plain, add_special_tokens=False)["input_ids"])

    def without(dimension: Dimension) -> Rubric:
        rest: Sequence[Dimension] = [d for d in rubric.dimensions if d is not dimension]
        return rubric.model_copy(update={"dimensions": rest})

    empty, other = (_prompt(rubric, tokenizer, text) for text in ("", "-"))
    alike = next(k for k, (a, b) in enumerate(zip(empty, other, strict=False)) if a != b)
    whole, shared = tokens(empty), tokens(empty[:alike])
    several = rubric.dimensions if len(rubric.dimensions) > 1 else []  # there is no prompt of none
    each = {d.name: whole - tokens(_prompt(without(d), tokenizer, "")) for d in several}
    twice = "; each item is read twice, so a row's tokens and texts count twice"
    about = base or f"about, {_BYTES} bytes each; --base counts them"
    lines = [
        f"tokens ({about}): {shared:,} of the rubric, computed once for all "
        f"rows, and {whole - shared:,} of a row besides its texts"
        + ("; of each question: " if each else "")
        + ", ".join(f"{name} {n:,}" for name, n in each.items())
        + (twice if rubric.pair else "")
    ]
    return lines if base is None else [*lines, _share(whole, base)]


def _share(used: int, base: str) -> str:
    """How much of what a base reads the rubric takes."""
    from .base import load_config, locate_base, tokens_read

    config = load_config(locate_base(base, weights=False)).get_text_config()
    most = tokens_read(config)
    told = f"{used / most:.1%} of the {most:,} tokens that {base} reads, so a row's texts may have "
    if used >= most:
        return f"WARNING: {told}none: shorten the rubric, or take another base"
    little = "WARNING: " if used > _LARGE * most else ""
    return f"{little}{told}{most - used:,}; training reads prompts of at most training.max_length"


def _tokenizer(base: str | None) -> Any:
    if base is None:
        return None
    require("transformers", "transformers")
    from .base import load_tokenizer

    return load_tokenizer(base)


def _prompt(rubric: Rubric, tokenizer: Any, text: str) -> str:
    """The prompt of an item whose fields hold `text`, with {} for the field's name."""
    if tokenizer is None:
        template, labels = decision_template(rubric, _GENERIC), label_codes()[:MAX_LABELS]
        check_label_count(rubric, labels)
    else:
        contract = Contract.build(rubric, tokenizer)
        template, labels = contract.decision_template, list(contract.labels)
    state = {field: text.format(field) for field in rubric.fields}
    questions = decision_questions(rubric, labels)
    return compile_template(template).render(state=state, questions=questions)
