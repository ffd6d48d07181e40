"""How a call's numbers lie in memory, for those who compile the kernels and who call them."""

from __future__ import annotations

BLOCK = (
    1024  # entries that are worked on at a time: fp32 copies of some models stay in the L1 cache
)
BUFFERS = 4  # fp32 blocks in use beside those of the models
RUN = 256  # entries whose magnitudes are summed in fp32, as in kernels/scale.py
BF16, FP16, FP32 = 0, 1, 2  # how entries are stored

# Integers of every call.
COUNT, MODELS, SCRATCH, BASE, BASE_CODE, START = range(6)
# Of a merge, then for each model MODEL of them.
OUT, OUT_CODE, VECTOR, ELECTION, NORMALIZE, ZERO_NEGATIVE, MIN_AGREE = range(6, 13)
LINEAR, BY_SUM, BY_COUNT = range(3)  # ELECTION
HEAD, MODEL = 13, 12
ADDRESS, CODE, KIND, LIMIT, EQUALS, UPPER, UPPER_EQUALS, FIRST, SECOND, THIRD, BOUND = range(11)
WHOLE, NOTHING, CUT, DRAWN = range(4)  # KIND
# Floats of a merge, then for each model PAIRED of them.
COEFFICIENT, SCALE, AGREED_SCALE, FACTORS = range(4)
FACTOR, WEIGHT, TALL_LAMBDA = range(FACTORS, FACTORS + 3)
PAIRED = 3
# Integers of a count beyond those of every call; models are ADDRESS and CODE alone, then for each
# search SEARCH of them.
STRIDE, SAMPLES, SEARCHES = range(6, 9)
PIVOTS = 8
OWNER, LOW, HIGH, GATHERED, ABOVE, INSIDE, PIVOT = range(7)
SEARCH = PIVOT + 1 + 2 * PIVOTS
# Of powers of summed task vectors, then for each model ADDRESS and CODE.
POWERS, EXPONENT = range(6, 8)
# Of a count of signs, for each model SIGNED: ADDRESS, CODE, and above which pattern entries stay.
SIGNED, ABOVE_WHICH = 3, 2
