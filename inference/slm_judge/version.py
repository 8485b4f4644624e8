"""The version of slm-judge, which is saved with whatever it makes."""

from importlib.metadata import version

__version__ = version("slm-judge")
METADATA = {
    f"slm_judge-{__version__}.dist-info/METADATA": (
        f"Metadata-Version: 2.1\nName: slm-judge\nVersion: {__version__}\n".encode()
    )
}
"""By which a copy that nothing installs knows its version: path beside it, and content."""
