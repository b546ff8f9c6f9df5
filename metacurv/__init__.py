"""Curvature measurement and curvature-driven learning rates for PyTorch."""

from metacurv import ops
from metacurv._version import __version__
from metacurv.directional.log_rates import log_rates
from metacurv.directional.optimizer import DirectionalLR
from metacurv.directional.record import DirectionalRecord
from metacurv.estimators.directional import directional_curvature
from metacurv.estimators.errors import NotTwiceDifferentiableError
from metacurv.estimators.estimate_trace import estimate_trace
from metacurv.estimators.hutchinson import hessian_trace
from metacurv.estimators.trace_estimate import TraceEstimate
from metacurv.ops._native import build_info, cuda_compiled, native_available
from metacurv.optimizer import MetaCurvatureLR
from metacurv.reciprocal.optimizer import ReciprocalLR
from metacurv.reciprocal.record import UpdateRecord
from metacurv.rules.directional import DirectionalRule

__all__ = [
    "DirectionalLR",
    "DirectionalRecord",
    "DirectionalRule",
    "MetaCurvatureLR",
    "NotTwiceDifferentiableError",
    "ReciprocalLR",
    "TraceEstimate",
    "UpdateRecord",
    "__version__",
    "build_info",
    "cuda_compiled",
    "directional_curvature",
    "estimate_trace",
    "hessian_trace",
    "log_rates",
    "native_available",
    "ops",
]
