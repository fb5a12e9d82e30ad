"""The methods, one file each."""

from .mtt import MTT, MTTConfig
from .sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
from .tesla import Tesla, TeslaConfig

METHODS = (MTT, Tesla, SRe2L, CDA)

__all__ = ["CDA", "METHODS", "MTT", "CDAConfig", "MTTConfig", "SRe2L", "SRe2LConfig", "Tesla", "TeslaConfig"]
