"""Train one network of params.yaml."""

from retrace.pipeline.artifacts import (
    dataset_of,
    history_path,
    read_split,
    save_checkpoint,
    split_path,
    write_json,
)
from retrace.pipeline.command import run
from retrace.pipeline.device import chosen
from retrace.pipeline.params import entry_of, load
from retrace.training import best_of, train_network


def main(name: str) -> None:
    """Train one network and write its checkpoint and history to models/."""
    params = load()
    network, record = train_network(
        name,
        entry_of(params.networks, name, section="networks"),
        read_split("train"),
        read_split("validation"),
        device=chosen(params.device),
        dataset=dataset_of(split_path("train")),
    )
    kept = {key: record[key] for key in ("architecture", "arguments", "dataset")}
    save_checkpoint(network, name=name, **kept)
    write_json(history_path(name), record)
    print(best_of(record))


if __name__ == "__main__":
    run(main, name="network")
