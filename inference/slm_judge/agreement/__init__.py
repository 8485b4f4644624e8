"""Agreement between annotators, and between a judge and annotators. Pure functions on arrays.

Here are the defaults that the command line shows, so that its help loads no array.
"""

EPSILON = {"expert": 0.2, "skilled": 0.15, "crowd": 0.1}
"""Cost-benefit margins of the alternative annotator test, by how costly and reliable the annotators
are (see `alt_test`)."""
RESAMPLES = 2000
"""Of the bootstrap, where nobody says otherwise."""
LEVEL = 0.9
"""Confidence of a guaranteed threshold, where nobody says otherwise."""
MARGIN = 0.05
"""Alpha that may be lost without being inferior, where nobody says otherwise."""
AUDIT = 1.0
"""Share of the items to annotate next that is drawn at random, where nobody says otherwise;
docs/evaluation.md says why."""
