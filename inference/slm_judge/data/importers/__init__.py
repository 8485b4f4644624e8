"""Exports of annotation tools, and tables as people keep them, as tables with a row an annotation.

opening.py  files of any kind -> rows          tools.py, surveys.py  what each tool means by them
wide.py     columns that are annotators, ticks or shares -> rows and answers
roles.py    which column is the item, the annotator, a text, an answer
long.py     one row an annotation, one plain value an answer     draft.py  a rubric to begin with
"""
