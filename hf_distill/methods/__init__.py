"""The methods, one file each."""

from .mtt import MTT, MTTConfig
from .tesla import Tesla, TeslaConfig

METHODS = (MTT, Tesla)

__all__ = ["METHODS", "MTT", "MTTConfig", "Tesla", "TeslaConfig"]
