"""What training costs, for the model card."""

import logging
import platform
from importlib.util import find_spec
from typing import Any, Self


class EnergyMeter:
    """Measures, or where the machine has no meter estimates, energy by codecarbon (extra
    `logging`); without it, energy is not known.
    """

    def __init__(self) -> None:
        """Not started yet."""
        self.kwh: float | None = None
        """Of this process; of the last part, where a run was resumed."""
        self._tracker: Any = None

    def __enter__(self) -> Self:
        if find_spec("codecarbon") is not None:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").setLevel(logging.ERROR)
            # The country matters for emissions alone, which depend on the contract, not on us.
            self._tracker = OfflineEmissionsTracker(
                country_iso_code="USA", tracking_mode="process", save_to_file=False,
                log_level="error", allow_multiple_runs=True,
            )  # fmt: skip
            self._tracker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tracker is not None:
            self._tracker.stop()
            data = self._tracker.final_emissions_data
            self.kwh = round(float(data.energy_consumed), 6)


def device_name() -> str:
    """What computed."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{torch.get_num_threads()} cores of a {platform.machine()} CPU"
