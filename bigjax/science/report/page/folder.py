"""The folder of a report: the page, and its tables and figures as files of their own."""

from pathlib import Path

from bigjax.errors import UserError
from bigjax.run.json_files import write_json, write_text
from bigjax.science.laws import plots as fits_plots
from bigjax.science.laws import report as fits_report
from bigjax.science.report.page import page, pictures
from bigjax.science.report.page.tables import tables
from bigjax.science.report.summary import Report


def write(report: Report, out: str | Path, *, command: str, made: str, refresh: int = 0) -> Path:
    """Write `index.html`, `tables/*.csv` and `.tex`, `figures/*.png` and `.svg`, and the fits; return the page.

    Raises:
        UserError: the folder cannot be written.
    """
    out = Path(out)
    made_tables = tables(report)
    try:
        for folder in (out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
        for table in made_tables:
            write_text(out / "tables" / f"{table.name}.csv", table.to_csv())
            write_text(out / "tables" / f"{table.name}.tex", table.to_latex())
        pictures.plot_report(report, out / "figures")
        fits = {}
        if report.fits:
            names = fits_plots.plot_study(report.fits, out / "figures")
            fits = {name: out / "figures" / f"{name}.svg" for name in names}
            write_json(out / "fit.json", fits_report.to_json(report.fits))
            write_text(out / "fit.md", fits_report.to_markdown(report.fits))
        html = page.render(report, made_tables, fits, command=command, made=made, refresh=refresh)
        write_text(out / "index.html", html)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    return out / "index.html"
