"""Step sizes from the loss (Polyak step sizes) for PyTorch: ALI-G, SPS and their family."""

from . import _import_torch  # noqa: F401 (first)
from ._metrics import metrics
from ._step.decision import LastStep, Line
from ._step.optimizer import PolyakOptimizer
from ._step.options import Common, CommonAndBuffers, CommonAndMomentum
from .constraints import (
    Affine,
    Box,
    Constraint,
    Halfspace,
    L1Ball,
    L2Ball,
    LInfBall,
    NonNegative,
    Simplex,
)
from .methods.ada_sps import AdaSPS
from .methods.alig import ALIG
from .methods.alig_plus import ALIGPlus
from .methods.dec_sps import DecSPS
from .methods.iam import IAM
from .methods.iam_adam import IAMAdam
from .methods.mom_sps import MomSPS
from .methods.momo import MoMo
from .methods.momo_adam import MoMoAdam
from .methods.muon_momo import MuonMoMo
from .methods.ngn import NGN
from .methods.ngn_md import NGNMD
from .methods.safe_sps import SafeSPS
from .methods.sam_sps import SAMSPS
from .methods.schedule_free_adam_sps import ScheduleFreeAdamSPS
from .methods.schedule_free_plus import ScheduleFreePlus
from .methods.schedule_free_sps import ScheduleFreeSPS
from .methods.sign_sps import SignSPS
from .methods.slack_sps import SlackSPS
from .methods.smooth_mom_sps import SmoothMomSPS
from .methods.smooth_sps import SmoothSPS
from .methods.sps import SPS

__version__ = "0.1.0"

__all__ = [
    "ALIG",
    "IAM",
    "NGN",
    "NGNMD",
    "SAMSPS",
    "SPS",
    "ALIGPlus",
    "AdaSPS",
    "Affine",
    "Box",
    "Common",
    "CommonAndBuffers",
    "CommonAndMomentum",
    "Constraint",
    "DecSPS",
    "Halfspace",
    "IAMAdam",
    "L1Ball",
    "L2Ball",
    "LInfBall",
    "LastStep",
    "Line",
    "MoMo",
    "MoMoAdam",
    "MomSPS",
    "MuonMoMo",
    "NonNegative",
    "PolyakOptimizer",
    "SafeSPS",
    "ScheduleFreeAdamSPS",
    "ScheduleFreePlus",
    "ScheduleFreeSPS",
    "SignSPS",
    "Simplex",
    "SlackSPS",
    "SmoothMomSPS",
    "SmoothSPS",
    "metrics",
]
