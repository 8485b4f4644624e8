"""Annotation tools whose exports are nested: Label Studio, doccano, Prodigy, Argilla, Potato.

Sources of the formats: label_studio_sdk 2.1.2 (`converter.py`, `exports/csv2.py`), doccano
(`data_export/pipeline`), prodi.gy/docs/api-interfaces, argilla 2.8.0 (`records/_io/_generic.py`),
potatoannotator.readthedocs.io ("Data Formats", "Export Formats").
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from slm_judge.data.item import ITEM_ID
from slm_judge.data.text import is_blank, read_json, read_name

from .export import ANNOTATOR_ID, SOURCE, Export, Row, conversation, is_ticked, parts, written_list

_SPANS = "marked spans or regions"
_SKIPPED = "skipped (cancelled) annotations"
_NOTHING = "annotations without an answer"


def label_studio(export: Export) -> None:
    """JSON (a task with its annotations), and JSON-MIN and CSV (a row an annotation)."""
    if not any(isinstance(row.get("data"), dict) for row in export.rows):
        _label_studio_flat(export)
        return
    found: list[Row] = []
    for task in export.rows:
        rest = {name: conversation(value) for name, value in (task.get("data") or {}).items()}
        export.left_out["predictions of models"] += len(task.get("predictions") or [])
        annotations = task.get("annotations") or task.get("completions") or []
        export.left_out["tasks without annotations"] += not annotations
        for annotation in annotations:
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                export.left_out[_SKIPPED] += 1
                continue
            who = annotation.get("completed_by")
            who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
            answers = _results(annotation.get("result") or [], export)
            item = rest.get(ITEM_ID) or task.get("id")
            further = {name: value for name, value in rest.items() if name != ITEM_ID}
            found.append(export.annotation(task, item, who, answers, further))
    export.become(found)
    export.aliases |= {"id": ITEM_ID, "completed_by": ANNOTATOR_ID, "annotator": ANNOTATOR_ID}


def _results(results: Iterable[Mapping[str, Any]], export: Export) -> dict[str, list[Any]]:
    """The answers of an annotation; what marks a part of the text is left out."""
    answers: dict[str, list[Any]] = {}
    for result in results:
        value = _answer(result.get("value"))
        if value is None or not result.get("from_name"):
            export.left_out[_SPANS] += 1
            continue
        answers.setdefault(str(result["from_name"]), []).extend(value)
    for name, value in answers.items():
        export.question(name).several |= len(value) > 1
    return answers


def _answer(value: object) -> list[Any] | None:
    """What Label Studio's value of a result says; None for spans, regions and the like."""
    if not isinstance(value, dict) or "start" in value or "x" in value:
        return None
    for kind in ("choices", "rating", "number", "selected", "text", "datetime"):
        if kind in value:
            return list(value[kind]) if isinstance(value[kind], list) else [value[kind]]
    if isinstance(value.get("taxonomy"), list):
        return [" / ".join(map(str, path)) for path in value["taxonomy"]]
    return None


def _label_studio_flat(export: Export) -> None:
    own = ("annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history")
    export.drop(own, "Label Studio's own")
    export.notes.append("this format has no skipped annotations; Label Studio's JSON has them.")
    for row in export.rows:
        for name in export.columns:
            value = _from_json(row.get(name))
            several = value if isinstance(value, list) else [value]
            if not several or not all(isinstance(part, dict) for part in several):
                continue
            answers = [_answer(part) for part in several]
            if all(answer is None for answer in answers) and conversation(several) is not several:
                row[name] = conversation(several)
                continue
            export.left_out[_SPANS] += answers.count(None)
            row[name] = [part for answer in answers for part in answer or []]
            export.question(name).several |= len(row[name]) > 1
            export.certain.add(name)
    export.item = "id" if "id" in export.columns else None
    export.annotator = "annotator"


