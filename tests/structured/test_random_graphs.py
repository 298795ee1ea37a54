"""Generated graphs: whatever they are made of, units that are zero can be removed.

Each graph is a random walk: a pool of tensors, from which layers take their inputs; all that nobody read is joined in
the head. Images and vectors, branches that meet again, shared layers, groups, broadcasts, nested models.
"""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

GRAPHS = 400
BATCHES = 10
SIZE = 4


class Walk:
    """Grows a graph by random steps over images of one size, any number of channels."""

    def __init__(self, rng):
        self.rng = rng
        self.inputs = keras.Input((SIZE, SIZE, int(rng.integers(1, 4))))
        self.pool = [self.inputs]
        self.unread = set()
        self.shared = {}
        self.relu = kl.ReLU()

    def width(self):
        return int(self.rng.choice([2, 4, 6]))

    def take(self, channels=None):
        fit = [x for x in self.pool if channels is None or x.shape[-1] == channels]
        x = fit[self.rng.integers(len(fit))]
        self.unread.discard(id(x))
        return x

    def put(self, x):
        self.pool.append(x)
        self.unread.add(id(x))

    def conv(self):
        act = self.rng.choice(["relu", "sigmoid", "tanh", "linear"])
        self.put(kl.Conv2D(self.width(), int(self.rng.choice([1, 3])), padding="same", activation=act)(self.take()))

    def separable(self):
        multiplier = int(self.rng.integers(1, 3))
        self.put(kl.SeparableConv2D(self.width(), 3, padding="same", depth_multiplier=multiplier)(self.take()))

    def depthwise(self):
        multiplier = int(self.rng.integers(1, 3))
        self.put(kl.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier, activation="sigmoid")(self.take()))

    def grouped(self):
        x = self.take()
        groups = int(self.rng.choice([g for g in (1, 2, 3, 4, 6) if x.shape[-1] % g == 0]))
        self.put(kl.Conv2D(groups * int(self.rng.integers(1, 4)), 3, padding="same", groups=groups)(x))

    def transposed(self):
        self.put(kl.Conv2DTranspose(self.width(), 3, padding="same")(self.take()))

    def shared_conv(self):
        x = self.take()
        key = x.shape[-1]
        if key not in self.shared:
            self.shared[key] = kl.Conv2D(self.width(), 1, activation="tanh")
        self.put(self.shared[key](x))

    def normalise(self):
        x = self.take()
        groups = int(self.rng.choice([g for g in (1, 2, 3, 4, 6) if x.shape[-1] % g == 0]))
        kinds = [
            kl.BatchNormalization(),
            kl.BatchNormalization(scale=False),
            kl.GroupNormalization(groups),
            kl.RMSNormalization(epsilon=0.1),
            kl.LayerNormalization(),
        ]
        self.put(kinds[self.rng.integers(len(kinds))](x))

    def unary(self):
        kinds = [
            kl.PReLU(shared_axes=[1, 2]),
            kl.AveragePooling2D(3, 1, padding="same"),
            kl.MaxPooling2D(2, 1, padding="same"),
            kl.Activation("swish"),
            self.relu,
            kl.Rescaling(0.5, offset=0.5),
            kl.Dropout(0.5),
            ops.exp,
            lambda x: 1.0 - x,
        ]
        self.put(kinds[self.rng.integers(len(kinds))](self.take()))

    def merge(self):
        a = self.take()
        others = [self.take(a.shape[-1]) for _ in range(int(self.rng.integers(1, 3)))]
        kinds = [kl.Add, kl.Multiply, kl.Average, kl.Maximum, kl.Subtract]
        if len(others) > 1:
            kinds.remove(kl.Subtract)
        self.put(kinds[self.rng.integers(len(kinds))]()([a, *others]))

    def concatenate(self):
        parts = [self.take() for _ in range(int(self.rng.integers(2, 4)))]
        if sum(x.shape[-1] for x in parts) <= 24:
            self.put(kl.Concatenate()(parts))
        else:
            for x in parts:
                self.unread.add(id(x))

    def excite(self):
        x = self.take()
        s = kl.GlobalAveragePooling2D(keepdims=True)(x)
        s = kl.Dense(self.width(), activation="relu")(s)
        s = kl.Dense(x.shape[-1], activation="sigmoid")(s)
        self.put(kl.Multiply()([x, s]))

    def attend(self):
        x = self.take()
        self.put(kl.Multiply()([x, kl.Conv2D(1, 1, activation="sigmoid")(x)]))

    def split(self):
        x = self.take()
        if x.shape[-1] >= 2 and x.shape[-1] % 2 == 0:
            a, b = ops.split(x, 2, axis=-1)
            self.put(a)
            self.put(ops.tanh(b))
        else:
            self.put(x[..., : max(1, x.shape[-1] // 2)])

    def shuffle(self):
        x = self.take()
        c = x.shape[-1]
        if c % 2:
            self.put(ops.relu(x))
            return
        y = kl.Reshape((SIZE * SIZE, 2, c // 2))(x)
        self.put(kl.Reshape((SIZE, SIZE, c))(kl.Permute((1, 3, 2))(y)))

    def nested(self):
        x = self.take()
        inner = keras.Input(x.shape[1:])
        y = kl.Conv2D(self.width(), 1, activation="relu")(inner)
        y = kl.Conv2D(x.shape[-1], 1)(y)
        block = keras.Model(inner, kl.Add()([inner, y]))
        out = block(x)
        self.put(block(out) if self.rng.random() < 0.5 else out)

    def head(self):
        loose = [x for x in self.pool if id(x) in self.unread]
        x = kl.Concatenate()(loose) if len(loose) > 1 else loose[0]
        if self.rng.random() < 0.5:
            x = kl.Flatten()(x)
        else:
            x = kl.GlobalAveragePooling2D()(x)
        return keras.Model(self.inputs, kl.Dense(3)(kl.Dense(self.width(), activation="tanh")(x)))


STEPS = [
    "conv", "conv", "separable", "depthwise", "grouped", "transposed", "shared_conv", "normalise", "unary", "merge",
    "merge", "concatenate", "excite", "attend", "split", "shuffle", "nested",
]  # fmt: skip


def generate(seed):
    rng = np.random.default_rng(seed)
    walk = Walk(rng)
    walk.conv()
    for _ in range(int(rng.integers(2, 7))):
        getattr(walk, rng.choice(STEPS))()
    return walk.head()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_removal_is_exact_on_random_graphs(batch, check_removal):
    units = 0
    for seed in range(batch * GRAPHS // BATCHES, (batch + 1) * GRAPHS // BATCHES):
        model = generate(seed)
        x = np.random.default_rng(seed).normal(size=(2, *model.input_shape[1:])).astype("float32")
        analysis, _ = check_removal(model, x, seed=seed, share=(0.25, 0.5, 0.75)[seed % 3])
        units += analysis.size
    assert units > 5 * GRAPHS // BATCHES
