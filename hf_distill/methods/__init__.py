"""The methods, one file each."""

from .apm import APM, APMConfig
from .datm import DATM, DATMConfig
from .dm import DM, DMConfig
from .fadrm import FADRM, FADRMConfig
from .hello import HeLlO, HeLlOConfig
from .mtt import MTT, MTTConfig
from .rded import RDED, RDEDConfig
from .sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
from .tesla import TESLA, TESLAConfig

METHODS = (MTT, TESLA, DATM, SRe2L, CDA, FADRM, RDED, HeLlO, APM, DM)

__all__ = [
    "APM",
    "CDA",
    "DATM",
    "DM",
    "FADRM",
    "METHODS",
    "MTT",
    "RDED",
    "TESLA",
    "APMConfig",
    "CDAConfig",
    "DATMConfig",
    "DMConfig",
    "FADRMConfig",
    "HeLlO",
    "HeLlOConfig",
    "MTTConfig",
    "RDEDConfig",
    "SRe2L",
    "SRe2LConfig",
    "TESLAConfig",
]
