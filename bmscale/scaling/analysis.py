"""`bmscale scaling fit`: a table's law with intervals and certificate, allocation, back-test and checklist in one."""

from dataclasses import dataclass, replace
from typing import Any

from bmscale.errors import BadInput
from bmscale.scaling import approaches, backtest, intervals
from bmscale.scaling.approaches import Allocation, Minimum
from bmscale.scaling.backtest import BackTest
from bmscale.scaling.checklist import Item, checklist, drawn_from
from bmscale.scaling.checks import check_law
from bmscale.scaling.fit import Fit, Objective, fit
from bmscale.scaling.intervals import Bootstrap
from bmscale.scaling.law import Law
from bmscale.scaling.laws import FRONTIER, find_law
from bmscale.scaling.tables import Table

AUTO = "auto"
RESTARTS = 20
FEW_HELD_OUT = 3


@dataclass(frozen=True)
class Analysis:
    """All that was found of a table."""

    table: Table
    """The rows that were given."""
    fitted: Table
    """Those of them that the law was fitted to."""
    fit: Fit
    bootstrap: Bootstrap | None
    allocations: tuple[Allocation, ...]
    minima: tuple[Minimum, ...]
    """Of the isoFLOP curves; none where the table has no N, D, C and loss."""
    conventions: dict[str, float]
    """The exponent a of N_opt ∝ C^a by each column that counts N."""
    encoder_share: float | None
    """Best share of the encoder in N_e + N_d, p_e/(p_e + p_d) (Ghorbani et al. 2021)."""
    backtest: BackTest | None
    warnings: tuple[str, ...]
    checklist: tuple[Item, ...]

    @property
    def parameter_intervals(self) -> dict[str, tuple[float, float]]:
        return {} if self.bootstrap is None else self.bootstrap.intervals()

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        boot = self.bootstrap
        return {
            "table": {
                "name": self.table.name,
                "rows": len(self.table),
                "runs": len(set(self.table.runs)),
                "columns": list(self.table.columns),
                "notes": list(self.table.notes),
                "dropped": list(self.table.dropped),
            },
            "fit": self.fit.to_dict(),
            "intervals": {
                "level": intervals.LEVEL,
                "draws": 0 if boot is None else len(boot.inner),
                "failed": 0 if boot is None else boot.failed,
                "drawn": None if boot is None else drawn_from(self.fitted, boot),
                "parameters": self.parameter_intervals,
            },
            "allocations": [one.to_dict() for one in self.allocations],
            "isoflop_minima": [one.to_dict() for one in self.minima],
            "a_by_convention_of_n": self.conventions,
            "encoder_share": self.encoder_share,
            "backtest": None if self.backtest is None else self.backtest.to_dict(),
            "warnings": list(self.warnings),
            "checklist": {item.question: item.answer for item in self.checklist},
        }


