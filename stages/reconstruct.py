"""Run one reconstruction of params.yaml. The truth is not here."""

from retrace.execution.reconstruction import reconstruct
from retrace.pipeline.artifacts import (
    checkpoint_path,
    load_checkpoint,
    observed_path,
    read_arrays,
    reconstruction_path,
    record_path,
    write_arrays,
    write_json,
)
from retrace.pipeline.command import run
from retrace.pipeline.params import entry_of, load


def main(name: str) -> None:
    """Run one reconstruction of params.yaml and write data/reconstructions/<problem>/<run>.npz and
    .json."""
    params = load()
    entry = entry_of(params.runs, name, section="runs")
    network, header = load_checkpoint(checkpoint_path(entry.network))
    observations = read_arrays(observed_path(entry.problem))
    arrays, record = reconstruct(
        name, entry, network, observations, header=header, device=params.device
    )
    write_arrays(reconstruction_path(entry.problem, name), arrays)
    # Beside it, not in it: the same parameters give the same bytes, but never the same seconds.
    write_json(record_path(entry.problem, name), record)
    print(f"{name}: {arrays['estimate'].shape} in {record['seconds']:.1f} s")


if __name__ == "__main__":
    run(main, name="run")
