"""Curvature measurement and curvature-driven learning rates for PyTorch."""

from metacurv import ops
from metacurv._version import __version__
from metacurv.estimators.curvature_operator import curvature_operator
from metacurv.estimators.diagonal import diagonal
from metacurv.estimators.directional_curvature import directional_curvature
from metacurv.estimators.estimate_trace import estimate_trace
from metacurv.estimators.hessian_trace import hessian_trace
from metacurv.estimators.problem.errors import NotTwiceDifferentiableError
from metacurv.estimators.problem.results import TraceEstimate
from metacurv.estimators.spectral_density import spectral_density
from metacurv.estimators.spectrum.density import SpectralDensity
from metacurv.estimators.spectrum.operator import CurvatureOperator
from metacurv.estimators.spectrum.results import Diagonal, Measured, TopEigenvalues
from metacurv.estimators.top_eigenvalues import top_eigenvalues
from metacurv.ops._native import build_info, cuda_compiled, native_available
from metacurv.optim.directional.log_rates import log_rates
from metacurv.optim.directional.optimizer import DirectionalLR
from metacurv.optim.directional.record import DirectionalRecord
from metacurv.optim.directional.rule import DirectionalRule
from metacurv.optim.meta_curvature_lr import MetaCurvatureLR
from metacurv.optim.reciprocal.optimizer import ReciprocalLR
from metacurv.optim.reciprocal.record import UpdateRecord

__all__ = [
    "CurvatureOperator",
    "Diagonal",
    "DirectionalLR",
    "DirectionalRecord",
    "DirectionalRule",
    "Measured",
    "MetaCurvatureLR",
    "NotTwiceDifferentiableError",
    "ReciprocalLR",
    "SpectralDensity",
    "TopEigenvalues",
    "TraceEstimate",
    "UpdateRecord",
    "__version__",
    "build_info",
    "cuda_compiled",
    "curvature_operator",
    "diagonal",
    "directional_curvature",
    "estimate_trace",
    "hessian_trace",
    "log_rates",
    "native_available",
    "ops",
    "spectral_density",
    "top_eigenvalues",
]