def _from_json(value: object) -> object:
    """A cell that holds an object or a list as JSON, read; anything else as it is."""
    if isinstance(value, str) and value[:1] in "[{" and value[-1:] in "]}":
        try:
            return read_json(value)
        except ValueError:
            pass
    return value


def doccano(export: Export) -> None:
    """JSON Lines, JSON or CSV; several files, or a zip of them, are a file an annotator."""
    files = {row.get(SOURCE) for row in export.rows}
    found: list[Row] = []
    for number, row in enumerate(export.rows, start=1):
        rest = {"text": row.get("text", row.get("data")), **(row.get("meta") or {})}
        further = {key: value for key, value in row.items() if key not in _DOCCANO}
        rest |= {key: v for key, v in further.items() if key[:1] != " " and v not in ("", None, [])}
        for spans in (row.get("entities"), row.get("relations")):
            export.left_out[_SPANS] += len(spans) if isinstance(spans, list) else 0
        item = row.get("id", number)
        for who, labels in _doccano_labels(row):
            if any(isinstance(label, list | dict) for label in labels):
                export.left_out[_SPANS] += len(labels)
            elif not labels:
                export.left_out["items without a label"] += 1
            else:
                export.question("label").several |= len(labels) > 1
                name = who or (row.get(SOURCE) if len(files) > 1 else "")
                found.append(export.annotation(row, item, name, {"label": labels}, rest))
    if len(files) > 1:
        export.notes.append(
            "each file is taken for what one annotator said; it names the annotator."
        )
    export.become(found)
    export.texts = ["text"]
    export.aliases |= {"id": ITEM_ID, "labels": "label", "data": "text"}


_DOCCANO = {"id", "text", "data", "meta", "label", "labels", "cats", "annotations", "entities",
            "relations", "annotation_approver"}  # fmt: skip


def _doccano_labels(row: Row) -> Iterator[tuple[str, list[Any]]]:
    """Each annotator, "" for nobody, and the labels that they gave."""
    if isinstance(row.get("annotations"), list):  # before version 1.1: numbers of labels
        by: dict[str, list[Any]] = {}
        for annotation in row["annotations"]:
            label = annotation.get("label") if "start_offset" not in annotation else annotation
            by.setdefault(read_name(annotation.get("user")), []).append(label)
        yield from by.items() if by else [("", [])]
        return
    value = next((row[key] for key in ("label", "labels", "cats") if key in row), None)
    if isinstance(value, str) and isinstance(row.get("id"), str):  # of CSV
        value = value.split("#")
    yield "", [part for part in (value if isinstance(value, list) else [value])
               if not is_blank(part)]  # fmt: skip


def prodigy(export: Export) -> None:
    """What `prodigy db-out` writes: options to choose from, or one label to accept or reject."""
    found: list[Row] = []
    for task in export.rows:
        rest = {k: v for k, v in task.items() if not k.startswith(("_", " ")) and k not in _PRODIGY}
        rest |= {f"meta_{key}": value for key, value in (task.get("meta") or {}).items()}
        answer = task.get("answer", "accept")
        if answer == "ignore":
            export.left_out['tasks with the answer "ignore"'] += 1
            continue
        if "accept" in task or "options" in task:
            answers = _prodigy_choice(task, export) if answer == "accept" else {}
            export.left_out['tasks with options and the answer "reject"'] += answer != "accept"
        elif isinstance(task.get("label"), str) and not task.get("spans"):
            answers = {task["label"]: answer == "accept"}
            export.question(task["label"]).flag = export.merged = True
        else:
            answers = {}
            export.left_out[_SPANS] += 1
        if answers:
            who = task.get("_annotator_id") or task.get("_session_id")
            found.append(export.annotation(task, task.get("_input_hash"), who, answers, rest))
    export.become(found)
    export.texts = ["text"] if "text" in export.columns else None
    export.aliases |= {"_input_hash": ITEM_ID, "_annotator_id": ANNOTATOR_ID}
    export.aliases |= {"_session_id": ANNOTATOR_ID, "accept": "choice"}


