"""Validation losses of two published runs at every 250th step, rounded.

From the logs beside the code of arXiv 2203.06211 (github.com/allenai/staged-training, data/base_logs): 512 x 1024
tokens a step, the learning rate warmed up over 3000 steps.
"""

STEPS = tuple(range(1500, 10001, 250))
QUARTER = (
    4.4836, 4.2355, 4.1553, 4.0810, 4.0323, 3.9917, 3.9653, 3.9294, 3.8977, 3.8771, 3.8578, 3.8367,
    3.8252, 3.8067, 3.7971, 3.7846, 3.7731, 3.7661, 3.7581, 3.7525, 3.7437, 3.7361, 3.7310, 3.7229,
    3.7211, 3.7131, 3.7090, 3.7032, 3.6993, 3.6994, 3.6960, 3.6913, 3.6865, 3.6816, 3.6827,
)  # fmt: skip
"""12 layers x 384."""
BASE = (
    4.0578, 3.9663, 3.8847, 3.8288, 3.7797, 3.7341, 3.6964, 3.6590, 3.6279, 3.6020, 3.5819, 3.5650,
    3.5490, 3.5265, 3.5117, 3.5041, 3.4890, 3.4777, 3.4682, 3.4585, 3.4543, 3.4423, 3.4380, 3.4300,
    3.4235, 3.4154, 3.4113, 3.4041, 3.4003, 3.3962, 3.3896, 3.3863, 3.3830, 3.3776, 3.3765,
)  # fmt: skip
"""12 layers x 768."""
WARM = 3000
"""From here on the learning rate falls."""
