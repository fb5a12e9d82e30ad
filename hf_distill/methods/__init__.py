"""The methods, one file each."""

from .apm import APM, APMConfig
from .dm import DM, DMConfig
from .hello import HeLlO, HeLlOConfig
from .mtt import MTT, MTTConfig
from .rded import RDED, RDEDConfig
from .sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
from .tesla import TESLA, TESLAConfig

METHODS = (MTT, TESLA, SRe2L, CDA, RDED, HeLlO, APM, DM)

__all__ = [
    "APM",
    "CDA",
    "DM",
    "METHODS",
    "MTT",
    "RDED",
    "TESLA",
    "APMConfig",
    "CDAConfig",
    "DMConfig",
    "HeLlO",
    "HeLlOConfig",
    "MTTConfig",
    "RDEDConfig",
    "SRe2L",
    "SRe2LConfig",
    "TESLAConfig",
]