_PRODIGY = {"options", "accept", "answer", "label", "meta", "spans", "tokens", "config", "score",
            "priority", "relations", "html"}  # fmt: skip


def _prodigy_choice(task: Row, export: Export) -> dict[str, Any]:
    question = export.question("choice")
    for option in task.get("options") or []:
        value, text = read_name(option.get("id")), read_name(option.get("text"))
        question.options.setdefault(value, text if text != value else "")
    chosen = task.get("accept") or []
    question.several |= len(chosen) > 1
    question.several |= (task.get("config") or {}).get("choice_style") == "multiple"
    if not chosen and not question.several:
        export.left_out["tasks accepted with no option chosen"] += 1
        return {}
    return {"choice": list(chosen)}


def argilla(export: Export) -> None:
    """Records as JSON (`to_list`, `to_json`), flattened (`to_datasets`), and of version 1."""
    found: list[Row] = []
    for number, record in enumerate(export.rows, start=1):
        item = record.get("id") or record.get("external_id") or record.get("_server_id") or number
        rest = {name: conversation(v) for name, v in (record.get("fields") or {}).items()}
        rest |= record.get("metadata") or {}
        if not record.get("fields"):
            rest |= {k: conversation(v) for k, v in record.items()
                     if not k.startswith(("_", " ")) and k not in _ARGILLA and "." not in k
                     and not _are_responses(v)}  # fmt: skip
        by: dict[str, dict[str, Any]] = {}
        for name, who, value, status in _responses(record):
            if status in ("discarded", "draft"):
                export.left_out[f"{status} responses"] += 1
            elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
                export.left_out["rankings and marked spans"] += 1
            elif not is_blank(value):
                by.setdefault(who, {})[name] = value
                export.question(name).several |= isinstance(value, list)
        export.left_out["records without a response"] += not by
        found += [export.annotation(record, item, who, answers, rest)
                  for who, answers in by.items()]  # fmt: skip
    export.become(found)
    export.aliases["id"] = ITEM_ID


_ARGILLA = {"id", "external_id", "status", "vectors", "suggestions", "responses", "annotation",
            "annotation_agent", "prediction", "prediction_agent", "predicted", "explanation",
            "metadata", "multi_label", "event_timestamp", "metrics", "search_keywords", "fields",
            "inserted_at", "updated_at"}  # fmt: skip


def _responses(record: Row) -> Iterator[tuple[str, str, Any, str | None]]:
    """Each response of a record: question, user, value and status, where there is one."""
    responses = record.get("responses") or {}
    for entry in responses if isinstance(responses, list) else ():  # version 1, a user an entry
        for name, answer in (entry.get("values") or {}).items():
            who = read_name(entry.get("user_id"))
            yield name, who, (answer or {}).get("value"), entry.get("status")
    if isinstance(responses, dict):
        nested = {name: answers for name, answers in responses.items() if answers}
        nested |= {name: value for name, value in record.items() if _are_responses(value)}
        for name, answers in nested.items():
            for answer in answers:
                yield (
                    name,
                    read_name(answer.get("user_id")),
                    answer.get("value"),
                    answer.get("status"),
                )
    for name in (key for key in record if key.endswith(".responses")):  # flattened
        values: Any = written_list(record[name]) or []  # a text in CSV
        if not isinstance(values, list):
            raise ValueError(f"{name} holds {values!r}, no list")
        users: Any = written_list(record.get(f"{name}.users")) or [""] * len(values)
        states: Any = written_list(record.get(f"{name}.status")) or [None] * len(values)
        for value, user, state in zip(values, users, states, strict=False):
            yield name.removesuffix(".responses"), read_name(user), value, state
    if record.get("annotation") is not None:  # version 1, text classification
        discarded = "discarded" if str(record.get("status")).casefold() == "discarded" else None
        yield "label", read_name(record.get("annotation_agent")), record["annotation"], discarded


