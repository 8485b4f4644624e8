"""`python -m slm_judge` is the command `slm-judge`."""

from .cli import main

main()