def analyse(
    table: Table,
    *,
    law: str = AUTO,
    approach: int = 3,
    objective: Objective | None = None,
    draws: int = intervals.DRAWS,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> Analysis:
    """Fit a law to a table and say how much it is worth.

    `auto` takes the law and the rows that the back-test chooses; a law that is named is fitted to all rows. Raises
    BadInput for a table that the law cannot be fitted to, for `auto` where nothing can be held out, and for an optimum
    at the edge of the grid.
    """
    warnings = list(table.warnings)
    allocations = _from_curves(table, approach)
    tested, refused = None, ""
    try:
        tested = backtest.backtest(table, objective, _candidates(table, law))
    except BadInput as error:
        if law == AUTO:
            raise
        refused = str(error)
    if law == AUTO and tested is not None:
        chosen, window = find_law(tested.chosen.law), tested.chosen.window
        if tested.held_out < FEW_HELD_OUT:
            warnings.append(f"rows held out to choose the law by: {tested.held_out}, which is little to go by")
    else:
        chosen, window = find_law(law), 1.0
    fitted = backtest.window(table, window)
    if chosen is FRONTIER:
        fitted = backtest.frontier_of(fitted)
    if len(fitted) < len(table) and chosen is not FRONTIER:
        warnings.append(f"fitted to the {len(fitted)} rows of the largest budgets, as the back-test chose")
    if refused:
        warnings.append(f"no back-test: {refused}")
    warnings += check_law(fitted, chosen)
    found = fit(chosen, fitted.columns, objective, restarts=restarts, seed=seed)
    warnings += _of_certificate(found) + _outside(fitted, found)
    boot = None
    if draws:
        drawn = fitted.drawn_by(len(chosen.parameters))
        boot = intervals.bootstrap(found, fitted.columns, drawn, draws=draws, seed=seed)
        warnings += _of_groups(fitted, boot)
    return Analysis(
        table,
        fitted,
        found,
        boot,
        (*allocations, *_from_law(found, boot)),
        tuple(approaches.minima(table)) if {"N", "D", "C", "loss"} <= set(table.columns) else (),
        _conventions(fitted, found),
        _encoder_share(found),
        tested,
        tuple(warnings),
        checklist(fitted, found, bootstrap=boot, backtest=tested, window=window),
    )


def _candidates(table: Table, law: str) -> list[Law]:
    """All laws of the same target, the one that is named among them."""
    if law == AUTO:
        return []
    named = find_law(law)
    return list({one.name: one for one in (named, *backtest.usable(table, named.target))}.values())


def _of_certificate(found: Fit) -> list[str]:
    certificate, warnings = found.certificate, []
    if not certificate.stationary:
        warnings.append(
            f"the gradient is {certificate.gradient:.1g} where {certificate.tolerance:.0e} was aimed at: this may "
            "not be the optimum"
        )
    if certificate.better > 0:
        warnings.append("a random restart found a better optimum than the grid did: raise --restarts")
    if found.gone:
        warnings.append(f"{', '.join(found.gone)} went to 0: the rows do not show that term")
    return warnings


def _of_groups(table: Table, boot: Bootstrap) -> list[str]:
    groups = len(set(table.groups))
    if boot.groups <= groups:
        return []
    return [
        f"{boot.groups} runs share {groups} trunks, too few to draw by for {len(boot.fit.law.parameters)} parameters: "
        "runs were drawn as if they were independent, and intervals are too narrow; train more sizes, or repeat cells "
        "with other seeds"
    ]


def _outside(table: Table, found: Fit) -> list[str]:
    """Budgets whose best size, by the law, was not among the sizes trained: it is an extrapolation even there."""
    if not _is_allocated(found.law) or set(found.gone) - {"E"}:
        return []
    n, _ = approaches.from_law(found.law, found.parameters).at(float((6 * table["N"] * table["D"]).max()))
    low, high = table["N"].min(), table["N"].max()
    if low < n < high:
        return []
    where = "above" if n >= high else "below"
    return [f"the best size of the largest budget, {n:.3g}, is {where} those trained, {low:.3g} to {high:.3g}"]


def _is_allocated(law: Law) -> bool:
    """Whether the law says how to split compute between N and D."""
    return {("N",), ("D",)} <= {tuple(term.exponents) for term in law.terms}


def _from_curves(table: Table, approach: int) -> list[Allocation]:
    """Approaches 1 and 2, where one of them was asked for."""
    if approach == 1:
        return [approaches.training_curves(table)]
    if approach != 2:
        return []
    ours = approaches.isoflop(table)
    least = approaches.LEAST_SIZES["akima"]
    if sum(len(one.sizes) >= least for one in approaches.minima(table)) < 2:
        return [replace(ours, notes=(*ours.notes, f"by Akima none: it needs 2 budgets of at least {least} sizes"))]
    return [ours, approaches.isoflop(table, curve="akima")]


def _from_law(found: Fit, boot: Bootstrap | None) -> list[Allocation]:
    """Approach 3, where the law says how to split compute."""
    if _is_allocated(found.law) and not set(found.gone) - {"E"}:
        ours = approaches.from_law(found.law, found.parameters)
        if boot is not None:
            a = boot.statistic(lambda parameters: _exponent(found.law, parameters))
            low, high = intervals.percentiles(a, intervals.LEVEL)
            ours = replace(ours, a_interval=(low, high), b_interval=(1 - high, 1 - low))
        return [ours]
    return []


def _exponent(law: Law, parameters: dict[str, float]) -> float:
    """a; with a term of 0 nothing is gained by N (0) or by D (1), and the exponents still say what they say."""
    return approaches.from_law(law, {name: max(value, 1e-300) for name, value in parameters.items()}).a


def _conventions(table: Table, found: Fit) -> dict[str, float]:
    """How N is counted decides the exponent: a refit for each column that counts it."""
    if not _is_allocated(found.law):
        return {}
    names = [name for name in table.columns if name == "N" or (name.startswith("N_") and name not in ("N_e", "N_d"))]
    result = {}
    for name in names if len(names) > 1 else []:
        other = fit(found.law, {**table.columns, "N": table[name]}, found.objective)
        result[name] = _exponent(found.law, other.parameters)
    return result


def _encoder_share(found: Fit) -> float | None:
    p_e, p_d = (found.parameters.get(name) for name in ("p_e", "p_d"))
    return None if p_e is None or p_d is None else p_e / (p_e + p_d)


def to_text(analysis: Analysis) -> str:
    """What the command prints."""
    found, table = analysis.fit, analysis.table
    lines = [f"{table.name}: {len(table)} rows of {len(set(table.runs))} runs; {'; '.join(table.notes)}"]
    lines += [f"dropped {text}" for text in table.dropped]
    lines += [f"warning: {text}" for text in analysis.warnings]
    lines += ["", f"law {found.law.name}: {found.law.equation}", f"  {found.law.source}"]
    lines.append(f"  {found.objective.describe()}: {found.value:.10g} over {found.rows} rows")
    ranges = analysis.parameter_intervals
    for name, value in found.parameters.items():
        inside = f"   95 % {ranges[name][0]:.5g} to {ranges[name][1]:.5g}" if name in ranges else ""
        lines.append(f"  {name:8} {value:12.6g}{inside}")
    certificate = found.certificate
    lines.append(
        f"  certificate: gradient {certificate.gradient:.1e} (at most {certificate.tolerance:.0e}); "
        f"{certificate.agreeing} of {certificate.restarts} random starts end at the same objective"
    )
    lines += _allocation_text(analysis) + _backtest_text(analysis.backtest) + _checklist_text(analysis.checklist)
    return "\n".join(lines)


def _allocation_text(analysis: Analysis) -> list[str]:
    lines = ["", "compute-optimal: N_opt ~ C^a, D_opt ~ C^b"] if analysis.allocations else []
    for one in analysis.allocations:
        spread = ""
        if one.a_interval is not None:
            spread = f" (95 % {one.a_interval[0]:.3f} to {one.a_interval[1]:.3f})"
        # The law is minimised along C = 6 N D, the curves are read at the table's own C, which may count otherwise.
        counted = "C = 6 N D" if one.approach == "approach 3" else "C of the table"
        lines.append(f"  {one.approach} ({counted}): a {one.a:.4f}{spread}, b {one.b:.4f}")
        lines += [f"    {note}" for note in one.notes]
    if analysis.conventions:
        counted = ", ".join(f"{name} {value:.4f}" for name, value in analysis.conventions.items())
        lines.append(f"  a by how N is counted: {counted}")
    lines += [f"  {text}" for text in approaches.describe(analysis.minima)] if analysis.allocations else []
    if analysis.encoder_share is not None:
        lines += ["", f"best share of the encoder, p_e/(p_e + p_d): {analysis.encoder_share:.3f}"]
    return lines


def _backtest_text(tested: BackTest | None) -> list[str]:
    if tested is None:
        return []
    lines = [
        "",
        f"back-test: rows held out: {tested.held_out}, to {tested.factor:.3g} times the largest {tested.scale} fitted",
        f"  {'law':22}{'window':>7}{'rows':>6}{'error':>9}   at the best run",
    ]
    for one in tested.candidates:
        if one.error is None or one.best_excess is None:
            lines.append(f"  {one.law:22}{one.window:7.0%}{one.rows:6}   refused: {one.refused.rpartition(': ')[2]}")
        else:
            errors = f"{100 * one.error:8.2f} %   {100 * one.best_excess:+.2f} %"
            lines.append(f"  {one.law:22}{one.window:7.0%}{one.rows:6}{errors}")
    lines.append("  rows: without those held out; the law above is fitted to its window with them")
    if any(one.law == FRONTIER.name for one in tested.candidates):
        lines.append(
            f"  {FRONTIER.name} forecasts only the best run of a budget: its error is of fewer rows, so it ranks last"
        )
    return lines


def _checklist_text(items: tuple[Item, ...]) -> list[str]:
    return ["", "checklist", *(f"  {item.question}: {item.answer}" for item in items)]
