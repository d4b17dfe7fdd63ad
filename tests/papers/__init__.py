"""Each paper's pseudo-code in NumPy, written from the paper and not from the library, in the paper's own symbols.

`f(w, t)` returns the loss and the gradient of the mini-batch of step t. A cap may be an array with one entry per
coordinate, for groups of parameters that have caps of their own. `f_star` is the library's `lower_bound` everywhere.
"""

from .ada_sps import ada_sps
from .alig import alig
from .alig_plus import alig_plus
from .dec_sps import dec_sps
from .iam import iam
from .iam_adam import iam_adam
from .mom_sps import mom_sps
from .momo import momo
from .momo_adam import momo_adam
from .muon_momo import muon_momo
from .ngn import ngn
from .ngn_md import ngn_md
from .safe_sps import safe_sps
from .sam_sps import sam_sps
from .schedule_free_adam_sps import schedule_free_adam_sps
from .schedule_free_plus import schedule_free_plus
from .schedule_free_sps import schedule_free_sps
from .sign_sps import sign_sps
from .slack_sps import slack_sps
from .smooth_mom_sps import smooth_mom_sps
from .smooth_sps import smooth_sps
from .sps import sps

__all__ = [
    "ada_sps",
    "alig",
    "alig_plus",
    "dec_sps",
    "iam",
    "iam_adam",
    "mom_sps",
    "momo",
    "momo_adam",
    "muon_momo",
    "ngn",
    "ngn_md",
    "safe_sps",
    "sam_sps",
    "schedule_free_adam_sps",
    "schedule_free_plus",
    "schedule_free_sps",
    "sign_sps",
    "slack_sps",
    "smooth_mom_sps",
    "smooth_sps",
    "sps",
]
