"""Which members are told where the weights are published in fewer bits, and what the rows show.

Weights of the pipeline's ordinary networks as they are, and rounded to 16 bits. Under a minute;
needs the trained networks and `dvc repro observe@membership`.
"""

import torch

from benchmarks.timing import print_table, write_result
from retrace.measures.membership import told
from retrace.methods._stationarity import Columns, chain_of, changed_rows
from retrace.methods.membership import stationarity
from retrace.pipeline.command import run
from retrace.problems import Ground
from retrace.problems.membership.score import parts_of

NETWORKS = ("ordinary_50", "ordinary_100", "ordinary_200", "fine_tuned_100")
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEPT = ("tpr_0", "tpr_0.1", "tpr_1", "auc")
NUMBERS = ("mean", "deviation")  # of the input: no weights


def measure(ground: Ground, name: str, kind: torch.dtype) -> dict[str, float]:
    """Members told of a network whose weights are rounded to a type."""
    network, _ = ground.load(name)
    for key, value in network.state_dict().items():
        if key not in NUMBERS:
            value.copy_(value.to(kind))
    observed, public = (torch.from_numpy(ground.given[key]) for key in ("observed", "public"))
    scores = stationarity.reconstruct(network, observed, beside={"public": public})
    parts = parts_of(ground, name)
    found = told(scores[parts.members], scores[parts.held_out])
    chain = chain_of(network)
    rank = len(Columns(chain, changed_rows(network, chain)[0]).values)
    rates = {key: float(found[key].mean()) for key in KEPT}
    return {"n": len(parts.members), "null_n": len(parts.held_out), "rank": rank, **rates}


def main() -> None:
    """Tell the members of each network at each precision."""
    ground = Ground("membership")
    result = {
        name: {label: measure(ground, name, kind) for label, kind in TYPES.items()}
        for name in NETWORKS
    }
    rows = [
        [name, kind, p["rank"], *(f"{p[key]:.3f}" for key in KEPT)]
        for name, kinds in result.items()
        for kind, p in kinds.items()
    ]
    print_table("Members told, by the precision of the weights", ["", "", "rank", *KEPT], rows)
    write_result("rounding", {"networks": result})


if __name__ == "__main__":
    run(main)
