"""The report as one page."""

from retrace.pipeline.command import run


def main() -> None:
    """Write metrics/report.html, one page that works offline, from what the pipeline has made."""
    from retrace.report.page import write_report  # seconds, which --help does not take

    write_report()


if __name__ == "__main__":
    run(main)
