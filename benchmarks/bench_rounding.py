"""What is left to read where the weights are published in fewer bits.

The audit of some of the pipeline's ordinary networks, a short one, their weights as they are and
rounded to 16 bits, beside validation images. A few minutes; needs the trained networks.
"""

import torch

from benchmarks.timing import print_table, write_result
from retrace.measures.identification import THRESHOLDS
from retrace.networks.mlp import training_set
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, read_json, read_split
from retrace.pipeline.command import run
from retrace.problems.training_data.audit import audit

NETWORKS = ("ordinary_100", "fine_tuned_100")
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STRICTEST = THRESHOLDS[-1]
OBJECTIVES, ROUNDS = 100, 2  # of the attack, as in the sweep `protection`
HELD_OUT = 5000
KEPT = ("tpr_0", "tpr_0.1", "tpr_1")


def measure(name: str, kind: torch.dtype) -> dict[str, float]:
    """What the audit finds in a network whose weights are rounded to a type."""
    network, _ = load_checkpoint(checkpoint_path(name))
    training = read_json(checkpoint_path(name).with_suffix(".json"))["training"]
    images, _, _ = training_set(
        read_split("train"), per_class=training["per_class"], offset=training["offset"]
    )
    normalisation = ("mean", "deviation")  # numbers of the input, not weights
    weights = {
        key: value if key in normalisation else value.to(kind).float()
        for key, value in network.state_dict().items()
    }
    held_out = read_split("validation")[0][:HELD_OUT]
    shaped = images.reshape(-1, *held_out.shape[1:])
    found = audit(
        weights, shaped, held_out, distinct_null=True, objectives=OBJECTIVES, rounds=ROUNDS
    ).scores
    return {
        "rank": found["rows"]["rank"],
        "n": found["n"],
        "read": found["matched"][STRICTEST],
        "null_read": found["null_matched"][STRICTEST],
        "null_n": found["null_n"],
        **{key: found["membership"][key] for key in KEPT},
    }


def main() -> None:
    """Audit each network at each precision."""
    result = {name: {t: measure(name, kind) for t, kind in TYPES.items()} for name in NETWORKS}
    rows = [
        [name, kind, p["rank"], f"{p['read']} of {p['n']}", *(f"{p[key]:.0%}" for key in KEPT)]
        for name, kinds in result.items()
        for kind, p in kinds.items()
    ]
    columns = ["network", "weights in", "rank", f"NCC > {STRICTEST}", *KEPT]
    print_table("Images read and members told, by the precision of the weights", columns, rows)
    write_result("rounding", {"networks": result})


if __name__ == "__main__":
    run(main)
