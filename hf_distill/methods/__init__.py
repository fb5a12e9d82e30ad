"""The methods, one file each."""

from .apm import APM, APMConfig
from .hello import HeLlO, HeLlOConfig
from .lgm import CLPDD, LGM, CLPDDConfig, LGMConfig
from .mtt import MTT, MTTConfig
from .rded import RDED, RDEDConfig
from .sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
from .tesla import TESLA, TESLAConfig

METHODS = (MTT, TESLA, SRe2L, CDA, RDED, HeLlO, APM, LGM, CLPDD)

__all__ = [
    "APM",
    "CDA",
    "CLPDD",
    "LGM",
    "METHODS",
    "MTT",
    "RDED",
    "TESLA",
    "APMConfig",
    "CDAConfig",
    "CLPDDConfig",
    "HeLlO",
    "HeLlOConfig",
    "LGMConfig",
    "MTTConfig",
    "RDEDConfig",
    "SRe2L",
    "SRe2LConfig",
    "TESLAConfig",
]
