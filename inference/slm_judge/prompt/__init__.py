"""The prompt: one layout, written down as two templates, read by two readers.

    <system: rubric instructions, then every dimension with its options, each behind its label>
    <user: the item's fields>
    <assistant: "name_1:" (answer read here)
                "name_2:" (answer read here) ...>

The rubric comes first because it is the same for every item. The answer to a dimension is the
next-token distribution at the colon of its line, over the label tokens alone; no label is fed
back, so one forward pass answers all dimensions.

Everything here is a pure function of text and of a tokenizer; no engine is loaded.
"""
