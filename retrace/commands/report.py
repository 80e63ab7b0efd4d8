"""The report as one page."""

from pathlib import Path

from retrace.pipeline.command import run

REPORT = Path("metrics/report.html")


def main() -> None:
    """Write metrics/report.html, one page that works offline, from what the pipeline has made."""
    # Seconds, which --help does not take.
    from retrace.problems.sections import present_state, sections
    from retrace.report import page

    state = present_state()
    text = page.rendered(
        sections(state),
        title="What went into the network?",
        dataset=state.dataset,
        facts=[*page.dataset_facts(), *page.repository_facts()],
        seconds=page.stage_seconds(state),
    )
    page.write_page(REPORT, text)
    print(f"The report is {REPORT.resolve().as_uri()} ({REPORT.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
