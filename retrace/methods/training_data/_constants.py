"""Numbers of the attacks on the row space that are no settings, with what each is for."""

# Which singular values and units count.
NOISE = 1e-6  # singular values below this share of the largest are float32's noise
DEAD = 1e-2  # a unit below this share of the largest takes no part
KINK = 1e-2  # |cosine| between an image and a unit below which the unit counts as at its kink
LIVE_SHARE = 0.02  # of the second layer's units of one sign, for a candidate to count as passing

# Fits of patterns in the column space: see `MarginSpace.certify` and `deflate`.
RIDGE = 1e-5  # of the fit
STRICT = 1e3  # weight of the conditions on the duals

# Which points are one, by normalised cross-correlation.
SAME_DIRECTION = 0.98  # outgoing weights of units that belong to one group
SAME_START = 0.93  # two starts
SAME_IMAGE = 0.96  # two candidates
SAME_POINT = 0.99  # two points to walk from, or walked to

# Differences of units as starts.
FARTHEST = 60.0  # norm, in pixel units, beyond which a difference is no image (images: about 10)
RANKED = 20_000  # differences among which duplicates are looked for
BLOCK = 512  # vectors that `distinct` compares at once

# Alternating between the row space and the box of pixels.
ANCHORED = 40  # iterations in which a candidate is held to its start
ANCHOR = 0.3  # weight of the start in them
SETTLED = 1e-3  # a quarter of a grey level: a candidate whose pixels a pass moves less is done
CHUNK = 512  # candidates that are moved together: their arrays stay in the cache

# Penalties on the coordinates, by how strongly the weights determine them: a large one is robust
# and finds images with large dual variables, a small one leaves room for the others.
SEARCHES = ((1e-5, 1e-6, 1e-7, 1e-8), (1e-6, 1e-7, 1e-8), (1e-7, 1e-8))
POLISH = (1e-8, 1e-9, 1e-10)
POLISH_FREE = (1e-9, 1e-10, 1e-11)  # of `vertices`, where the weights determine all

# Where the rank is small: vertices of the polytope.
FEW_DIMENSIONS = 0.25  # share of the pixels below which the row space's rank counts as small
CLIMB = (1e-9, 0.1)  # penalty on the coordinates, weight of the random objective
CLIMB_ITERATIONS = 150
SETTLE = ((1e-9, 0.05), (1e-10, 0.02), (1e-11, 0.0))  # the same, the objective fading
TIGHT = 2e-3  # a pixel this near to 0 or 1 is at the end of its range
FLOOR = 1e-10  # keeps directions that the weights determine weakly from counting as free
ONES = 100.0  # weight of the last coordinate, which stays 1
RIGID = 0.02  # rigidity above which a point counts as a vertex
WALK = 12  # faces that a walk crosses at most
BATCH = 64  # points whose tight pixels are looked at together
INVERSE_ITERATIONS = 3  # towards the direction in which a point moves most freely