def _are_responses(value: object) -> bool:
    """Whether a column of a dataset of Argilla 1 holds the responses to a question."""
    return (isinstance(value, list) and bool(value)
            and all(isinstance(part, dict) and {"user_id", "value"} <= set(part)
                    for part in value))  # fmt: skip


def potato(export: Export) -> None:
    """annotated_instances.jsonl, .tsv and .csv, annotations.jsonl and .csv, user_state.json."""
    found: list[Row] = []
    nobody = False
    for row in _potato_rows(export.rows):
        item = row.get("instance_id", row.get("id"))
        if str(item).endswith(".html"):
            export.left_out["pages of the survey around the task"] += 1
            continue
        who = row.get("user_id") or row.get("user") or row.get(SOURCE)
        nobody |= not (row.get("user_id") or row.get("user"))
        spans = row.get("span_annotations") or row.get("spans") or {}
        export.left_out[_SPANS] += len(spans)
        labels = row.get("label_annotations") or row.get("labels") or {}
        answers = {name: value for name, ticks in labels.items()
                   if (value := _potato_answer(ticks, export, name))}  # fmt: skip
        if not answers:
            export.left_out[_NOTHING] += 1
            continue
        rest = {k: conversation(v) for k, v in row.items()
                if k not in _POTATO and not k.startswith(" ")}  # fmt: skip
        if "displayed_text" in rest:
            rest["text"] = rest.pop("displayed_text")
        found.append(export.annotation(row, item, who, answers, rest))
    if nobody and found:
        export.notes.append("the folder or file is taken for the annotator's name.")
    export.become(found)
    export.texts = ["text"] if "text" in export.columns else None
    export.aliases |= {"id": ITEM_ID, "instance_id": ITEM_ID, "displayed_text": "text"}
    export.aliases |= {"user": ANNOTATOR_ID, "user_id": ANNOTATOR_ID}


_POTATO = {"id", "instance_id", "user", "user_id", "label_annotations", "labels", "spans", "links",
           "span_annotations", "behavioral_data", "annotator_origin"}  # fmt: skip


def _potato_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with `labels`: question -> label -> value, whatever file of Potato's they come from."""
    for row in rows:
        states = row.get("instance_id_to_label_to_value")
        if isinstance(states, dict):
            for item, labels in states.items():
                spans = (row.get("instance_id_to_span_to_value") or {}).get(item)
                labels = {k: v.get("labels", v) if isinstance(v, dict) else v
                          for k, v in labels.items()}  # fmt: skip
                yield {"instance_id": item, "user_id": row.get("user_id"), "labels": labels,
                       "spans": spans, SOURCE: row.get(SOURCE)}  # fmt: skip
            continue
        if "label_annotations" in row or "labels" in row:
            yield row
            continue
        plain: Row = {}
        labels = {}
        for name, value in row.items():
            mark = next((mark for mark in (":::", ".") if mark in name), "")
            question, _, label = name.partition(mark) if mark else ("", "", "")
            if question and not label.startswith("_"):
                labels.setdefault(question, {})[label] = value
            elif name in _POTATO or name in ("displayed_text", "text") or name.startswith(" "):
                plain[name] = value
            else:
                labels[name] = value
        yield plain | {"labels": labels}


def _potato_answer(ticks: object, export: Export, name: str) -> list[Any]:
    """The labels that were ticked, the point of a scale, or what was typed in."""
    if not isinstance(ticks, dict):
        export.question(name).several |= isinstance(ticks, list)
        return parts(ticks)
    found = []
    for label, value in ticks.items():
        if is_blank(value) or (is_ticked(value) is False and not label.startswith("scale_")):
            continue
        if label.startswith("scale_"):
            found.append(label.removeprefix("scale_"))
        elif label in ("", "text_box", "slider", "number", "value"):
            found.append(read_name(value))
        else:
            found.append(label)
    export.question(name).several |= len(found) > 1
    return found
