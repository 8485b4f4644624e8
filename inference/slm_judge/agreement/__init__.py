"""Agreement between annotators, and between a judge and annotators. Pure functions on arrays."""
