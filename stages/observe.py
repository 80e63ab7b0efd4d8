"""Make the observations of a problem, and apart from them the truth."""

from retrace.pipeline.artifacts import observed_path, truth_path, write_arrays
from retrace.pipeline.command import run
from retrace.pipeline.params import bind, entry_of, load
from retrace.problems import Ground, part


def main(name: str) -> None:
    """Write data/observed/<problem>.npz, which methods see, and data/truth/<problem>.npz, which
    no method sees."""
    params = load()
    entry = entry_of(params.problems, name, section="problems")
    observe = part(name, "observe").observe
    settings = bind(observe, entry.settings, where=f"problems.{name}.settings")
    given, truth = observe(Ground(name, entry.source), **settings)
    write_arrays(observed_path(name), given)
    write_arrays(truth_path(name), {**truth, "dataset": given["dataset"]})
    print(f"{name}: observed {given['observed'].shape}")


if __name__ == "__main__":
    run(main, name="problem")
