"""Scaling laws with their uncertainty: fits of the loss and of the compute-optimal frontier, and how far to trust them.

One file holds one idea; this one is the door. None of them imports JAX.
"""

from bigjax.science.laws.checks import (
    Extrapolation,
    fit_points,
    hold_out_largest,
    hold_out_optimum,
    isoflop_bias,
    leave_one_budget_out,
    sensitivity,
)
from bigjax.science.laws.compute_optimal import Optimum, compute_optimal
from bigjax.science.laws.data_constrained import DataConstrainedFit, fit_data_constrained
from bigjax.science.laws.design import Design, ProposedRun, TargetDesign, design_for, design_next
from bigjax.science.laws.downstream import DownstreamFit, fit_downstream
from bigjax.science.laws.envelope import fit_envelope
from bigjax.science.laws.formula.expression import Formula, parse
from bigjax.science.laws.formula.fit import FormulaFit, fit_formula
from bigjax.science.laws.formula.law import Law
from bigjax.science.laws.formula.options import Asked
from bigjax.science.laws.formula.stored import load_fit
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.isoflop import fit_isoflop
from bigjax.science.laws.parametric import ParametricFit, fit_parametric
from bigjax.science.laws.points import Conventions, Curve, Excluded, FlopModel, Points, make_points
from bigjax.science.laws.power_law import PowerLawFit, fit_power_law
from bigjax.science.laws.robust import FitError
from bigjax.science.laws.sources import read_csv, read_runs

__all__ = [
    "Asked",
    "Conventions",
    "Curve",
    "DataConstrainedFit",
    "Design",
    "DownstreamFit",
    "Excluded",
    "Extrapolation",
    "FitError",
    "FlopModel",
    "Formula",
    "FormulaFit",
    "FrontierFit",
    "Law",
    "Optimum",
    "ParametricFit",
    "Points",
    "PowerLawFit",
    "ProposedRun",
    "TargetDesign",
    "compute_optimal",
    "design_for",
    "design_next",
    "fit_data_constrained",
    "fit_downstream",
    "fit_envelope",
    "fit_formula",
    "fit_isoflop",
    "fit_parametric",
    "fit_points",
    "fit_power_law",
    "hold_out_largest",
    "hold_out_optimum",
    "isoflop_bias",
    "leave_one_budget_out",
    "load_fit",
    "make_points",
    "parse",
    "read_csv",
    "read_runs",
    "sensitivity",
]
