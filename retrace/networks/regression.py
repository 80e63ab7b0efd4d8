"""Linear and logistic regression in float64, of any number of inputs and outputs.

Small enough that the input which gives a wanted output has a closed form: what gradient descent on
the input is measured against.
"""

import time
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Progress, unwatched
from retrace.types import Seed, Split


class Network(nn.Module):
    """f(x) = W x + b, or its sigmoid.

    Attributes
    ----------
    weight : (outputs, inputs) float64
    bias : (outputs,) float64
    """

    def __init__(
        self,
        *,
        inputs: Annotated[int, Field(ge=1)] = 1,
        outputs: Annotated[int, Field(ge=1)] = 1,
        activation: Literal["identity", "sigmoid"] = "identity",
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float64))

    def logits(self, x: Tensor) -> Tensor:
        """(B, inputs) to W x + b, (B, outputs)."""
        return x.double() @ self.weight.T + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs) float64."""
        z = self.logits(x)
        return z.sigmoid() if self.activation == "sigmoid" else z

    @torch.no_grad()
    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress = unwatched,
        *,
        points: Annotated[int, Field(ge=2)] = 100,
        span: Annotated[float, Field(gt=0)] = 1000.0,
        slope: float = 0.4,
        offset: float = -25.0,
        noise: Annotated[float, Field(ge=0)] = 50.0,
        rank: Annotated[int, Field(ge=0)] = 0,
        seed: Seed = 0,
    ) -> list[dict[str, float]]:
        """Least squares on points that the seed draws; the splits are not looked at.

        The points are x ~ U(0, span) and z = T x + offset + noise (1/2 - u) with u ~ U(0, 1); a
        sigmoid network gets y = sigmoid(z), and is fitted to the logits of y, which are z. By
        default z = 0.4 x - 50 u, the published regression.

        Parameters
        ----------
        points : int
            Number of them; more than inputs + 1 for a unique fit.
        slope : float
            Every entry of T, or its scale where `rank` is not 0.
        rank : int
            0: every entry of T is the slope. Otherwise T is a random matrix of that rank, so that
            without noise some outputs cannot be reached.

        Returns
        -------
        list of one dict
            ``residual``: the root of the mean squared error of z.
        """
        outputs, inputs = self.weight.shape
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

        x = span * torch.rand(points, inputs, generator=generator, dtype=torch.float64)
        u = torch.rand(points, outputs, generator=generator, dtype=torch.float64)
        if rank:
            teacher = slope * normal(outputs, rank) @ normal(rank, inputs) / rank**0.5
        else:
            teacher = torch.full_like(self.weight, slope)
        z = x @ teacher.T + offset + noise * (0.5 - u)  # (points, outputs)
        design = torch.cat([x, torch.ones(points, 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(design, z).solution  # (inputs + 1, outputs)
        self.weight.copy_(solution[:-1].T)
        self.bias.copy_(solution[-1])
        residual = float((self.logits(x) - z).square().mean().sqrt())
        entry = {"epoch": 1.0, "timestamp": time.time(), "residual": residual}
        progress(entry)
        return [entry]
