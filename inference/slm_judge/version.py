"""The version of slm-judge, which is saved with whatever it makes."""

from importlib.metadata import version

__version__ = version("slm-judge")
METADATA = {
    f"slm_judge-{__version__}.dist-info/METADATA": (
        f"Metadata-Version: 2.1\nName: slm-judge\nVersion: {__version__}\n".encode()
    )
}
"""Path and content of what lies beside a copy that nothing installs, which knows its version by it."""
