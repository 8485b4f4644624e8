"""What training wrote beside the adapter."""

import json
from pathlib import Path
from typing import Any

FACTS = "training.json"


def training_facts(adapter: Path) -> dict[str, Any]:
    """Versions, hashes, metrics and time of the training."""
    facts: dict[str, Any] = json.loads((adapter / FACTS).read_text(encoding="utf-8"))
    return facts
