"""Weight sharing: where k-means begins (`Start` and its kin); `kp.share` and `kp.WeightSharing` use it."""

from keras_prune.sharing.starts import Density, KMeansPlusPlus, Linear, Random, Start

__all__ = ["Density", "KMeansPlusPlus", "Linear", "Random", "Start"]
