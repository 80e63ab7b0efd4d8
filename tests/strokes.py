"""Images in which every row space of few dimensions has vertices: one bent stroke each."""

import torch

from retrace.types import Split

SIDE = 20
SHAPE = (SIDE, SIDE)


def strokes(count: int, *, seed: int) -> Split:
    """Images of one bent stroke each, (count, 20, 20) in [0, 1], and digits for their parity."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, 1, 2, generator=generator) * 10 + 5
    speed = torch.randn(count, 1, 2, generator=generator) * 0.6
    places = []
    for _ in range(40):
        speed = 0.95 * speed + 0.2 * torch.randn(count, 1, 2, generator=generator)
        place = place + 0.8 * speed
        speed = torch.where((place < 4) | (place > SIDE - 5), -speed, speed)
        place = place.clamp(3, SIDE - 4)
        places.append(place)
    along = torch.cat(places, dim=1)
    pixels = torch.arange(float(SIDE))
    rows = (along[:, :, 0, None, None] - pixels[:, None]).square()
    columns = (along[:, :, 1, None, None] - pixels).square()
    distance = (rows + columns).amin(dim=1).sqrt()
    return (1.8 - distance).clamp(0, 1), torch.arange(count) % 10
