"""Subclassed models that several tests read graphs of."""

import keras
from keras import layers as kl
from keras import ops


class Residual(keras.Model):
    """Two Dense layers, the second around a shortcut, and a head."""

    def __init__(self):
        super().__init__()
        self.first = kl.Dense(8, activation="relu", name="first")
        self.second = kl.Dense(8, name="second")
        self.head = kl.Dense(2, name="head")

    def call(self, x):
        x = self.first(x)
        return self.head(ops.relu(x + self.second(x)))


class Opaque(keras.Model):
    """A model whose `call` goes past Keras."""

    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(3)

    def call(self, x):
        import tensorflow as tf

        return tf.raw_ops.Relu(features=self.dense(x))
