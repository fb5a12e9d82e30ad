"""The methods, one file each."""

from .apm import APM, APMConfig
from .datm import DATM, DATMConfig
from .dm import DM, DMConfig
from .fadrm import FADRM, FADRMConfig
from .hello import HeLlO, HeLlOConfig
from .lgm import CLPDD, LGM, CLPDDConfig, LGMConfig
from .mtt import MTT, MTTConfig
from .rded import RDED, RDEDConfig
from .sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
from .tesla import TESLA, TESLAConfig

METHODS = (MTT, TESLA, DATM, SRe2L, CDA, FADRM, RDED, HeLlO, APM, DM, LGM, CLPDD)
"""Every method of the library, for loops over them."""

__all__ = [
    "APM",
    "CDA",
    "CLPDD",
    "DATM",
    "DM",
    "FADRM",
    "LGM",
    "METHODS",
    "MTT",
    "RDED",
    "TESLA",
    "APMConfig",
    "CDAConfig",
    "CLPDDConfig",
    "DATMConfig",
    "DMConfig",
    "FADRMConfig",
    "HeLlO",
    "HeLlOConfig",
    "LGMConfig",
    "MTTConfig",
    "RDEDConfig",
    "SRe2L",
    "SRe2LConfig",
    "TESLAConfig",
]
